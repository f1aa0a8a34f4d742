"""Both arrays read sub-tile by sub-tile: the equations of the design, for queries at any positions and whatever the
cells hold.

The eager operator gives it a whole text, the decoder what earlier tokens have left in the cells and a piece of new
text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from aimc.ops.effects.activation import Pulses, charge_to_pulse, digital_softmax
from aimc.ops.effects.array import Decay, Operands, charge_av, charge_qk
from aimc.ops.effects.protection import Memory, protected_tokens
from aimc.ops.effects.quantize import adc
from aimc.ops.heads import Heads


@dataclass(slots=True, kw_only=True)
class SubTile:
    """The tokens that pass through one sub-tile while the queries read it."""

    number: int
    """Its number; it is read from the token `number·R` on, which first writes to it."""
    tokens: Tensor
    """Positions in the text, `[S]`."""
    times: Tensor
    """When they were written, in token times, `[S]`; equal to `tokens` where no time passes between tokens."""
    keys: Operands
    """Per power of the decay, `[B, H, S, D]` or a number."""
    values: Operands
    """Likewise."""
    padding: Tensor | None = None
    """Bool `[B, S]`; None: no padding."""
    sink: Tensor | None = None
    """Which tokens are digital for ever, `[B, S]`; None: no protection."""


class Charges(NamedTuple):
    """The first array's part of a read, for the queries that read the sub-tile (the last T' of all)."""

    visible: Tensor
    """Which keys a query reads here, broadcastable to `fill`."""
    decay: Decay
    """Of what the second array stores."""
    fill: Tensor
    """S / S_sat with column errors and read noise, `[B, H, T', S]`."""


class Seen(NamedTuple):
    """What happened in one sub-tile, for the queries that read it (the last T' of all)."""

    tile: SubTile
    visible: Tensor
    """Which keys a query reads here, broadcastable to `fill`."""
    fill: Tensor
    """S / S_sat with column errors and read noise, `[B, H, T', S]`."""
    phi: Tensor
    """Pulses into the second array, `[B, H, T', S]`."""
    counts: Tensor
    """Counter values A, `[B, H, T', D]`."""


def read_arrays(
    heads: Heads,
    pulses: Tensor,
    start: int,
    times: Tensor,
    tiles: list[SubTile],
    *,
    score_gain: Tensor | None = None,
    memory: Memory | None = None,
    digital_pulses: Tensor | None = None,
) -> tuple[Tensor, list[Seen]]:
    """Queries read both arrays.

    Args:
        heads: sizes, hardware, chip and noise.
        pulses: quantised pulse widths `[B, H, T, D]`.
        start: position of the first query; the others follow it.
        times: when they read, in token times, `[T]`.
        tiles: what is in the sub-tiles.
        score_gain: `[H]`, for the softmax activation; None: one.
        memory: of the protected tokens; None: none is.
        digital_pulses: what reads the memory, `[B, H, T, D]`.

    Returns:
        Digital sum `[B, H, T, D]` in units of `array.saturation_av`, and what happened in each sub-tile.
    """
    hardware, array = heads.hardware, heads.hardware.array
    rows = torch.arange(start, start + pulses.shape[-2], device=pulses.device)
    # A sub-tile is not read before anything was written to it.
    firsts = [min(max(tile.number * array.rows - start, 0), len(rows)) for tile in tiles]
    scaled_pulses = pulses / array.saturation_qk
    charges = [
        _first_array(heads, scaled_pulses[..., i:, :], rows[i:], times[i:], tile)
        for i, tile in zip(firsts, tiles, strict=True)
    ]
    fills, visible = [c.fill for c in charges], [c.visible for c in charges]
    if memory is not None:
        assert digital_pulses is not None  # they come together
        fills.append(memory_fill(heads, digital_pulses, memory))
        visible.append(memory.visible(rows, hardware.protection))
    of_arrays, gain = activation(heads, fills, visible, score_gain, n_analog=len(tiles))
    out = torch.zeros_like(pulses)
    seen = []
    for first, tile, c, phi in zip(firsts, tiles, charges, of_arrays, strict=False):  # the memory's pulses come last
        counts = _second_array(heads, phi, rows[first:], tile, c.decay)
        out[..., first:, :] += counts
        seen.append(Seen(tile, c.visible, c.fill, phi, counts))
    if memory is not None:
        out = out + memory_sum(heads, of_arrays[-1], memory)
    return (out if gain is None else out * gain), seen


def activation(
    heads: Heads, fills: list[Tensor], visible: list[Tensor], score_gain: Tensor | None, n_analog: int
) -> Pulses:
    """The pulses that the hardware's activation makes of the charges; see :mod:`aimc.ops.effects.activation`."""
    if heads.hardware.activation == "hard_sigmoid":
        return charge_to_pulse(fills, visible)
    gain = 1.0 if score_gain is None else score_gain.to(heads.dtype)[:, None, None]
    return digital_softmax(fills, visible, gain, heads.hardware, n_analog)


def memory_fill(heads: Heads, digital_pulses: Tensor, memory: Memory) -> Tensor:
    """What stands for `S / S_sat` of the protected tokens, `[B, H, T, M]`."""
    return digital_pulses / heads.hardware.array.saturation_qk @ heads.for_query_heads(memory.keys, dim=1).mT


def memory_sum(heads: Heads, widths: Tensor, memory: Memory) -> Tensor:
    """What the protected tokens add to the digital sum, `[B, H, T, D]` in units of `array.saturation_av`, from `[B, H,
    T, M]`."""
    return widths @ heads.for_query_heads(memory.values, dim=1) / heads.hardware.array.saturation_av


def _first_array(heads: Heads, pulses: Tensor, rows: Tensor, times: Tensor, tile: SubTile) -> Charges:
    visible = heads.visible(rows, tile.tokens, tile.padding)
    if tile.sink is not None:
        visible = visible & ~protected_tokens(rows, tile.tokens, tile.sink, heads.hardware.protection)
    decay, decay_of_values = heads.decays(times, tile.times, tile.tokens)
    fill = charge_qk(pulses, tile.keys, decay)  # S / S_sat [B, H, T', S]
    fill = with_errors(fill, *heads.column_errors_qk(tile.tokens), heads.read_noise_qk(rows, tile.tokens))
    return Charges(visible, decay_of_values, fill)


def _second_array(heads: Heads, phi: Tensor, rows: Tensor, tile: SubTile, decay: Decay) -> Tensor:
    """Counter values of one sub-tile, A `[B, H, T', D]`."""
    number = tile.number
    counts = charge_av(phi, tile.values, decay) / heads.hardware.array.saturation_av
    columns = heads.column_errors_av(torch.tensor([number], device=phi.device))
    return adc(with_errors(counts, *columns, heads.read_noise_av(rows, number)), heads.hardware.readout)


def with_errors(x: Tensor, gain: Tensor | None, offset: Tensor | None, noise: Tensor | None) -> Tensor:
    """A column's readout: relative gain error, offset and read noise, in full scales."""
    x = x if gain is None else x * (1.0 + gain)
    x = x if offset is None else x + offset
    return x if noise is None else x + noise
