"""Terms of cells made fewer for the queries that are taken at a time, and the way back."""

from __future__ import annotations

import numba
import numpy as np

from aimc.ops.compiled.once import ANY, F1, F2, F3, INT, NOTHING, once
from aimc.ops.compiled.operands import LINE, PLACE
from aimc.ops.compiled.products import multiply

ZERO = np.float32(0.0)


@once(NOTHING, F2, F2, F2, fastmath=True)
def _fold(cells, fold, out):  # type: ignore[no-untyped-def]
    n_out, n_in = fold.shape
    size = (cells.shape[1] - out.shape[1]) // (n_in - n_out)
    for s in range(len(cells)):
        for k in range(n_out):
            into = out[s, k * size : (k + 1) * size]
            into[:] = ZERO
            for j in range(0, n_in - 1, 2):  # two in a pass over what is written: twice as fast
                first, second = fold[k, j], fold[k, j + 1]
                one, other = cells[s, j * size : (j + 1) * size], cells[s, (j + 1) * size : (j + 2) * size]
                for d in range(size):
                    into[d] += first * one[d] + second * other[d]
            if n_in % 2:
                first, last = fold[k, n_in - 1], cells[s, (n_in - 1) * size : n_in * size]
                for d in range(size):
                    into[d] += first * last[d]
        for d in range(out.shape[1] - n_out * size):
            out[s, n_out * size + d] = cells[s, n_in * size + d]


@numba.njit(cache=True)
def folded(cells, folds, at, line, room):  # type: ignore[no-untyped-def]
    """A sub-tile's cells `[R, n·D + e]` as the queries of a place meet them, `[R, K·D + e]`: themselves where there are
    no folds."""
    if not len(folds):
        return cells
    _fold(cells, folds[at.row // line.queries], room)
    return room


@once(NOTHING, ANY, F2, INT, INT, F2, fastmath=True)
def _unfold(room, fold, size, first, out):  # type: ignore[no-untyped-def]
    for s in range(len(out)):
        for j in range(out.shape[1] // size):
            for k in range(len(fold)):
                factor = fold[k, first // size + j]
                for d in range(size):
                    out[s, j * size + d] += factor * room[s, k * size + d]


@once(NOTHING, ANY, ANY, INT, F3, PLACE, LINE, F2, F1, F2)
def gather(left, right, first, folds, at, line, room, one, out):  # type: ignore[no-untyped-def]
    """Add the gradient `left·right` of the cells that a place meets, `[R, T']·[T', K·D]`, to that of the terms from the
    column `first` on, `[R, n'·D]`."""
    if not len(folds):
        multiply(left, right[:, first : first + out.shape[1]], one, out)
        return
    one[0] = 0.0
    multiply(left, right, one, room[:, : right.shape[1]])
    one[0] = 1.0
    _unfold(room, folds[at.row // line.queries], right.shape[1] // folds.shape[1], first, out)
