"""Converters: clip to a range, round to exactly the levels that the circuit has, straight-through in the backward pass.

:func:`quantize` is the arithmetic of an ideal one; :func:`dac` and :func:`adc` are circuits, which may have an integral
nonlinearity (`Converter.inl`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aimc.hardware import Converter, Hardware
from aimc.ops import compiled
from aimc.ops.effects.levels import from_equal_charge, storage_slope, to_equal_charge, to_listed


def quantize(x: Tensor, converter: Converter) -> Tensor:
    """Clip `x` to the converter's range and round it to the converter's levels, which lie on a straight line, or where
    they are listed.

    The forward value is exactly one of the levels, so counting distinct outputs counts levels. The gradient is
    straight-through: 1 where `v_min <= x <= v_max`, 0 outside.

    Args:
        x: any shape, in the unit of `converter.v_min`.
        converter: range, number of levels (None: clip only) and coding.

    Returns:
        The shape and dtype of `x`. `unsigned` and `sign_magnitude` stay inside the range; `rounded` may leave it by
        half a step.
    """
    clipped = x.clamp(converter.v_min, converter.v_max)
    if converter.n_levels is None:
        return clipped
    if not clipped.requires_grad:
        return _to_level_(clipped, converter)
    # `clipped − clipped.detach()` is exactly zero, so the value stays a level to the last bit while the gradient
    # passes.
    return _to_level_(clipped.detach().clone(), converter) + (clipped - clipped.detach())


def dac(x: Tensor, converter: Converter) -> Tensor:
    """Number to voltage or pulse: :func:`quantize`, with the levels displaced by the integral nonlinearity.

    `level + inl·(v_max − v_min)·4z(1−z)`, z the level's position in the range. The gradient is that of
    :func:`quantize`: the displacement, at most `4·inl` of a slope of 1, is
    left out of it as the rounding is.
    """
    level = quantize(x, converter)
    return level + _inl_displacement(level.detach(), converter) if converter.inl else level


def storage_dac(x: Tensor, hardware: Hardware, *, straight: bool = False) -> Tensor:
    """Number to stored voltage: :func:`dac`, whose levels may lie at equal charge of the cell.

    The gradient is straight-through about the curve of the levels: with equal charge the voltage's slope, so that what
    comes out of the cell has the same slope everywhere.

    Args:
        x: any shape, in volt.
        hardware: its `storage_dac` and `cell`.
        straight: without the integral nonlinearity.
    """
    converter = hardware.storage_dac
    if converter.spacing != "equal_charge":
        return quantize(x, converter) if straight else dac(x, converter)
    clipped = x.clamp(converter.v_min, converter.v_max)
    level = to_equal_charge(_to_level_(clipped.detach().clone(), converter), converter, hardware.cell)
    slope = storage_slope(level, converter, hardware.cell) if clipped.requires_grad else None
    if converter.inl and not straight:
        level = level + _inl_displacement(level, converter)
    return level if slope is None else level + slope * (clipped - clipped.detach())


def storage_levels(hardware: Hardware, like: Tensor) -> Tensor | None:
    """All voltages that :func:`storage_dac` writes, rising, `[n]`, in the dtype and on the device of `like`; None: it
    has no levels."""
    numbers = level_numbers(hardware.storage_dac)
    if numbers is None:
        return None
    return storage_dac(torch.tensor(numbers, dtype=like.dtype, device=like.device), hardware)


def level_numbers(converter: Converter) -> list[float] | None:
    """Numbers that a converter of unsigned or `rounded` coding takes to its levels, one by one, rising; None: it has
    none. The outermost of `rounded` coding may be clipped to the same level as their neighbours."""
    n, v_min, v_max = converter.n_levels, converter.v_min, converter.v_max
    if n is None or converter.positions is not None:
        return converter.positions
    step = (v_max - v_min) / (n - 1)
    if converter.coding == "rounded":
        return [i * step for i in range(math.floor(v_min / step), math.ceil(v_max / step) + 1)]
    return [v_min + i * step for i in range(n)]


def adc(x: Tensor, converter: Converter) -> Tensor:
    """Charge to number: the integral nonlinearity bends what is measured, then :func:`quantize`; so thresholds are
    displaced, codes are not.

    The gradient is that of :func:`quantize`, 1 inside the range, without the displacement.
    """
    if not converter.inl:
        return quantize(x, converter)
    clipped = x.clamp(converter.v_min, converter.v_max)
    return _to_level_(clipped.detach() + _inl_displacement(clipped.detach(), converter), converter) + (
        clipped - clipped.detach()
    )


def even_levels(converter: Converter) -> tuple[float, float, float, float, bool] | None:
    """Range, levels per unit (0: no levels), where they count from, and whether they stay inside the range; None: they
    are not evenly apart."""
    n, v_min, v_max = converter.n_levels, converter.v_min, converter.v_max
    if converter.inl or converter.spacing != "uniform":
        return None
    steps, zero = (0.0, 0.0) if n is None else _scale(converter, n)
    return v_min, v_max, steps, zero, converter.coding != "rounded"


def adc_(x: Tensor, converter: Converter) -> Tensor:
    """:func:`adc` in place and without a gradient."""
    if not converter.inl:
        return _clip_to_level_(x, converter)
    x.clamp_(converter.v_min, converter.v_max)
    return _to_level_(x.add_(_inl_displacement(x, converter)), converter)


def dac_(x: Tensor, converter: Converter) -> Tensor:
    """:func:`dac` in place and without a gradient."""
    level = _clip_to_level_(x, converter)
    return level.add_(_inl_displacement(level, converter)) if converter.inl else level


def before_storage_dac(x: Tensor, hardware: Hardware) -> Tensor:
    """What the storage DAC must have been given to write the voltage `x` (clipped to its range): the inverse of its
    characteristic without levels."""
    converter, cell = hardware.storage_dac, hardware.cell
    straight = before_dac(x, converter) if converter.inl else x
    if converter.spacing != "equal_charge":
        return straight
    return from_equal_charge(straight.clamp(converter.v_min, converter.v_max), converter, cell)


def before_dac(x: Tensor, converter: Converter) -> Tensor:
    """What a bent DAC must have been given to put out `x` (clipped to its range): the inverse of its nonlinearity."""
    i, span = converter.inl, converter.v_max - converter.v_min
    y = (x.clamp(converter.v_min, converter.v_max) - converter.v_min) / span
    z = (
        2.0 * y / (1.0 + 4.0 * i + torch.sqrt((1.0 + 4.0 * i) ** 2 - 16.0 * i * y))
    )  # the root of z + 4i·z(1−z) = y in [0, 1]
    return converter.v_min + span * z


def inl_curvature(converter: Converter) -> float:
    """κ in the displacement `κ·(x − v_min)·(v_max − x)` that is `inl·(v_max − v_min)` in the middle of the range."""
    return 4.0 * converter.inl / (converter.v_max - converter.v_min)


def _inl_displacement(x: Tensor, converter: Converter) -> Tensor:
    """By how much the integral nonlinearity displaces what lies at `x`."""
    return inl_curvature(converter) * (x - converter.v_min) * (converter.v_max - x)


def _to_level_(x: Tensor, converter: Converter) -> Tensor:
    """Replace `x`, which lies inside the converter's range, by the nearest level of even or listed spacing, in place;
    halves go to the even code."""
    n, v_min, v_max = converter.n_levels, converter.v_min, converter.v_max
    if n is None:
        return x
    if converter.spacing == "listed":
        return x.copy_(to_listed(x, converter))
    steps, zero = _scale(converter, n)
    if zero:
        x.sub_(zero)
    x.mul_(steps).round_().div_(steps)
    if zero:
        x.add_(zero)
    if converter.coding == "rounded":
        return x
    return x.clamp_(v_min, v_max)  # the outermost level can miss the range by one rounding error


def _clip_to_level_(x: Tensor, converter: Converter) -> Tensor:
    """The nearest level of any number, in place."""
    n, v_min, v_max = converter.n_levels, converter.v_min, converter.v_max
    kernels = compiled.kernels_for(x)
    even = converter.spacing != "listed" and converter.coding != "rounded"
    if kernels is not None and n is not None and even and kernels.to_levels(x, v_min, v_max, *_scale(converter, n)):
        return x
    return _to_level_(x.clamp_(v_min, v_max), converter)


def _scale(converter: Converter, n_levels: int) -> tuple[float, float]:
    """Levels per unit, and where they count from."""
    v_min, v_max = converter.v_min, converter.v_max
    if converter.coding == "sign_magnitude":
        return (n_levels // 2 - 1) / v_max, 0.0
    return (n_levels - 1) / (v_max - v_min), v_min if converter.coding == "unsigned" else 0.0
