"""Energy, latency and area of attention on gain-cell arrays, from its parts.

Counts per token, with D features, W slots of which T hold a token, J = ⌈T/R⌉ sub-tiles in use (J_W = W/R built), H
query heads, H_kv K/V heads, and n steps of a converter (:mod:`aimc.circuit.cost.converters`). A step lasts one clock.

| part | energy of a layer | area of a layer |
|---|---|---|
| first array | H·D·T·read_energy_qk·(n_in·clock / read_pulse) | H_kv·D·W·cell |
| second array | H·D·T·read_energy_av·(longest φ / read_pulse) | H_kv·D·W·cell |
| DACs | (H·D·n_in + 2·H_kv·D·n_store)·dac_step | H_kv·3·D·dac |
| pulse generators | H·(T + J·D)·pulse_generator | H_kv·(W + J_W·D)·pulse_generator |
| counters | H·J·D·n_out·counter_step | H_kv·J_W·D·counter |
| digital adders | H·J·D·adder | H_kv·D·(J_W/16)·adder |
| routing and control | H·(T + J·D)·routing | H_kv·(W + J_W·D)·routing |
| writes | 2·H_kv·D·write | – |
| refresh | 2·H_kv·D·T·(write + n_store·dac_step)·token time/interval | – |

A softmax between the arrays has ADCs and exponentials in place of the first charge-to-pulse circuits. With
`pruned_softmax` there is no second array, no counters and no adders, and one array is written instead of two; its
scores are ramp conversions that stop at a share of the steps (`select="share"`), or one comparison a column by circuits
as large as those that make pulses of charge (`"threshold"`). What is digital besides is counted in
:mod:`aimc.circuit.cost.digital`.

A normaliser column and a gain by position are counted in :mod:`aimc.circuit.cost.normaliser`; a threshold is a
pre-charge of lines that are charged anyway. A signed query is read by polarity, in two passes, or on two K arrays
(`signed_passes`, `signed_arrays`).

A layer with a sliding window shorter than W has arrays of that many slots, in energy, time and area. Layers without
attention, and attention that stays digital, cost nothing here.

So energy doubles with H and L, and in all but DACs and writes with W (full); arrays double with D and W, DACs, counters
and adders with D; counters and adders halve as R doubles; pulses, hence array energy and latency, are proportional to
converter steps. Heads work in parallel, except that query heads of a group read the same arrays in turn; layers follow
one another.

The scalers (`x' = a·x + b`) are folded into the projections, and norms, embeddings and sampling are not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from aimc.circuit.cost.breakdown import Breakdown
from aimc.circuit.cost.converters import converter_steps, levels_of, longest_pulses
from aimc.circuit.cost.digital import FEATURES, PROTECTED, RECOMPUTED, DigitalCounts
from aimc.circuit.cost.normaliser import normaliser_area, normaliser_energy
from aimc.circuit.cost.parameters import CostParameters
from aimc.circuit.cost.report import si, table
from aimc.circuit.cost.shape import ModelShape
from aimc.hardware import ConfigError, Hardware

FIRST, SECOND, DACS, PULSES, COUNTERS, ADDERS, ROUTING, WRITES, REFRESH = PARTS = (
    "first array",
    "second array",
    "DACs",
    "pulse generators",
    "counters",
    "digital adders",
    "routing and control",
    "writes",
    "refresh",
)
"""What every cost is divided into, in this order."""
ADCS, SOFTMAX, QUEUE = "score ADCs", "digital softmax", "queue for shared arrays"
"""Parts that some activations have, beside those of :mod:`aimc.circuit.cost.digital`."""
_ADDERS_PER_AREA = 16
SLOWER = 1.25
"""Times the pace that cells are emulated at from which on a cost says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Energy, latency and area, each by part."""

    scope: str
    """`head`, `layer` or `model`."""
    energy_j: Breakdown
    """Joule per token."""
    latency_s: Breakdown
    """Second from a token's query to its output, attention alone. A layer's total is what `Leakage.step_latency_s`
    should be."""
    area_m2: Breakdown
    """Square metre of the circuits of one sequence."""
    interval_s: float
    """Second after which the same arrays take the next token of a prompt, of the slowest layer; its latency where
    nothing is pipelined."""
    shape: ModelShape
    """Whose cost it is."""
    leaking_s: float | None = None
    """Second that cells are taken to leak a layer and token: the hardware's, not this cost's. None: they do not."""
    kept_share: float | None = None
    """Share of the tokens in the arrays that pruning keeps for the digital recomputation, protected ones not among
    them; None: nothing is pruned."""

    @property
    def layer(self) -> Cost:
        """One attention layer's share; the mean of the layers on arrays where their windows differ."""
        return self._share("layer", self._n_layers, 1)

    @property
    def head(self) -> Cost:
        """One query head's share of a layer: energy and area ÷ H; its latency is the layer's, because heads work in
        parallel."""
        return self._share("head", self._n_layers, self._n_heads)

    @property
    def _n_layers(self) -> int:
        return self.shape.n_on_arrays if self.scope == "model" else 1

    @property
    def _n_heads(self) -> int:
        return 1 if self.scope == "head" else self.shape.query_heads

    def _share(self, scope: str, layers: int, heads: int) -> Cost:
        if self.scope == "head" and scope == "layer":
            raise ValueError(
                "a head's share does not know the whole layer; take .layer of the cost that the head was taken from"
            )
        return Cost(
            scope=scope,
            energy_j=self.energy_j.scaled(1 / (layers * heads)),
            latency_s=self.latency_s.scaled(1 / layers),
            area_m2=self.area_m2.scaled(1 / (layers * heads)),
            interval_s=self.interval_s,
            shape=self.shape,
            leaking_s=self.leaking_s,
            kept_share=self.kept_share,
        )

    def __str__(self) -> str:
        columns = (self.energy_j, self.latency_s, self.area_m2)
        names = list(dict.fromkeys(name for parts in columns for name in parts))
        rows = []
        for name in (*names, None):
            row = [name or "total"]
            for parts, unit in zip(columns, ("J", "s", "m²"), strict=True):
                value = parts.total if name is None else parts.get(name, 0.0)
                row.append(si(value, unit) if value or name is None else "–")
                row.append(f"{100 * value / parts.total:.1f} %" if value and parts.total else "")
            rows.append(row)
        lines = [table((f"per token and {self.scope}", "energy", "", "latency", "", "area", ""), rows)]
        step_s = self.latency_s.total / max(self._n_layers, 1)
        if self.leaking_s is not None and step_s > SLOWER * self.leaking_s:
            lines.append(
                f"a layer takes {si(step_s, 's')}, and the emulated cells leak {si(self.leaking_s, 's')} for it: set"
                f" leakage.step_latency_s={step_s:.2g} to see the model at this pace"
            )
        if self.kept_share is not None:
            lines.append(
                f"{100 * self.kept_share:.3g} % of the tokens in the arrays are kept and recomputed in digital"
            )
        return "\n".join(lines)


