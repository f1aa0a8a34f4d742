"""From the model's numbers to what a converter puts out, without a gradient, and the way back by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from aimc.hardware import Converter
from aimc.ops import compiled
from aimc.ops.effects.converters import dac, even_levels
from aimc.ops.scaling import Affine, scaled


def converted(
    x: Tensor, affine: Affine | None, converter: Converter, *, less: float = 0.0, over: Tensor | float | None = None
) -> Tensor:
    """`(dac(scaled(x)) − less) / over`, `[B, H, T, D]`, in float32 (float64 for float64).

    Args:
        x: what the model has, `[B, H, T, D]`, any floating dtype.
        affine: its scaler; None: none.
        converter: behind it; its levels are evenly spaced or listed.
        less: taken off what it puts out, in its unit.
        over: what that is divided by, a number or `[H, 1, 1]`; None: by nothing.
    """
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    levels, kernels = even_levels(converter), compiled.kernels_for(x)
    if levels is not None and kernels is not None:
        return kernels.convert(x, affine, levels, less, 1.0 if over is None else over)
    out = dac(scaled(x, affine), converter)
    out = out.sub_(less) if less else out
    return out if over is None else out.div_(over)


def converter_gradient(grad: Tensor, x: Tensor, affine: Affine | None, converter: Converter) -> tuple[Tensor, Tensor]:
    """From the gradient of `dac(scaled(x, affine), converter)` to those of `x` and of the scaler, by hand.

    Args:
        grad: `[B, H, T, D]`.
        x: what was scaled, `[B, H, T, D]`, any floating dtype.
        affine: its scaler; None: none.
        converter: the converter behind it, straight-through inside its range, bent or not.

    Returns:
        The gradient of `x` in the dtype of `grad`, and `[2, H]`: gradients of scale and offset (zeros without a
            scaler).
    """
    kernels = compiled.kernels_for(grad)
    if kernels is not None:
        return kernels.back_through_converter(grad, x.to(grad.dtype), affine, converter.v_min, converter.v_max)
    at_converter = scaled(x, affine)
    grad = grad.masked_fill((at_converter < converter.v_min) | (at_converter > converter.v_max), 0.0)
    return scaler_gradient(grad, x, affine)


def scaler_gradient(grad: Tensor, x: Tensor, affine: Affine | None) -> tuple[Tensor, Tensor]:
    """From the gradient of `scaled(x, affine)`, which is overwritten, to those of `x` and of the scaler, as
    :func:`converter_gradient`."""
    if affine is None:
        return grad, grad.new_zeros(2, x.shape[1])
    of_scaler = torch.stack([(grad * x).sum(dim=(0, 2, 3)), grad.sum(dim=(0, 2, 3))])
    return grad.mul_(affine.scale.to(grad.dtype)[:, None, None]), of_scaler
