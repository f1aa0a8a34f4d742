"""Normal numbers added to the rows of a tensor in one pass; the draws are those of :mod:`aimc.ops.effects.random`."""

from __future__ import annotations

import numba
import numpy as np
from torch import Tensor

from aimc.ops.compiled.rows import rows_of
from aimc.ops.compiled.threads import in_parts
from aimc.ops.effects import words

MIX_A, MIX_B, SPREAD = np.uint32(words.MIX_A), np.uint32(words.MIX_B), np.uint32(words.SPREAD)
HALF = words.HALF
LN_2, ROOT_2 = np.float32(np.log(2.0)), np.float32(np.sqrt(2.0))
TURN = np.float32(2.0 * np.pi * 2.0**-24)
ONE, HALF_OF, TWO, ZERO = np.float32(1.0), np.float32(0.5), np.float32(2.0), np.float32(0.0)
OF_LOG = tuple(np.float32(2.0 / n) for n in (9, 7, 5, 3, 1))
"""2·artanh(s)/s in powers of s², highest first; |s| < 0.172."""
OF_SINE = tuple(np.float32(x) for x in (1 / 362880, -1 / 5040, 1 / 120, -1 / 6, 1.0))
OF_COSINE = tuple(np.float32(x) for x in (1 / 40320, -1 / 720, 1 / 24, -1 / 2, 1.0))
"""In powers of the square of an angle of at most an eighth of a turn."""


def add_normal(x: Tensor, sigma: float, radial: Tensor, angular: Tensor, first: int) -> None:
    """See :meth:`aimc.ops.effects.random.Lanes.add_normal_`.

    Args:
        x: float32 `[…, S]` on a CPU; changed in place.
        sigma: standard deviation of what is added.
        radial, angular: states of the two lanes before the last coordinate, int64 `[…, 1]`.
        first: the last coordinate of the first column; the others follow it.
    """
    order = sorted(range(x.ndim - 1), key=x.stride, reverse=True)  # as they lie in memory
    x, radial, angular = (of.permute(*order, -1) for of in (x.detach(), radial, angular))
    rows = rows_of(x)
    if rows is None:
        apart = x.new_zeros(x.shape)
        add_normal(apart, sigma, radial, angular, first)
        x += apart
        return
    states = [state.reshape(-1).numpy().astype(np.uint32) for state in (radial, angular)]
    numbers, deviation = rows.numpy(), np.float32(sigma)

    def add(start: int, stop: int) -> None:
        _add_rows(numbers[start:stop], deviation, states[0][start:stop], states[1][start:stop], first)

    in_parts(add, len(numbers), x.shape[-1])


@numba.njit(inline="always")
def _mixed(x):  # type: ignore[no-untyped-def]
    x = np.uint32((x ^ (x >> np.uint32(16))) * MIX_A)
    x = np.uint32((x ^ (x >> np.uint32(15))) * MIX_B)
    return np.uint32(x ^ (x >> np.uint32(15)))


@numba.njit(inline="always")
def _polynomial(x, terms):  # type: ignore[no-untyped-def]
    return (((terms[0] * x + terms[1]) * x + terms[2]) * x + terms[3]) * x + terms[4]


@numba.njit(inline="always")
def _put_words(of_length, of_angle, word, length, turn, i):  # type: ignore[no-untyped-def]
    """The two uniform numbers of a pair, of 24 bits each."""
    length[i] = np.float32(np.int32(_mixed(np.uint32(of_length ^ word)) >> np.uint32(8)) + np.int32(1))
    turn[i] = np.int32(_mixed(np.uint32(of_angle ^ word)) >> np.uint32(8))


@numba.njit(inline="always")
def _radius(length, bits, i, sigma):  # type: ignore[no-untyped-def]
    """`sigma·√(−2·ln)` of a number of 24 bits over 2^24, whose bits are seen as an integer, too."""
    # The logarithm: of its exponent and of its mantissa, about one.
    exponent = np.int32(np.int32(bits[i] >> np.int32(23)) - np.int32(127 + 24))
    bits[i] = np.int32(np.int32(bits[i] & np.int32(0x7FFFFF)) | np.int32(0x3F800000))
    mantissa, power = length[i], np.float32(exponent)
    large = mantissa > ROOT_2
    mantissa = mantissa * HALF_OF if large else mantissa
    power = power + ONE if large else power
    s = (mantissa - ONE) / (mantissa + ONE)
    logarithm = power * LN_2 + s * _polynomial(s * s, OF_LOG)
    return sigma * np.sqrt(max(-TWO * logarithm, ZERO))


@numba.njit(inline="always")
def _waves(turn):  # type: ignore[no-untyped-def]
    """Cosine and sine of so many 2^-24 of a turn."""
    quarter = np.int32(np.int32(turn + np.int32(1 << 21)) >> np.int32(22))
    angle = np.float32(np.int32(turn - np.int32(quarter << np.int32(22)))) * TURN
    square = angle * angle
    sine, cosine = angle * _polynomial(square, OF_SINE), _polynomial(square, OF_COSINE)
    odd = (quarter & np.int32(1)) != 0
    across, along = (cosine, sine) if odd else (sine, cosine)
    along = -along if ((quarter + np.int32(1)) & np.int32(2)) != 0 else along
    across = -across if (quarter & np.int32(2)) != 0 else across
    return along, across


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _add_rows(x, sigma, radial, angular, first):  # type: ignore[no-untyped-def]
    """Row after row in short loops, each of which the compiler turns into vector instructions."""
    n_columns = x.shape[1]
    start, stop = first // (2 * HALF), -(-(first + n_columns) // (2 * HALF))
    n_pairs, skipped = (stop - start) * HALF, first - 2 * HALF * start
    spread = np.empty(n_pairs, np.uint32)
    for i in range(n_pairs):
        spread[i] = np.uint32(np.uint32(start * HALF + i) * SPREAD)
    length, turn = np.empty(n_pairs, np.float32), np.empty(n_pairs, np.int32)
    bits = length.view(np.int32)
    numbers = np.empty(2 * n_pairs, np.float32)
    for row in range(len(x)):
        of_length, of_angle = radial[row], angular[row]
        for i in range(n_pairs):
            _put_words(of_length, of_angle, spread[i], length, turn, i)
        for i in range(n_pairs):
            length[i] = _radius(length, bits, i, sigma)
        for group in range(stop - start):
            for j in range(HALF):
                i = group * HALF + j
                along, across = _waves(turn[i])
                numbers[2 * HALF * group + j] = length[i] * along
                numbers[2 * HALF * group + HALF + j] = length[i] * across
        for i in range(n_columns):
            x[row, i] += numbers[skipped + i]


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _add_column(x, sigma, radial, angular, column):  # type: ignore[no-untyped-def]
    """One column `[T']` alone."""
    word = np.uint32(np.uint32(column // (2 * HALF) * HALF + column % HALF) * SPREAD)
    is_sine = column // HALF % 2 == 1
    length, turn = np.empty(len(x), np.float32), np.empty(len(x), np.int32)
    bits = length.view(np.int32)
    for i in range(len(x)):
        _put_words(radial[i], angular[i], word, length, turn, i)
    for i in range(len(x)):
        length[i] = _radius(length, bits, i, sigma)
    for i in range(len(x)):
        along, across = _waves(turn[i])
        x[i] += length[i] * (across if is_sine else along)