def attention_cost(
    shape: ModelShape, hardware: Hardware, parameters: CostParameters | None = None, window_fill: int | None = None
) -> Cost:
    """What attention costs per token when a model decodes on these arrays.

    Args:
        shape: of the model.
        hardware: window, sub-tiles, levels, activation, protected tokens and, for refresh, the time of a token; where
            that is None, the model's layers × `leakage.step_latency_s`. What the layers take counts where it is more.
        parameters: unit numbers; None: the defaults, which give the published point.
        window_fill: T, tokens in the arrays, 1 to W; None: W. Slots that hold nothing are not read, and a layer holds
            no more than its sliding window.

    Returns:
        The whole model's cost; `.layer` and `.head` are shares of it.

    Raises:
        ConfigError: a converter has no level count, so that its cost is not defined; or a layer's sliding window is no
            whole number of sub-tiles.
        ValueError: `window_fill` does not fit the window, or refreshing takes longer than the cells may wait.
    """
    window = hardware.array.window
    if window_fill is not None and not (
        isinstance(window_fill, int) and not isinstance(window_fill, bool) and 1 <= window_fill <= window
    ):
        raise ValueError(
            f"window_fill={window_fill!r}: the arrays hold between 1 and array.window={window} tokens; "
            "give a whole number of tokens, or None for full arrays"
        )
    energy, latency, area = Breakdown(), Breakdown(), Breakdown()
    interval_s, kept, held = 0.0, 0, 0
    for slots, n_layers in sorted(shape.held(window).items()):
        counts = _Counts(shape, _of_window(hardware, slots), parameters or CostParameters(), window_fill)
        of_layer, interval = counts.latency()
        energy, latency, area = (
            total.plus(part.scaled(n_layers))
            for total, part in ((energy, counts.energy()), (latency, of_layer), (area, counts.area()))
        )
        interval_s = max(interval_s, interval)
        kept, held = kept + n_layers * counts.digital.n_kept, held + n_layers * counts.held
    return Cost(
        scope="model",
        energy_j=energy,
        latency_s=latency,
        area_m2=area,
        interval_s=interval_s,
        shape=shape,
        leaking_s=None if hardware.leakage.tau_s is None else token_time_s(shape, hardware) / max(shape.n_on_arrays, 1),
        kept_share=kept / held if hardware.activation == "pruned_softmax" else None,
    )


