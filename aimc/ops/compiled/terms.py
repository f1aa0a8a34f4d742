"""What the powers of the decay multiply, and the way back, all powers in one pass over the cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from aimc.ops.compiled.threads import in_parts

ONE = np.float32(1.0)
TABLES = 4
"""Coefficients are made as many or a multiple: for each number of them everything is compiled once more."""
Factors = Sequence[Tensor | float]


def put_terms(
    u: Tensor, powers: Sequence[int], coefficients: Factors, scale: Tensor | float, falls: Tensor, out: Tensor
) -> None:
    """`out = coefficient · u^power · scale · fall`, one power after another.

    Args:
        u: float32 `[B, H, S, D]` on a CPU.
        powers: of the decay, and of u; n of them, rising.
        coefficients: of each, `[H, S, D]` or a number.
        scale: `[H, S, 1 or D]` or a number.
        falls: of each, `[n, S]`.
        out: `[B, H, S, N]`, contiguous, into whose first n·D columns they are put.
    """
    given = _given(u, powers, coefficients, scale, falls)
    cells, into = _cells(u), _cells(out)
    in_parts(lambda start, stop: _put_terms(start, stop, cells, into, *given), len(cells), cells[0].size)


def term_gradient(
    of_terms: Tensor,
    columns: Sequence[int],
    u: Tensor,
    powers: Sequence[int],
    coefficients: Factors,
    scale: Tensor | float,
    falls: Tensor,
) -> Tensor:
    """The gradient of `u`, `[B, H, S, D]`: the sum of `power · coefficient · u^(power−1) · scale · fall` times the
    gradient of each term.

    Args:
        of_terms: `[B·H, S, N]`, contiguous.
        columns: of it, where each term begins.
        u, powers, coefficients, scale, falls: as for :func:`put_terms`; no power is zero.
    """
    given = _given(u, [power - 1 for power in powers], coefficients, scale, falls * torch.tensor(powers)[:, None])
    out = torch.empty(u.shape, dtype=u.dtype)
    cells, into, terms, at = _cells(u), _cells(out), of_terms.numpy(), np.array(columns)

    def gather(start: int, stop: int) -> None:
        _term_gradient(start, stop, terms, at, cells, into, *given)

    in_parts(gather, len(cells), cells[0].size)
    return out


def _given(u: Tensor, powers: Sequence[int], coefficients: Factors, scale: Tensor | float, falls: Tensor) -> Any:
    behind = [1.0] * (-len(coefficients) % TABLES)
    tables = tuple(_table(coefficient) for coefficient in (*coefficients, *behind))
    return u.shape[1], np.array(powers), tables, _table(scale), falls.to(u.dtype).contiguous().numpy()


def _table(x: Tensor | float) -> np.ndarray:
    return x.contiguous().numpy() if isinstance(x, Tensor) else np.full((1, 1, 1), x, np.float32)


def _cells(x: Tensor) -> np.ndarray:
    return x.contiguous().flatten(0, 1).numpy()


@numba.njit(inline="always")
def _times(into, table, head, s):  # type: ignore[no-untyped-def]
    """Each cell's own, or one number of a slot."""
    if table.shape[2] > 1:
        for d in range(len(into)):
            into[d] *= table[head, s, d]


@numba.njit(inline="always")
def _number(table, head, s):  # type: ignore[no-untyped-def]
    return table[head if len(table) > 1 else 0, s if table.shape[1] > 1 else 0, 0] if table.shape[2] == 1 else ONE


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _put_terms(start, stop, u, out, n_heads, powers, tables, scale, falls):  # type: ignore[no-untyped-def]
    size = u.shape[2]
    power = np.empty(size, np.float32)
    for i in range(start, stop):
        head = i % n_heads
        for s in range(u.shape[1]):
            power[:] = _number(scale, head, s)
            _times(power, scale, head, s)
            done, x = 0, u[i, s]
            for k in range(len(powers)):
                for _ in range(powers[k] - done):
                    for d in range(size):
                        power[d] *= x[d]
                done = powers[k]
                into, factor = out[i, s, k * size : (k + 1) * size], falls[k, s] * _number(tables[k], head, s)
                for d in range(size):
                    into[d] = factor * power[d]
                _times(into, tables[k], head, s)


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _term_gradient(start, stop, of_terms, columns, u, out, n_heads, powers, tables, scale, falls):  # type: ignore[no-untyped-def]
    size = u.shape[2]
    power, slope = np.empty(size, np.float32), np.empty(size, np.float32)
    for i in range(start, stop):
        head = i % n_heads
        for s in range(u.shape[1]):
            power[:] = _number(scale, head, s)
            _times(power, scale, head, s)
            done, x, into = 0, u[i, s], out[i, s]
            into[:] = np.float32(0.0)
            for k in range(len(powers)):
                for _ in range(powers[k] - done):
                    for d in range(size):
                        power[d] *= x[d]
                done = powers[k]
                of_term = of_terms[i, s, columns[k] : columns[k] + size]
                factor = falls[k, s] * _number(tables[k], head, s)
                for d in range(size):
                    slope[d] = factor * power[d]
                _times(slope, tables[k], head, s)
                for d in range(size):
                    into[d] += slope[d] * of_term[d]
