"""The whole decoder: attention on arrays and the rest digital, beside a machine that does both digitally.

Attention is a part of a model. However little it costs on arrays, projections, MLPs and LM head still read every weight
for every token, so the end-to-end gain is bounded by (attention + rest) / rest of the digital machine (Amdahl's law).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aimc.circuit.cost.attention import Breakdown, Cost, attention_cost
from aimc.circuit.cost.parameters import CostParameters
from aimc.circuit.cost.published import GPU_FIGURES, HEAD_SIZE, HEADS, WINDOW
from aimc.circuit.cost.report import si, table, times
from aimc.circuit.cost.shape import ModelShape
from aimc.hardware import Hardware
from aimc.hardware.checks import check_fields

PROJECTIONS, MLP, LM_HEAD = "projections", "MLP", "LM head"


@dataclass(frozen=True, slots=True, kw_only=True)
class DigitalBaseline:
    """A machine that does everything digitally, per token of the whole model."""

    name: str
    attention_energy_j: float | None
    """Joule per token of attention in all layers; None: not known, and then no gain is claimed."""
    attention_latency_s: float | None
    """Second per token of attention in all layers; None: not known."""
    source: str
    """Where the numbers come from: published, measured, or estimated from which parameters."""
    rest_energy_j: float | None = None
    """Joule per token of everything else; None: as :func:`digital_rest` estimates it. The rest costs the same on both
    sides of a comparison.
    The estimate is an ideal: a machine whose attention was measured takes more for the rest as well, so a gain over it
        comes out too large."""
    rest_latency_s: float | None = None
    """Second per token of everything else; None: as estimated."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("attention_energy_j", "attention_latency_s", "rest_energy_j", "rest_latency_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(
                    f"{name}={value!r}: a machine takes some energy and time; give a positive number, or None where it"
                    " is not known"
                )

    @classmethod
    def of_layer(
        cls, name: str, *, layers: int, energy_j: float | None, latency_s: float | None, source: str
    ) -> DigitalBaseline:
        """From the figures of one layer's attention, times the number of layers.

        Args:
            name: of the machine.
            layers: of the model.
            energy_j: joule per token of one layer; None: not known.
            latency_s: second per token of one layer; None: not known.
            source: of the figures.
        """
        energy, latency = (None if value is None else layers * value for value in (energy_j, latency_s))
        return cls(name=name, attention_energy_j=energy, attention_latency_s=latency, source=source)

    @classmethod
    def estimated(cls, shape: ModelShape, tokens: int, parameters: CostParameters | None = None) -> DigitalBaseline:
        """The digital machine of `parameters` doing everything: every key and value from memory, for every sequence
        anew.

        Args:
            shape: of the model.
            tokens: keys that a query sees.
            parameters: unit numbers; None: the defaults.

        Raises:
            ValueError: `tokens` is below one.
        """
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise ValueError(f"tokens={tokens}: a query sees at least itself; give a whole number, 1 or more")
        p = parameters or CostParameters()
        rest_energy, rest_latency = digital_rest(shape, p)
        macs, stored_bytes = shape.attention_macs(tokens), shape.kv_values(tokens) * p.value_bytes
        return cls(
            name="digital machine",
            attention_energy_j=macs * p.mac_energy_j + stored_bytes * p.memory_energy_j_per_byte,
            attention_latency_s=p.batch * max(macs / p.mac_rate_per_s, stored_bytes / p.memory_rate_bytes_per_s),
            rest_energy_j=rest_energy.total,
            rest_latency_s=rest_latency.total,
            source="estimated from mac_energy_j, memory_energy_j_per_byte and the two rates",
        )


def published_baselines(shape: ModelShape, window: int) -> list[DigitalBaseline]:
    """The published GPU figures for attention, for a model of so many layers.

    They are per token of a batch of 64. The rest that :func:`model_cost` puts beside them is read once per
    `CostParameters.batch` tokens: 1 unless it is set, and 64 for the same batch.

    Args:
        shape: 12 heads of 64 features and no sliding windows, because that is what was published.
        window: keys that a query sees, 1024.

    Raises:
        ValueError: other sizes; published numbers are not scaled.
    """
    sizes = (shape.query_heads, shape.kv_heads, shape.head_size, window)
    if sizes != (HEADS, HEADS, HEAD_SIZE, WINDOW) or set(shape.held(window)) != {window}:
        raise ValueError(
            f"query_heads, kv_heads, head_size, window = {sizes}: the published figures are for"
            f" {(HEADS, HEADS, HEAD_SIZE, WINDOW)} without sliding windows, and how they grow with size was not"
            " published; measure with `python -m benchmarks`, or use DigitalBaseline.estimated"
        )
    return [
        DigitalBaseline.of_layer(
            f"{figure.name} (published)",
            layers=shape.n_on_arrays,
            energy_j=figure.energy_j,
            latency_s=figure.latency_s,
            source=f"{figure.source}; a step of {figure.batch} sequences ÷ {figure.batch}",
        )
        for figure in GPU_FIGURES
    ]


