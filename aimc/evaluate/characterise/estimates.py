"""The same models with attention, or attention and states, on gain cells: by the cost model, on the machine's own
roofline.

Nothing here is measured but the machine's two rates, which the digital rest is given as an ideal: each weight read once
a token, nothing waiting. So three machines are comparable with each other, and all of them are faster than what runs:

- `digital`: keys and values from memory, states in an on-chip memory;
- `attention on gain cells`: arrays that hold as many tokens as there are, or `most_slots`;
- `attention and states on gain cells`: states as :mod:`aimc.circuit.cost.state` assumes, gated slots as
  :mod:`aimc.circuit.cost.slots` does with gates as pulses.

A prompt passes the arrays token by token, layer after layer, its weights once. Energies are the cost model's defaults,
at the bytes a value of the run's precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PretrainedConfig

from aimc.circuit.cost.attention import attention_cost, token_time_s
from aimc.circuit.cost.model import DigitalBaseline
from aimc.circuit.cost.parameters import CostParameters
from aimc.circuit.cost.shape import ModelShape
from aimc.circuit.cost.slots import slot_cost
from aimc.circuit.cost.state import StateShape, digital_state, state_cost
from aimc.evaluate.characterise.roofline import Roofline
from aimc.hardware import Hardware
from aimc.hardware.presets import with_softmax

DIGITAL, ARRAYS, STATES = MACHINES = (
    "digital",
    "attention on gain cells",
    "attention and states on gain cells",
)


_SLOTS = ("n_slots", "num_slots")
"""What configs of gated slot attention call their slots."""
_SLOT_MACS = 3
"""Multiply-accumulates a number in a digital slot: two of the update, one of the read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEstimate:
    """One model on one machine behind a prompt of one length, one sequence."""

    model: str
    machine: str
    """One of :data:`MACHINES`."""
    length: int
    token_s: float
    """Second per output token."""
    token_j: float
    """Joule per output token."""
    first_token_s: float
    """Second to the first token."""
    mixing_j: float
    """Joule of `token_j` that attention and states take; the rest are weights."""
    cells: int = 0
    """Gain cells of one sequence."""
    kept: float | None = None
    """Share of its charge that the oldest token in the arrays has kept, if a token takes only the arrays' own time in
    every layer, as published; None: no arrays, or nothing leaks."""
    kept_waiting: float | None = None
    """The same if a token takes `token_s`: cells leak while they wait for the digital rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What of a model an estimate needs."""

    name: str
    n_read_weights: int
    """Weights that a token reads."""
    attention: ModelShape | None = None
    state: StateShape | None = None
    slots: ModelShape | None = None
    """Of gated slots: heads that keep `n_slots` in place of all tokens."""
    n_slots: int = 0
    note: str = ""
    """Why a part is missing, where one is."""

    @classmethod
    def of(cls, name: str, config: PretrainedConfig, n_read_weights: int) -> Parts:
        """From a model's config."""
        attention, note = None, ""
        if n_slots := next((n for field in _SLOTS if (n := getattr(config, field, None))), 0):
            shape = ModelShape.from_config(config, mlp_matrices=2, mlp_width=1)
            return cls(name=name, n_read_weights=n_read_weights, slots=shape, n_slots=n_slots)
        try:
            attention = ModelShape.from_config(config, mlp_matrices=2, mlp_width=1)  # its MLP is in the weights
        except ValueError as error:
            has_heads = any(getattr(config, name, None) for name in ("num_attention_heads", "n_head"))
            note = str(error) if has_heads else "its config names no attention heads"
        state = StateShape.from_config(config)
        return cls(name=name, n_read_weights=n_read_weights, attention=attention, state=state, note=note)

    @property
    def layers(self) -> int:
        """Layers of the model, as far as they are known."""
        return max(part.layers for part in (self.attention, self.state, self.slots) if part is not None)


def estimates(
    parts: Parts,
    lengths: Sequence[int],
    hardware: Hardware,
    roofline: Roofline,
    *,
    value_bytes: int,
    most_slots: int | None = None,
) -> list[CostEstimate]:
    """Every machine that the model can be put on, at every length; none where nothing that mixes tokens is known.

    Args:
        parts: of the model.
        lengths: tokens of the prompt.
        hardware: of the arrays; its window and its time of a token are replaced.
        roofline: of the machine that does the rest.
        value_bytes: of a weight, key, value or state.
        most_slots: that an array has at most, and then forgets the oldest; None: as many as there are tokens.

    Raises:
        ConfigError: the hardware's converters have no level counts.
    """
    if parts.attention is None and parts.state is None and parts.slots is None:
        return []
    p = CostParameters(
        mac_rate_per_s=roofline.flops_per_s / 2,
        memory_rate_bytes_per_s=roofline.bytes_per_s,
        value_bytes=float(value_bytes),
    )
    hardware = replace(hardware, leakage=replace(hardware.leakage, token_time_s=None))
    found: list[CostEstimate] = []
    for length in lengths:
        if parts.slots is not None:
            found += _slots(parts, parts.slots, length, hardware, p)
            continue
        found.append(_digital(parts, length, p))
        if not _slides_by_sub_tiles(parts, hardware, min(length, most_slots or length)):
            continue
        if parts.attention is not None:
            found.append(_on_arrays(parts, length, hardware, p, most_slots, states=False))
        if parts.state is not None:
            found.append(_on_arrays(parts, length, hardware, p, most_slots, states=True))
    return found


