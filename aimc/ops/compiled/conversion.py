"""Through a scaler and a converter in one pass, and back in another, bit for bit what PyTorch makes in eight."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from aimc.ops.compiled.levels import counted
from aimc.ops.compiled.operands import counter_of
from aimc.ops.compiled.threads import in_parts

Scaler = tuple[Tensor, Tensor] | None
"""Scale and offset, `[H]`; None: one and zero."""
Levels = tuple[float, float, float, float, bool]
"""Range, levels per unit (0: none), where they count from, whether they stay inside the range."""


def convert(x: Tensor, scaler: Scaler, levels: Levels, less: float, over: Tensor | float) -> Tensor:
    """`(level(scale·x + offset) − less) / over`, `[B, H, T, D]`, contiguous.

    Args:
        x: float32 `[B, H, T, D]` on a CPU.
        scaler: in front of the converter.
        levels: of the converter.
        less: taken off behind it.
        over: a number, or one of each head, `[H, 1, 1]`.
    """
    n_batch, n_heads, n_tokens, size = x.shape
    out = torch.empty(n_batch * n_heads, n_tokens, size, dtype=x.dtype)
    divisors = torch.as_tensor(over, dtype=x.dtype).expand(n_heads, 1, 1).flatten().numpy()
    given = *_given(x, scaler), counter_of(*levels), np.float32(less), divisors, out.numpy()

    def make(start: int, stop: int) -> None:
        _convert(start, stop, *given)

    in_parts(make, len(out), n_tokens * size)
    return out.view(x.shape)


def back_through_converter(
    grad: Tensor, x: Tensor, scaler: Scaler, v_min: float, v_max: float
) -> tuple[Tensor, Tensor]:
    """From the gradient of :func:`convert` without `less` and `over` to those of `x` and, `[2, H]`, of its scaler,
    straight through inside the range; zeros where there is no scaler.

    Args:
        grad: float32 `[B, H, T, D]`.
        x: what was converted.
        scaler: in front of the converter.
        v_min, v_max: its range.
    """
    n_batch, n_heads, n_tokens, size = x.shape
    of_rows = grad.contiguous().view(n_batch * n_heads, n_tokens, size).numpy()
    out = torch.empty(n_batch, n_heads, n_tokens, size, dtype=x.dtype)
    of_scaler = torch.zeros(n_batch, n_heads, 2, dtype=torch.float64)
    into = out.view(of_rows.shape).numpy(), of_scaler.view(n_batch * n_heads, 2).numpy()
    given = of_rows, *_given(x, scaler), np.float32(v_min), np.float32(v_max), *into

    def gather(start: int, stop: int) -> None:
        _back(start, stop, *given)

    in_parts(gather, len(of_rows), n_tokens * size)
    found = of_scaler.sum(dim=0).T.to(x.dtype)
    return out, found if scaler is not None else torch.zeros_like(found)


def _given(x: Tensor, scaler: Scaler) -> Any:
    """All numbers from the first to the last, and how far sequences, heads and tokens are apart: rows whose numbers are
    known to be side by side are taken several at a time. Then the scaler: a copy, for memory that numpy has seen can no
    longer be resized, and FSDP resizes that of parameters."""
    x = x.detach()
    x = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
    extent = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    of_heads = scaler or (torch.ones(x.shape[1]), torch.zeros(x.shape[1]))
    numbers = x.as_strided((extent if x.numel() else 0,), (1,)).numpy()
    scale, offset = (of.detach().to(x.dtype, copy=True).contiguous().numpy() for of in of_heads)
    return numbers, x.stride()[:3], scale, offset


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _convert(start, stop, x, steps_to, scale, offset, counter, less, divisors, out):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        batch, head = i // len(scale), i % len(scale)
        a, b, divisor = scale[head], offset[head], divisors[head]
        for t in range(out.shape[1]):
            first = batch * steps_to[0] + head * steps_to[1] + t * steps_to[2]
            row, into = x[first : first + out.shape[2]], out[i, t]
            for d in range(len(into)):
                into[d] = (counted(a * row[d] + b, counter) - less) / divisor


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "nsz"})
def _back(start, stop, grad, x, steps_to, scale, offset, v_min, v_max, out, of_scaler):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        batch, head = i // len(scale), i % len(scale)
        a, b = scale[head], offset[head]
        for t in range(out.shape[1]):
            first = batch * steps_to[0] + head * steps_to[1] + t * steps_to[2]
            row, of_row, into = x[first : first + out.shape[2]], grad[i, t], out[i, t]
            of_scale, of_offset = np.float32(0.0), np.float32(0.0)
            for d in range(len(into)):
                at_converter = a * row[d] + b
                inside = at_converter >= v_min and at_converter <= v_max
                of_number = of_row[d] if inside else np.float32(0.0)
                of_scale += of_number * row[d]
                of_offset += of_number
                into[d] = of_number * a
            of_scaler[i, 0] += of_scale
            of_scaler[i, 1] += of_offset
