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
LN_2, TURN = np.float32(np.log(2.0)), np.float32(2.0 * np.pi * 2.0**-24)
ONE, HALF_OF, TWO, ZERO = np.float32(1.0), np.float32(0.5), np.float32(2.0), np.float32(0.0)
ROOT_HALF_BITS = np.int32(0x3F3504F3)
"""Those of √½, where mantissas begin for the logarithm."""
OF_LOG = tuple(
    np.float32(x)
    for x in (
        *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
        *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
    )
)
"""`(ln(1 + x) − x + x²/2) / x³` from √½ to √2, highest power first: no division (S. L. Moshier, Cephes, logf)."""
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
def mixed(x):  # type: ignore[no-untyped-def]
    x = np.uint32((x ^ (x >> np.uint32(16))) * MIX_A)
    x = np.uint32((x ^ (x >> np.uint32(15))) * MIX_B)
    return np.uint32(x ^ (x >> np.uint32(15)))


@numba.njit(inline="always")
def _polynomial(x, terms):  # type: ignore[no-untyped-def]
    return (((terms[0] * x + terms[1]) * x + terms[2]) * x + terms[3]) * x + terms[4]


@numba.njit(inline="always")
def put_words(of_length, of_angle, word, length, turn, i):  # type: ignore[no-untyped-def]
    """The two uniform numbers of a pair, of 24 bits each."""
    length[i] = np.float32(np.int32(mixed(np.uint32(of_length ^ word)) >> np.uint32(8)) + np.int32(1))
    turn[i] = np.int32(mixed(np.uint32(of_angle ^ word)) >> np.uint32(8))


@numba.njit(inline="always")
def _radius(length, bits, i, sigma):  # type: ignore[no-untyped-def]
    """`sigma·√(−2·ln)` of a number of 24 bits over 2^24, whose bits are seen as an integer, too."""
    exponent = np.int32(np.int32(bits[i] - ROOT_HALF_BITS) >> np.int32(23))
    bits[i] = np.int32(bits[i] - np.int32(exponent << np.int32(23)))
    x = length[i] - ONE
    terms = _polynomial(x, OF_LOG[:5])
    terms = (((terms * x + OF_LOG[5]) * x + OF_LOG[6]) * x + OF_LOG[7]) * x + OF_LOG[8]
    logarithm = x + x * x * (terms * x - HALF_OF) + np.float32(exponent - np.int32(24)) * LN_2
    return sigma * np.sqrt(max(-TWO * logarithm, ZERO))


@numba.njit(inline="always")
def _put_waves(turn, along, across, along_bits, across_bits, i):  # type: ignore[no-untyped-def]
    """Cosine and sine of so many 2^-24 of a turn; their signs are put into their bits."""
    quarter = np.int32(np.int32(turn[i] + np.int32(1 << 21)) >> np.int32(22))
    angle = np.float32(np.int32(turn[i] - np.int32(quarter << np.int32(22)))) * TURN
    square = angle * angle
    sine, cosine = angle * _polynomial(square, OF_SINE), _polynomial(square, OF_COSINE)
    odd = (quarter & np.int32(1)) != 0
    along[i] = sine if odd else cosine
    across[i] = cosine if odd else sine
    along_bits[i] ^= np.int32(np.int32(np.int32(quarter + np.int32(1)) & np.int32(2)) << np.int32(30))
    across_bits[i] ^= np.int32(np.int32(quarter & np.int32(2)) << np.int32(30))


@numba.njit(inline="always")
def put_pairs(sigma, length, bits, turn, along, along_bits, across, across_bits):  # type: ignore[no-untyped-def]
    """`sigma` times the two normal numbers of each pair of uniform ones, in short loops, each of which the compiler
    turns into vector instructions; all arrays are seen as integers, too."""
    for i in range(len(length)):
        length[i] = _radius(length, bits, i, sigma)
    for i in range(len(length)):
        _put_waves(turn, along, across, along_bits, across_bits, i)


def rows(x, sigma, radial, angular, first):  # type: ignore[no-untyped-def]
    n_columns = x.shape[1]
    start, stop = first // (2 * HALF), -(-(first + n_columns) // (2 * HALF))
    n_pairs, skipped = (stop - start) * HALF, first - 2 * HALF * start
    words = np.empty(n_pairs, np.uint32)
    for i in range(n_pairs):
        words[i] = np.uint32(np.uint32(start * HALF + i) * SPREAD)
    length, turn = np.empty(n_pairs, np.float32), np.empty(n_pairs, np.int32)
    along, across = np.empty(n_pairs, np.float32), np.empty(n_pairs, np.float32)
    bits, along_bits, across_bits = length.view(np.int32), along.view(np.int32), across.view(np.int32)
    numbers = np.empty(2 * n_pairs, np.float32)
    for row in range(len(x)):
        of_length, of_angle = radial[row], angular[row]
        for i in range(n_pairs):
            put_words(of_length, of_angle, words[i], length, turn, i)
        put_pairs(sigma, length, bits, turn, along, along_bits, across, across_bits)
        for group in range(stop - start):
            for j in range(HALF):
                i = group * HALF + j
                numbers[2 * HALF * group + j] = length[i] * along[i]
                numbers[2 * HALF * group + HALF + j] = length[i] * across[i]
        for i in range(n_columns):
            x[row, i] += numbers[skipped + i]


_add_rows = numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")(rows)