def digital_rest(shape: ModelShape, parameters: CostParameters | None = None) -> tuple[Breakdown, Breakdown]:
    """Energy (joule per token) and latency (second per step) of projections, MLPs and LM head.

    Energy: every weight takes one multiply-accumulate, and is read from memory once per `batch` tokens. Latency: the
        longer of multiplying
    and reading; a step serves `batch` tokens.

    Args:
        shape: of the model.
        parameters: unit numbers; None: the defaults.
    """
    p = parameters or CostParameters()
    macs = {PROJECTIONS: shape.projection_macs, MLP: shape.mlp_macs, LM_HEAD: shape.lm_head_macs}
    reading_j = p.value_bytes * p.memory_energy_j_per_byte / p.batch
    slowest_s = max(p.batch / p.mac_rate_per_s, p.value_bytes / p.memory_rate_bytes_per_s)
    energy = Breakdown({name: n * (p.mac_energy_j + reading_j) for name, n in macs.items()})
    return energy, Breakdown({name: n * slowest_s for name, n in macs.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """How many times less than a digital machine: attention alone, the whole model, and what the whole could reach at
    most."""

    baseline: DigitalBaseline
    attention_energy: float | None
    """Energy of its attention ÷ of ours; None: one is not known."""
    model_energy: float | None
    """(Attention + rest) ÷ (attention on arrays + rest)."""
    limit_energy: float | None
    """(Attention + rest) ÷ rest: attention at no cost."""
    attention_latency: float | None
    """As `attention_energy`, of latencies."""
    model_latency: float | None
    """As `model_energy`, of latencies."""
    limit_latency: float | None
    """As `limit_energy`, of latencies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCost:
    """A decoder with attention on arrays, per token."""

    attention: Cost
    rest_energy_j: Breakdown
    """Joule per token of what stays digital."""
    rest_latency_s: Breakdown
    """Second per step of what stays digital."""
    gains: list[Gain]
    """Against each baseline."""

    @property
    def energy_j(self) -> float:
        """Joule per token."""
        return self.attention.energy_j.total + self.rest_energy_j.total

    @property
    def latency_s(self) -> float:
        """Second per token of one sequence."""
        return self.attention.latency_s.total + self.rest_latency_s.total

    def __str__(self) -> str:
        parts = [("attention on arrays", self.attention.energy_j.total, self.attention.latency_s.total)]
        parts += [
            (f"{name}, digital", self.rest_energy_j[name], self.rest_latency_s[name]) for name in self.rest_energy_j
        ]
        parts.append(("total", self.energy_j, self.latency_s))
        rows = []
        for name, energy_j, latency_s in parts:
            shares = (f"{100 * energy_j / self.energy_j:.3g} %", f"{100 * latency_s / self.latency_s:.3g} %")
            rows.append((name, si(energy_j, "J"), shares[0], si(latency_s, "s"), shares[1]))
        text = table(("per token", "energy", "", "latency", ""), rows)
        if self.gains:
            text += "\n\n" + gains_table(self.gains)
        return text


def gains_table(gains: Sequence[Gain]) -> str:
    """Attention alone beside the whole model, and the bound, for energy and latency; `*` where the rest is an
    estimate."""
    rows = []
    for gain in gains:
        energy = (gain.attention_energy, gain.model_energy, gain.limit_energy)
        latency = (gain.attention_latency, gain.model_latency, gain.limit_latency)
        marks = [
            "" if rest is not None else "*" for rest in (gain.baseline.rest_energy_j, gain.baseline.rest_latency_s)
        ]
        written = [
            [times(value) + (mark if value else "") for value in values]
            for values, mark in ((energy, marks[0]), (latency, marks[1]))
        ]
        for values in written:
            values[0] = values[0].removesuffix("*")  # attention alone has no rest
        rows.append((gain.baseline.name, *written[0], *written[1]))
    text = table(
        ("gain over", "energy: attention", "whole model", "at most", "latency: attention", "whole model", "at most"),
        rows,
    )
    return text + (
        "\n* with an estimated, ideal digital rest; that machine's own takes more and leaves less to gain"
        if "*" in text
        else ""
    )


def model_cost(
    shape: ModelShape,
    hardware: Hardware,
    parameters: CostParameters | None = None,
    *,
    baselines: Sequence[DigitalBaseline] | None = None,
    window_fill: int | None = None,
) -> ModelCost:
    """What a token costs when attention is on arrays and everything else is digital.

    Args:
        shape: of the model.
        hardware: of the arrays.
        parameters: unit numbers of both; None: the defaults.
        baselines: machines to compare with; None: :meth:`DigitalBaseline.estimated` over as many tokens as the arrays
            hold.
        window_fill: as in :func:`attention_cost`.

    Raises:
        ConfigError, ValueError: as :func:`attention_cost`.
    """
    attention = attention_cost(shape, hardware, parameters, window_fill)
    energy, latency = digital_rest(shape, parameters)
    if baselines is None:
        baselines = [DigitalBaseline.estimated(shape, window_fill or hardware.array.window, parameters)]
    gains = [_gain(baseline, attention, energy.total, latency.total) for baseline in baselines]
    return ModelCost(attention=attention, rest_energy_j=energy, rest_latency_s=latency, gains=gains)


def _gain(baseline: DigitalBaseline, attention: Cost, rest_energy_j: float, rest_latency_s: float) -> Gain:
    energy = _gains(baseline.attention_energy_j, attention.energy_j.total, baseline.rest_energy_j or rest_energy_j)
    latency = _gains(baseline.attention_latency_s, attention.latency_s.total, baseline.rest_latency_s or rest_latency_s)
    return Gain(
        baseline=baseline,
        attention_energy=energy[0],
        model_energy=energy[1],
        limit_energy=energy[2],
        attention_latency=latency[0],
        model_latency=latency[1],
        limit_latency=latency[2],
    )


def _gains(digital: float | None, analog: float, rest: float) -> tuple[float | None, float | None, float | None]:
    """Attention alone, the whole, and the bound."""
    if digital is None:
        return None, None, None
    return digital / analog, (digital + rest) / (analog + rest), (digital + rest) / rest
