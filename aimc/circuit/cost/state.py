"""State-space layers on gain cells: the state stands in cells, and its decay is their leakage.

A state-space layer keeps h, and at every token does `h ← decay·h + B·x`, `y = C·h`: a product in place, where attention
writes one row and reads all. What is assumed, because nobody has published such an array:

- A number of the state is a pair of cells (signed, by difference); B·x is added as charge, a current set by B for a
  time set by x, so the whole array is written at every token, its lines once. With B and C common to all channels
  (Mamba, Mamba-2) the lines form a crossbar: one for each of the N states, one a channel.
- Decay. A cell leaks by itself with `Leakage.tau_s`, and nothing can decay slower than that: τ ÷ token time is the
  longest memory in tokens. Faster decay takes a third transistor that bleeds the cell, always on where the decay is
  fixed (H3), for a pulse as long as the token says where it is chosen (Mamba: Δ a channel; Mamba-2: one a head).
- A complex state (H3, StripedHyena) turns while it decays, which no leakage does. It is kept in a frame that turns with
  it: `g = e^(−iθt)·h` only decays, B·x is turned back before it is added and C forward before it is read. θ differs
  from cell to cell, so that every cell has lines, converters and table look-ups of its own. That is what it costs.
- The short convolution ahead of the state (Mamba's, H3's shift) and all gates stay digital, projections too.

| part | energy of a layer and token |
|---|---|
| state reads | 2·D·N·read_energy_av·(n_in·clock / read_pulse) |
| state updates | 2·D·N·update + lines·line |
| decay | 2·D·N·bleed + decays·n_in·dac_step, where a token chooses it |
| DACs | signals·n_in·dac_step; signals = D + 2·N, of a complex state 2·D·N |
| counters | D·n_out·counter_step |
| routing | (signals + D)·routing |
| phases | 2·D·N·(table + multiplication), of a complex state |
| short convolution | D·taps·mac |
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from aimc.circuit.cost.breakdown import Breakdown
from aimc.circuit.cost.converters import converter_steps, longest_pulses
from aimc.circuit.cost.layers import get
from aimc.circuit.cost.parameters import CostParameters
from aimc.circuit.cost.report import si, table
from aimc.hardware import Hardware
from aimc.hardware.checks import check_fields

READS, UPDATES, DECAY, STATE_DACS, STATE_COUNTERS, STATE_ROUTING, PHASES, TAPS = (
    "state reads",
    "state updates",
    "decay",
    "DACs",
    "counters",
    "routing and control",
    "phases",
    "short convolution, digital",
)
_CELLS_A_VALUE = 2
_COMPLEX = ("h3", "stripedhyena", "striped_hyena")


@dataclass(slots=True, kw_only=True)
class StateShape:
    """The sizes of a model's state-space layers that their cost depends on."""

    layers: int
    """State-space layers, one after another."""
    channels: int
    """D, channels of one layer."""
    state_size: int
    """N, real numbers that a channel holds; a complex one is two."""
    complex_state: bool = False
    """Whether the state turns as it decays."""
    decays: int = 0
    """Decays that a token chooses in one layer; 0: they are fixed."""
    taps: int = 0
    """Taps of the short convolution ahead of the state, a channel."""

    def __post_init__(self) -> None:
        check_fields(self)
        for f in fields(self):
            value, least = getattr(self, f.name), 0 if f.name in ("decays", "taps") else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise ValueError(f"{f.name}={value}: a layer has a whole number of them; give at least {least}")

    @property
    def values(self) -> int:
        """Real numbers of the state, all layers."""
        return self.layers * self.channels * self.state_size

    @classmethod
    def from_config(cls, config: Any) -> StateShape | None:
        """The shape of a Hugging Face model's state-space layers; None: it has none that are understood here.

        Args:
            config: of Mamba, Mamba-2 or a hybrid of them (Falcon-H1, Bamba, Zamba 2, Jamba), of H3 or StripedHyena.
        """
        kind, layers = get(config, "model_type"), _state_layers(config)
        hidden = get(config, "hidden_size") or get(config, "d_model")
        if not layers or not hidden:
            return None
        size = _first(config, "state_size", "mamba_d_state", "ssm_state_size", "d_state")
        taps = _first(config, "conv_kernel", "mamba_d_conv", "shift_state_size", "short_filter_length") or 0
        if size is None:
            return None
        if kind in _COMPLEX:
            gated = get(config, "gated") is not False  # without its gates, H3 has no shift either
            taps = taps or (size if kind == "h3" and gated else 0)
            size = size if kind == "h3" else 2 * size  # H3 counts numbers, StripedHyena complex modes
            return cls(layers=layers, channels=hidden, state_size=size, complex_state=True, taps=taps)
        heads = _first(config, "num_heads", "mamba_n_heads", "n_mamba_heads")
        head_size = _first(config, "head_dim", "mamba_d_head", "mamba_headdim")
        if kind not in ("mamba", "falcon_mamba", "jamba") and heads and isinstance(head_size, int):
            return cls(layers=layers, channels=heads * head_size, state_size=size, decays=heads, taps=taps)
        expand = _first(config, "expand", "mamba_expand") or 2
        channels = _first(config, "mamba_intermediate") or int(expand * hidden)
        return cls(layers=layers, channels=channels, state_size=size, decays=channels, taps=taps)