def _of_window(hardware: Hardware, window: int) -> Hardware:
    """The hardware of a layer that uses so many slots."""
    array = hardware.array
    if window == array.window:
        return hardware
    rows = min(array.rows, window)  # a shorter window is one sub-tile
    if window % rows:
        raise ConfigError(
            f"array.rows={rows}: a layer sees a sliding window of {window} tokens, which is no whole number of"
            " sub-tiles; choose array.rows that divides it"
        )
    return replace(hardware, array=replace(array, window=window, rows=rows))


class _Counts:
    """How many of each thing one layer has or uses per token, and what that comes to."""

    def __init__(
        self, shape: ModelShape, hardware: Hardware, parameters: CostParameters, window_fill: int | None
    ) -> None:
        self.shape, self.hardware, self.p = shape, hardware, parameters
        self.held = min(window_fill or hardware.array.window, hardware.array.window)
        self.sub_tiles = math.ceil(self.held / hardware.array.rows)
        self.softmax, self.pruned = (hardware.activation == kind for kind in ("softmax", "pruned_softmax"))
        self.n_arrays = 1 if self.pruned else 2
        self.digital = DigitalCounts(shape, hardware, parameters, self.held)
        self.input_steps = converter_steps(hardware.input_dac, "input_dac")
        self.storage_steps = converter_steps(hardware.storage_dac, "storage_dac")
        self.readout_steps = 0 if self.pruned else converter_steps(hardware.readout, "readout")
        if self.softmax:
            self.probability_steps = converter_steps(hardware.probability_dac, "probability_dac")
        self.compares = self.pruned and hardware.pruning.select == "threshold"
        self.reads_scores = hardware.has_softmax and not (self.compares and self.digital.scores_are_recomputed)
        self.score_levels = levels_of(hardware.score_adc, "score_adc") if self.reads_scores else 0
        self.input_pulse_s, self.second_pulse_s = longest_pulses(hardware, parameters)
        signed = hardware.input_dac.v_min < 0
        self.passes, self.key_arrays = (parameters.signed_passes, parameters.signed_arrays) if signed else (1, 1)
        normaliser = hardware.normaliser
        self.sum_steps = converter_steps(normaliser.counter, "normaliser.counter") if normaliser.is_on else 0

    def energy(self) -> Breakdown:
        """Joule per token of one layer."""
        p, d, heads, kv_heads = self.p, self.shape.head_size, self.shape.query_heads, self.shape.kv_heads
        cells, partial_sums = d * self.held, 0 if self.pruned else d * self.sub_tiles
        written = (self.n_arrays - 1 + self.key_arrays) * kv_heads
        dac_steps = heads * d * self.input_steps + written * d * self.storage_steps
        first_pulses = 0 if self.hardware.has_softmax else self.held
        rewritten = written * cells * (p.write_energy_j + self.storage_steps * p.dac_energy_j_per_step)
        second_reads = 0.0 if self.pruned else heads * cells * self.second_pulse_s / p.read_pulse_s
        parts = Breakdown(
            {
                FIRST: heads * cells * p.read_energy_qk_j * self.input_pulse_s / p.read_pulse_s,
                SECOND: second_reads * p.read_energy_av_j,
                DACS: dac_steps * p.dac_energy_j_per_step,
                PULSES: heads * (first_pulses + partial_sums) * p.pulse_generator_energy_j,
                COUNTERS: heads * partial_sums * self.readout_steps * p.counter_energy_j_per_step,
                ADDERS: heads * partial_sums * p.adder_energy_j,
                ROUTING: heads * (self.held + partial_sums) * p.routing_energy_j,
                WRITES: written * d * p.write_energy_j,
                REFRESH: rewritten * self._refreshes_per_token(),
            }
        )
        if self.softmax:
            parts[DACS] += heads * self.held * self.probability_steps * p.dac_energy_j_per_step
        if self.hardware.has_softmax:
            parts[ADCS] = heads * self._score_steps() * p.adc_energy_j_per_step
            parts[SOFTMAX] = heads * self._n_exponentials() * p.exponential_energy_j
        column = {"held": self.held, "sub_tiles": self.sub_tiles, "steps": self.sum_steps}
        of_sum = normaliser_energy(self.shape, self.hardware, p, **column, pulse_s=self.second_pulse_s)
        return parts.plus(Breakdown(of_sum)).plus(Breakdown(self.digital.energy()))

    def _score_steps(self) -> float:
        """Conversion steps per query head behind the first array; a comparison is one."""
        if self.compares:
            return self.held + self.digital.n_kept * self.score_levels
        return self.held * self.score_levels * (self._ramp_share() if self.pruned else 1)

    def _ramp_share(self) -> float:
        return min(self.p.ramp_share, 1.0)

    def _n_exponentials(self) -> int:
        return self.digital.n_kept + self.digital.n_protected if self.pruned else self.held

    def _stages(self) -> dict[str, float]:
        """Second of what follows one another in a read."""
        p, digital = self.p, self.digital
        stages = {FIRST: self.passes * (p.settle_latency_s + self.input_pulse_s)}
        if self.hardware.has_softmax:
            stages[ADCS] = p.adc_latency_s_per_bit * math.log2(max(self.score_levels, 2))
            stages[SOFTMAX] = 2 * math.ceil(self._n_exponentials() / p.softmax_lanes) * p.softmax_latency_s
        if self.pruned:
            if not self.compares:
                stages[ADCS] = self.score_levels * self._ramp_share() * p.clock_s
            return {**stages, RECOMPUTED: digital.products_s(digital.n_products)}
        stages |= {
            SECOND: p.settle_latency_s + self.second_pulse_s,
            COUNTERS: max(self.readout_steps, self.sum_steps) * p.clock_s,
            ADDERS: p.adder_latency_s * math.ceil(math.log2(self.sub_tiles)),
        }
        if digital.n_protected:  # beside the arrays: their scores with the first, their values with the second
            beside_s = digital.products_s(digital.n_protected)
            first_s = stages[FIRST] + stages.get(ADCS, 0.0)
            second_s = stages[SECOND] + stages[COUNTERS] + stages[ADDERS]
            stages[PROTECTED] = max(beside_s - first_s, 0.0) + max(beside_s - second_s, 0.0)
        return stages

    def latency(self) -> tuple[Breakdown, float]:
        """Second per token of one layer, by part; and the interval between tokens of a prompt."""
        parts, next_read_s = self._without_refresh()
        refreshing_s = self.p.write_latency_s * self.held * self._refreshes_per_token()
        parts[REFRESH] = refreshing_s
        writing_s = self.p.write_latency_s + refreshing_s
        return parts, max(writing_s + self.shape.group * next_read_s, parts.get(FEATURES, 0.0))

    def _without_refresh(self) -> tuple[Breakdown, float]:
        """Second per token of one layer whose cells are not rewritten, by part; and of one query head more that reads
        the same arrays."""
        p, stages = self.p, self._stages()
        next_read_s = max(math.fsum(stages.values()) / p.pipeline_depth, *stages.values())
        parts = Breakdown({**stages, WRITES: p.write_latency_s, REFRESH: 0.0})
        parts[QUEUE] = (self.shape.group - 1) * next_read_s
        features_s = self.digital.features_s()
        if features_s:
            parts[FEATURES] = features_s
        return parts, next_read_s

    def area(self) -> Breakdown:
        """Square metre of one layer."""
        p, d, kv_heads, array = self.p, self.shape.head_size, self.shape.kv_heads, self.hardware.array
        partial_sums = 0 if self.pruned else d * array.n_tiles
        first_pulses = array.window if self.compares or not self.hardware.has_softmax else 0
        parts = Breakdown(
            {
                FIRST: self.key_arrays * d * array.window * p.cell_area_m2,
                SECOND: 0.0 if self.pruned else d * array.window * p.cell_area_m2,
                DACS: (1 + self.n_arrays) * d * p.dac_area_m2,
                PULSES: (first_pulses + partial_sums) * p.pulse_generator_area_m2,
                COUNTERS: partial_sums * p.counter_area_m2,
                ADDERS: partial_sums / _ADDERS_PER_AREA * p.adder_area_m2,
                ROUTING: (array.window + partial_sums) * p.routing_area_m2,
            }
        )
        if self.softmax:
            parts[DACS] += array.window * p.dac_area_m2
        if self.reads_scores:
            parts[ADCS] = array.window * p.adc_area_m2
        if self.hardware.has_softmax:
            parts[SOFTMAX] = p.softmax_lanes * p.softmax_area_m2
        parts = parts.plus(Breakdown(normaliser_area(self.hardware, p, _ADDERS_PER_AREA)))
        return parts.plus(Breakdown(self.digital.area())).scaled(kv_heads)

    def _refreshes_per_token(self) -> float:
        """Time of a token ÷ refresh interval; 0: never refreshed. The time is what the hardware says, or what the
        layers take, where that is more."""
        interval_s = self.p.refresh_interval_s
        if interval_s is None:
            return 0.0
        writing_s = self.held * self.p.write_latency_s
        if writing_s >= interval_s:
            raise ValueError(
                f"refresh_interval_s={interval_s:g}: writing {self.held} slots one after another takes"
                f" {si(writing_s, 's')}, so that the arrays would do nothing else; give a longer interval, a smaller"
                " window or a shorter write_latency_s"
            )
        taken_s = self.shape.n_on_arrays * self._without_refresh()[0].total
        return max(token_time_s(self.shape, self.hardware), taken_s) / interval_s


def token_time_s(shape: ModelShape, hardware: Hardware) -> float:
    """Time from one token to the next in second: what the hardware says, or the model's layers, one step each."""
    leakage = hardware.leakage
    return shape.layers * leakage.step_latency_s if leakage.token_time_s is None else leakage.token_time_s
