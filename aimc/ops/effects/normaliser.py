"""The normaliser column of the second array: a counter per sub-tile that reads how much pulse went in."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from torch import Tensor

from aimc.hardware import Normaliser
from aimc.ops.effects.columns import with_columns
from aimc.ops.effects.converters import adc
from aimc.ops.effects.noise import with_noise

if TYPE_CHECKING:
    from aimc.ops.heads import Heads


def charge_of_sum(heads: Heads, pulse: Tensor, full_scale: Tensor | float, rows: Tensor, tiles: Tensor) -> Tensor:
    """What the normaliser columns' counters are given, in full scales, with column errors and read noise.

    Args:
        heads: sizes, hardware, chip and noise.
        pulse: Σφ of sub-tiles, in pulses of full length, `[B, H, T', J]`.
        full_scale: of the counters, likewise, a number or `[H, 1, 1]`.
        rows: the queries that read them, `[T']`.
        tiles: their numbers, `[J]`.

    Returns:
        `[B, H, T', J]`.
    """
    charge = pulse / full_scale
    charge = with_columns(charge, *(None if x is None else x.mT for x in heads.column_errors_of_sum(tiles)))
    noise = heads.read_noise_of_sum(rows, tiles)  # [J, B, H, T', 1]
    return with_noise(charge, None if noise is None else noise[..., 0].movedim(0, -1))


def counted_pulse(
    heads: Heads,
    pulse: Tensor,
    full_scale: Tensor | float,
    rows: Tensor,
    tiles: Tensor,
    in_use: Tensor | None = None,
) -> Tensor:
    """Σφ as the counters read it, all sub-tiles together, `[B, H, T', 1]`; arguments as for :func:`charge_of_sum`, and
    which of the sub-tiles are read, bool `[J]`; None: all."""
    counts = adc(charge_of_sum(heads, pulse, full_scale, rows, tiles), heads.hardware.normaliser.counter)
    counts = counts if in_use is None else counts.masked_fill(~in_use, 0.0)
    return counts.sum(dim=-1, keepdim=True) * full_scale


def reciprocal(heads: Heads, pulse: Tensor, full_scale: Tensor | float) -> Tensor:
    """By what digital logic multiplies: one over the sum of all sub-tiles, or over :func:`least_divisor`."""
    return pulse.clamp(min=least_divisor(heads.hardware.normaliser, full_scale)).reciprocal()


@overload
def least_divisor(normaliser: Normaliser, full_scale: float) -> float: ...


@overload
def least_divisor(normaliser: Normaliser, full_scale: Tensor) -> Tensor: ...


def least_divisor(normaliser: Normaliser, full_scale: Tensor | float) -> Tensor | float:
    """What a sum of pulses is taken to be at least: one step of its counter, or `normaliser.least` where that is more;
    in pulses, as the full scale."""
    step = normaliser.least_share * full_scale
    return step.clamp(min=normaliser.least) if isinstance(step, Tensor) else max(step, normaliser.least)