def _first(config: Any, *names: str) -> Any:
    return next((value for name in names if (value := get(config, name)) is not None), None)


def _state_layers(config: Any) -> int:
    """Layers with a state."""
    layers = _first(config, "num_hidden_layers", "n_layer", "num_layers") or 0
    if get(config, "model_type") == "falcon_h1":
        return layers  # each has both
    for name in ("layers_block_type", "layer_types"):
        words = get(config, name)
        if isinstance(words, (list, tuple)) and words:
            return sum(word in ("mamba", "mamba2", "hybrid", "linear_attention", "recurrent") for word in words)
    for name in ("attn_layer_idx", "attn_layers", "attn_layer_idxs", "attn_layer_indices", "attention_layers"):
        if isinstance(indices := get(config, name), (list, tuple)):
            return layers - len(set(indices))
    return layers


@dataclass(slots=True, kw_only=True)
class StateParameters:
    """Unit numbers that arrays of states need beside :class:`CostParameters`; all of them assumed."""

    update_energy_j: float = 0.81e-15
    """Energy of adding charge to one cell, joule: 1 fF·(0.9 V)², the cell without its lines."""
    line_energy_j: float = 16.2e-15
    """Energy of driving one line of a write, joule: 20 fF·(0.9 V)², as in `CostParameters.write_energy_j`."""
    bleed_energy_j: float = 0.08e-15
    """Energy of opening one cell's bleeding transistor for a pulse, joule: 0.1 fF·(0.9 V)²."""
    cell_area_factor: float = 1.5
    """Area of a cell with that transistor ÷ of one without."""

    def __post_init__(self) -> None:
        check_fields(self)
        for f in fields(self):
            if getattr(self, f.name) < 0:
                raise ValueError(f"{f.name}={getattr(self, f.name)!r}: nothing costs less than nothing; give 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateCost:
    """Energy and latency per token of all state-space layers, area of one sequence's arrays."""

    energy_j: Breakdown
    latency_s: float
    """Second per token, layers one after another."""
    area_m2: float
    memory_tokens: float | None
    """Tokens after which a cell that nothing bleeds has kept 1/e: no state can decay slower. None: nothing leaks."""
    shape: StateShape

    def __str__(self) -> str:
        total = self.energy_j.total
        rows = [(n, si(value, "J"), f"{100 * value / total:.1f} %") for n, value in self.energy_j.items() if value]
        text = table(("state-space layers, per token", "energy", ""), [*rows, ("total", si(total, "J"), "")])
        memory = "nothing leaks" if self.memory_tokens is None else f"{self.memory_tokens:,.0f} tokens"
        return f"{text}\nlatency {si(self.latency_s, 's')}, area {si(self.area_m2, 'm²')}, longest memory {memory}"


def state_cost(
    shape: StateShape,
    hardware: Hardware,
    parameters: CostParameters | None = None,
    state_parameters: StateParameters | None = None,
    *,
    layers: int | None = None,
) -> StateCost:
    """What state-space layers cost per token with their state in gain cells, as the top of this file assumes.

    Args:
        shape: of the layers.
        hardware: its input DAC makes all pulses, its read-out counts the outputs, its leakage bounds the memory.
        parameters: unit numbers; None: the defaults.
        state_parameters: those of states; None: the defaults.
        layers: of the whole model, for the time of a token; None: those of `shape`.

    Raises:
        ConfigError: a converter has no level count.
    """
    p, s = parameters or CostParameters(), state_parameters or StateParameters()
    steps, counts = converter_steps(hardware.input_dac, "input_dac"), converter_steps(hardware.readout, "readout")
    pulse_s, _ = longest_pulses(hardware, p)
    d, n = shape.channels, shape.state_size
    cells = _CELLS_A_VALUE * d * n
    signals = 2 * d * n if shape.complex_state else d + 2 * n
    chosen = shape.decays > 0
    energy = Breakdown(
        {
            READS: cells * p.read_energy_av_j * pulse_s / p.read_pulse_s,
            UPDATES: cells * s.update_energy_j + (d * n if shape.complex_state else d + n) * s.line_energy_j,
            DECAY: (cells * s.bleed_energy_j + shape.decays * steps * p.dac_energy_j_per_step) if chosen else 0.0,
            STATE_DACS: signals * steps * p.dac_energy_j_per_step,
            STATE_COUNTERS: d * counts * p.counter_energy_j_per_step,
            STATE_ROUTING: (signals + d) * p.routing_energy_j,
            PHASES: 2 * d * n * (p.table_energy_j + p.multiplication_energy_j) if shape.complex_state else 0.0,
            TAPS: d * shape.taps * p.mac_energy_j,
        }
    )
    latency_s = p.write_latency_s + pulse_s * (3 if chosen else 2) + p.settle_latency_s + counts * p.clock_s
    area_m2 = (
        cells * p.cell_area_m2 * s.cell_area_factor
        + (signals + shape.decays) * p.dac_area_m2
        + d * p.counter_area_m2
        + (signals + d) * p.routing_area_m2
    )
    leakage = hardware.leakage
    token_s = leakage.token_time_s or (layers or shape.layers) * leakage.step_latency_s
    return StateCost(
        energy_j=energy.scaled(shape.layers),
        latency_s=shape.layers * latency_s,
        area_m2=shape.layers * area_m2,
        memory_tokens=None if leakage.tau_s is None else leakage.tau_s / token_s,
        shape=shape,
    )


def digital_state(
    shape: StateShape, parameters: CostParameters | None = None, *, on_chip: bool = True
) -> tuple[float, float]:
    """Joule and second per token of the same layers on a digital machine, one sequence: four multiply-accumulates a
    number (decay, input, output, and the discretisation or the turning), and the state read and written.

    Args:
        shape: of the layers.
        parameters: unit numbers; None: the defaults.
        on_chip: whether the state stays in an SRAM; else it moves to memory and back at every token.
    """
    p = parameters or CostParameters()
    macs = 4 * shape.values + shape.layers * shape.channels * shape.taps
    moved = 2 * shape.values * p.value_bytes
    byte_j = p.sram_energy_j_per_byte if on_chip else p.memory_energy_j_per_byte
    moving_s = 0.0 if on_chip else moved / p.memory_rate_bytes_per_s
    return macs * p.mac_energy_j + moved * byte_j, max(macs / p.mac_rate_per_s, moving_s)