def _slides_by_sub_tiles(parts: Parts, hardware: Hardware, n_tokens: int) -> bool:
    """Whether arrays of so many tokens can have as many slots as each layer's sliding window has."""
    windows, rows = None if parts.attention is None else parts.attention.windows, hardware.array.rows
    return all(window is None or n_tokens <= window or window % min(rows, window) == 0 for window in windows or [])


def _weights(parts: Parts, p: CostParameters, tokens: int) -> tuple[float, float]:
    """Joule and second of all products with weights for so many tokens at once."""
    n = parts.n_read_weights
    read = n * p.value_bytes
    energy = tokens * n * p.mac_energy_j + read * p.memory_energy_j_per_byte
    return energy, max(tokens * n / p.mac_rate_per_s, read / p.memory_rate_bytes_per_s)


def _digital(parts: Parts, length: int, p: CostParameters) -> CostEstimate:
    (rest_j, rest_s), (_, prompt_s) = _weights(parts, p, 1), _weights(parts, p, length)
    mixing_j = mixing_s = 0.0
    if parts.attention is not None:
        attention = DigitalBaseline.estimated(parts.attention, length, p)
        mixing_j += attention.attention_energy_j or 0.0
        mixing_s += attention.attention_latency_s or 0.0
        macs = sum(n * (n / 2 + length - n) * k for n, k in parts.attention.held(length).items())  # what a query sees
        prompt_s += 2 * parts.attention.query_heads * parts.attention.head_size * macs / p.mac_rate_per_s
    if parts.state is not None:
        state_j, state_s = digital_state(parts.state, p)
        mixing_j, mixing_s, prompt_s = mixing_j + state_j, mixing_s + state_s, prompt_s + length * state_s
    return CostEstimate(
        model=parts.name,
        machine=DIGITAL,
        length=length,
        token_s=rest_s + mixing_s,
        token_j=rest_j + mixing_j,
        first_token_s=prompt_s,
        mixing_j=mixing_j,
    )


def _slots(
    parts: Parts, shape: ModelShape, length: int, hardware: Hardware, p: CostParameters
) -> tuple[CostEstimate, CostEstimate]:
    """Gated slots in a digital machine and in cells; neither grows with the length."""
    (rest_j, rest_s), (_, prompt_s) = _weights(parts, p, 1), _weights(parts, p, length)
    n = parts.n_slots
    rows = hardware.array.rows if n % hardware.array.rows == 0 else n
    sized = with_softmax(replace(hardware, array=replace(hardware.array, window=n, rows=rows)))
    digital, cells = (slot_cost(shape, sized, gate=gate, parameters=p) for gate in ("digital", "pulse"))
    numbers = shape.kv_values(n)
    digital_s = _SLOT_MACS * numbers / p.mac_rate_per_s
    return (
        CostEstimate(
            model=parts.name,
            machine=DIGITAL,
            length=length,
            token_s=rest_s + digital_s,
            token_j=rest_j + digital.energy_j.total,
            first_token_s=prompt_s + length * digital_s,
            mixing_j=digital.energy_j.total,
        ),
        CostEstimate(
            model=parts.name,
            machine=STATES,
            length=length,
            token_s=rest_s + cells.latency_s.total,
            token_j=rest_j + cells.energy_j.total,
            first_token_s=prompt_s + shape.n_on_arrays * length * cells.interval_s,
            mixing_j=cells.energy_j.total,
            cells=numbers,
        ),
    )


def _on_arrays(
    parts: Parts, length: int, hardware: Hardware, p: CostParameters, most_slots: int | None, *, states: bool
) -> CostEstimate:
    (rest_j, rest_s), (_, prompt_s) = _weights(parts, p, 1), _weights(parts, p, length)
    mixing_j, mixing_s, cells, held = 0.0, 0.0, 0, 0
    if parts.attention is not None:
        rows = hardware.array.rows
        window = math.ceil(min(length, most_slots or length) / rows) * rows
        sized = replace(hardware, array=replace(hardware.array, window=window))
        held = min(length, window)
        cost = attention_cost(parts.attention, sized, p, held)
        mixing_j, mixing_s = cost.energy_j.total, cost.latency_s.total
        prompt_s += parts.attention.n_on_arrays * length * cost.interval_s
        cells = parts.attention.kv_values(window)
    if parts.state is not None:
        if states:
            state = state_cost(parts.state, hardware, p, layers=parts.layers)
            state_j, state_s = state.energy_j.total, state.latency_s
            cells += 2 * parts.state.values
        else:
            state_j, state_s = digital_state(parts.state, p)
        mixing_j, mixing_s, prompt_s = mixing_j + state_j, mixing_s + state_s, prompt_s + length * state_s
    tau_s, kept, kept_waiting = hardware.leakage.tau_s, None, None
    if tau_s is not None and parts.attention is not None:
        kept = math.exp(-held * token_time_s(parts.attention, hardware) / tau_s)
        kept_waiting = math.exp(-held * (rest_s + mixing_s) / tau_s)
    return CostEstimate(
        model=parts.name,
        machine=STATES if states else ARRAYS,
        length=length,
        token_s=rest_s + mixing_s,
        token_j=rest_j + mixing_j,
        first_token_s=prompt_s,
        mixing_j=mixing_j,
        cells=cells,
        kept=kept,
        kept_waiting=kept_waiting,
    )
