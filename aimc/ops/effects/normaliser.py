"""The normaliser column of the second array: a counter per sub-tile that reads how much pulse went in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from aimc.ops.effects.columns import with_columns
from aimc.ops.effects.converters import adc
from aimc.ops.effects.noise import with_noise

if TYPE_CHECKING:
    from aimc.ops.heads import Heads


def counted_pulse(heads: Heads, phi: Tensor, rows: Tensor, tile: Tensor) -> Tensor:
    """Σφ of one sub-tile as its counter reads it, in pulses of full length.

    Args:
        heads: sizes, hardware, chip and noise.
        phi: pulses into the sub-tile, `[B, H, T', S]`.
        rows: the queries that read it, `[T']`.
        tile: its number, `[1]`.

    Returns:
        `[B, H, T', 1]`.
    """
    normaliser = heads.hardware.normaliser
    counts = phi.sum(dim=-1, keepdim=True) / normaliser.full_scale
    counts = with_columns(counts, *heads.column_errors_of_sum(tile))
    noise = heads.read_noise_of_sum(rows, tile)
    counts = with_noise(counts, None if noise is None else noise[0])
    return adc(counts, normaliser.counter) * normaliser.full_scale


def reciprocal(pulse: Tensor, heads: Heads) -> Tensor:
    """By what digital logic multiplies: one over the sum of all sub-tiles, which is taken to be one step of a counter
    at least."""
    return pulse.clamp(min=heads.hardware.normaliser.least).reciprocal()
