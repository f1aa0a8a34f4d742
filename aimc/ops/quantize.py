"""Converters: clip to a range, round to exactly the levels that the circuit has, straight-through in the backward pass."""

from __future__ import annotations

from torch import Tensor

from aimc.config import Converter


def quantize(x: Tensor, converter: Converter) -> Tensor:
    """Clip `x` to the converter's range and round it to the converter's levels.

    The forward value is exactly one of the levels, so counting distinct outputs counts levels. The gradient is straight-through:
    1 where `v_min <= x <= v_max`, 0 outside.

    Args:
        x: any shape, in the unit of `converter.v_min`.
        converter: range, number of levels (None: clip only) and coding.

    Returns:
        The shape and dtype of `x`. `unsigned` and `sign_magnitude` stay inside the range; `rounded` may leave it by half a step.
    """
    clipped = x.clamp(converter.v_min, converter.v_max)
    if converter.n_levels is None:
        return clipped
    if not clipped.requires_grad:
        return _to_level_(clipped, converter)
    # `clipped − clipped.detach()` is exactly zero, so the value stays a level to the last bit while the gradient passes.
    return _to_level_(clipped.detach().clone(), converter) + (clipped - clipped.detach())


def quantize_(x: Tensor, converter: Converter) -> Tensor:
    """:func:`quantize` in place and without a gradient."""
    return _to_level_(x.clamp_(converter.v_min, converter.v_max), converter)


def _to_level_(x: Tensor, converter: Converter) -> Tensor:
    """Replace `x`, which lies inside the converter's range, by the nearest level, in place; halves go to the even code."""
    n, v_min, v_max = converter.n_levels, converter.v_min, converter.v_max
    if n is None:
        return x
    if converter.coding == "rounded":
        steps = (n - 1) / (v_max - v_min)
        return x.mul_(steps).round_().div_(steps)
    if converter.coding == "sign_magnitude":
        steps = (n // 2 - 1) / v_max
        x.mul_(steps).round_().div_(steps)
    else:
        steps = (n - 1) / (v_max - v_min)
        x.sub_(v_min).mul_(steps).round_().div_(steps).add_(v_min)
    return x.clamp_(v_min, v_max)  # the outermost level can miss the range by one rounding error
