"""What one power of the decay multiplies, in one pass, and the way back."""

from __future__ import annotations

import numba
import numpy as np
from torch import Tensor

from aimc.ops.compiled.threads import in_parts

ONE = np.float32(1.0)


def put_term(
    u: Tensor, power: int, coefficient: Tensor | float, scale: Tensor | float, fall: Tensor | None, out: Tensor, at: int
) -> None:
    """`out = coefficient · u^power · scale · fall`.

    Args:
        u: float32 `[B, H, S, D]` on a CPU.
        power: of the decay, and of u.
        coefficient: `[H, S, D]` or a number.
        scale: `[H, S, 1 or D]` or a number.
        fall: `[S]`; None: one.
        out: `[B, H, S, N]`, contiguous, in whose columns `at` to `at + D` it is put.
    """
    _by_head(_put_term, 1.0, power, u, coefficient, scale, fall, out, at)


def add_term_gradient(
    of_terms: Tensor,
    at: int,
    u: Tensor,
    power: int,
    coefficient: Tensor | float,
    scale: Tensor | float,
    fall: Tensor | None,
    out: Tensor,
) -> None:
    """To the gradient of `u`, `[B, H, S, D]`, add that through one term: `power · coefficient · u^(power−1) · scale ·
    fall` times the gradient of the term.

    Args:
        of_terms: `[B·H, S, N]`, contiguous; its columns `at` to `at + D` are the term's.
        u, power, coefficient, scale, fall: as for :func:`put_term`.
        out: contiguous.
    """
    given = of_terms.view(*u.shape[:3], -1)
    _by_head(_add_gradient, float(power), power - 1, u, coefficient, scale, fall, given, at, out)


def _by_head(  # type: ignore[no-untyped-def]
    kernel,
    factor: float,
    power: int,
    u: Tensor,
    coefficient: Tensor | float,
    scale: Tensor | float,
    fall: Tensor | None,
    terms: Tensor,
    at: int,
    *out: Tensor,
) -> None:
    number, errors = _split(coefficient)
    scale_number, scales = _split(scale)
    factor_of_all = np.float32(np.float32(factor) * number * scale_number)
    falls = None if fall is None else fall.numpy()
    x, y, others = u.contiguous().numpy(), terms.numpy(), [of.numpy() for of in out]
    for batch in range(len(x)):

        def put(start: int, stop: int, batch: int = batch) -> None:
            of_heads = [None if table is None else table[start:stop] for table in (errors, scales)]
            into = [of[batch, start:stop] for of in (y, *others)]
            kernel(x[batch, start:stop], power, factor_of_all, *of_heads, falls, at, *into)

        in_parts(put, x.shape[1], x.shape[2] * x.shape[3])


def _split(x: Tensor | float) -> tuple[np.float32, np.ndarray | None]:
    return (ONE, x.contiguous().numpy()) if isinstance(x, Tensor) else (np.float32(x), None)


@numba.njit(inline="always")
def _times_term(u, power, errors, scales, head, s, into):  # type: ignore[no-untyped-def]
    """What is None is compiled away."""
    for _ in range(power):
        for d in range(len(into)):
            into[d] *= u[head, s, d]
    if errors is not None:
        for d in range(len(into)):
            into[d] *= errors[head, s, d]
    if scales is not None:
        if scales.shape[2] == 1:
            for d in range(len(into)):
                into[d] *= scales[head, s, 0]
        else:
            for d in range(len(into)):
                into[d] *= scales[head, s, d]


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _put_term(u, power, factor, errors, scales, falls, at, out):  # type: ignore[no-untyped-def]
    size = u.shape[2]
    for head in range(u.shape[0]):
        for s in range(u.shape[1]):
            into = out[head, s, at : at + size]
            into[:] = factor if falls is None else factor * falls[s]
            _times_term(u, power, errors, scales, head, s, into)


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _add_gradient(u, power, factor, errors, scales, falls, at, of_terms, out):  # type: ignore[no-untyped-def]
    size = u.shape[2]
    slope = np.empty(size, np.float32)
    for head in range(u.shape[0]):
        for s in range(u.shape[1]):
            slope[:] = factor if falls is None else factor * falls[s]
            _times_term(u, power, errors, scales, head, s, slope)
            of_term = of_terms[head, s, at : at + size]
            for d in range(size):
                out[head, s, d] += slope[d] * of_term[d]
