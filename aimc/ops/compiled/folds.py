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
            into, done = out[s, k * size : (k + 1) * size], 0
            if n_in >= 4:  # in one pass over what is written
                one, two, three, four = fold[k, 0], fold[k, 1], fold[k, 2], fold[k, 3]
                a, b, c, e = cells[s, :size], cells[s, size:], cells[s, 2 * size :], cells[s, 3 * size :]
                for d in range(size):
                    into[d] = one * a[d] + two * b[d] + three * c[d] + four * e[d]
                done = 4
            else:
                into[:] = ZERO
            for j in range(done, n_in):
                factor, of = fold[k, j], cells[s, j * size : (j + 1) * size]
                for d in range(size):
                    into[d] += factor * of[d]
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


@once(NOTHING, F2, F2, INT, INT, F2, fastmath=True)
def _unfold(room, fold, size, first, out):  # type: ignore[no-untyped-def]
    for s in range(len(out)):
        for j in range(out.shape[1] // size):
            into, at, done = out[s, j * size : (j + 1) * size], first // size + j, 0
            if len(fold) >= 3:  # in one pass over what is written
                one, two, three = fold[0, at], fold[1, at], fold[2, at]
                a, b, c = room[s, :size], room[s, size : 2 * size], room[s, 2 * size : 3 * size]
                for d in range(size):
                    into[d] += one * a[d] + two * b[d] + three * c[d]
                done = 3
            for k in range(done, len(fold)):
                factor, of = fold[k, at], room[s, k * size : (k + 1) * size]
                for d in range(size):
                    into[d] += factor * of[d]


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
