"""The normaliser column of the second array: a counter per sub-tile that reads how much pulse went in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from aimc.ops.effects.columns import with_columns
from aimc.ops.effects.converters import adc
from aimc.ops.effects.noise import with_noise

if TYPE_CHECKING:
    from aimc.ops.heads import Heads


def charge_of_sum(heads: Heads, pulse: Tensor, rows: Tensor, tiles: Tensor) -> Tensor:
    """What the normaliser columns' counters are given, in full scales, with column errors and read noise.

    Args:
        heads: sizes, hardware, chip and noise.
        pulse: Σφ of sub-tiles, in pulses of full length, `[B, H, T', J]`.
        rows: the queries that read them, `[T']`.
        tiles: their numbers, `[J]`.

    Returns:
        `[B, H, T', J]`.
    """
    charge = pulse / heads.hardware.normaliser.full_scale
    charge = with_columns(charge, *(None if x is None else x.mT for x in heads.column_errors_of_sum(tiles)))
    noise = heads.read_noise_of_sum(rows, tiles)  # [J, B, H, T', 1]
    return with_noise(charge, None if noise is None else noise[..., 0].movedim(0, -1))


def counted_pulse(heads: Heads, pulse: Tensor, rows: Tensor, tiles: Tensor, in_use: Tensor | None = None) -> Tensor:
    """Σφ as the counters read it, all sub-tiles together, `[B, H, T', 1]`; arguments as for :func:`charge_of_sum`, and
    which of the sub-tiles are read, bool `[J]`; None: all."""
    normaliser = heads.hardware.normaliser
    counts = adc(charge_of_sum(heads, pulse, rows, tiles), normaliser.counter)
    counts = counts if in_use is None else counts.masked_fill(~in_use, 0.0)
    return counts.sum(dim=-1, keepdim=True) * normaliser.full_scale


def reciprocal(pulse: Tensor, heads: Heads) -> Tensor:
    """By what digital logic multiplies: one over the sum of all sub-tiles, which is taken to be one step of a counter
    at least."""
    return pulse.clamp(min=heads.hardware.normaliser.least).reciprocal()
