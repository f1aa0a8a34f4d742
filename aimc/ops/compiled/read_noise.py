"""Read noise inside compiled reads: rows and columns of the draws of :mod:`aimc.ops.compiled.normal`."""

from __future__ import annotations

import numba
import numpy as np

from aimc.ops.compiled.normal import HALF, SPREAD, mixed, put_pairs, put_words, rows
from aimc.ops.compiled.once import F1, F2, FLOAT, INT, NOTHING, WORDS1, once

add_rows = once(NOTHING, F2, FLOAT, WORDS1, WORDS1, INT, fastmath=True)(rows)


@once(NOTHING, F1, FLOAT, WORDS1, WORDS1, INT, fastmath=True)
def add_column(x, sigma, radial, angular, column):  # type: ignore[no-untyped-def]
    """One column `[T']` alone."""
    word = np.uint32(np.uint32(column // (2 * HALF) * HALF + column % HALF) * SPREAD)
    length, turn = np.empty(len(x), np.float32), np.empty(len(x), np.int32)
    along, across = np.empty(len(x), np.float32), np.empty(len(x), np.float32)
    bits, along_bits, across_bits = length.view(np.int32), along.view(np.int32), across.view(np.int32)
    for i in range(len(x)):
        put_words(radial[i], angular[i], word, length, turn, i)
    put_pairs(sigma, length, bits, turn, along, along_bits, across, across_bits)
    is_sine = column // HALF % 2 == 1
    for i in range(len(x)):
        x[i] += length[i] * (across[i] if is_sine else along[i])


@numba.njit(cache=True)
def states_of(line, noise, at):  # type: ignore[no-untyped-def]
    """Of the two lanes, behind the number of the sub-tile in the second array."""
    word = np.uint32(np.uint32(at.token % line.window // line.rows) * SPREAD)
    states = noise.of_av[:, at.i, at.lo : at.hi].copy()
    for lane in range(2):
        for m in range(states.shape[1]):
            states[lane, m] = mixed(np.uint32(states[lane, m] ^ word))
    return states
