"""Charges to pulses and the way back: circuits that clip, or a softmax between converters."""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from aimc.ops.compiled.once import F1, F2, FLOAT, HIDDEN1, INT, NOTHING, once
from aimc.ops.compiled.operands import COUNTER, LINE

ZERO, ONE = np.float32(0.0), np.float32(1.0)
HIDDEN, SEEN = np.float32(-1e30), np.float32(-1e29)
"""Charge, and logit, of a key that is not visible: it gives no pulse and passes no gradient; and what all others are
above."""
LOG2_E, LN_2 = np.float32(1.0 / np.log(2.0)), np.float32(np.log(2.0))
SMALLEST = np.float32(-87.0)
"""Below, an exponential is zero."""
OF_EXP = tuple(np.float32(1.0 / n) for n in (720, 120, 24, 6, 2, 1, 1))
"""In powers of at most half of ln 2, highest first."""


@once(NOTHING, F2, INT, LINE, INT, INT, HIDDEN1)
def hide(charge, n_partly, line, row, token, padding):  # type: ignore[no-untyped-def]
    """Mark what is not seen; only the first `n_partly` queries do not see all of the tokens, but for padding."""
    n = charge.shape[1]
    for m in range(n_partly):
        query = line.start + row + m
        for s in range(max(query + 1 - token, 0), n):
            charge[m, s] = HIDDEN
        for s in range(min(max(query - line.window + 1 - token, 0), n)):
            charge[m, s] = HIDDEN
    for s in range(token - line.first, min(token - line.first + n, len(padding))):
        if padding[s]:
            charge[:, s - token + line.first] = HIDDEN


@once(NOTHING, F2, FLOAT, F2, F1, fastmath=True)
def clip(charge, threshold, widths, sums):  # type: ignore[no-untyped-def]
    """Charges to pulse widths elsewhere (in place it would be five times as slow), and their sums, `[T']`."""
    for m in range(charge.shape[0]):
        total = ZERO
        for s in range(charge.shape[1]):
            width = min(max(charge[m, s] - threshold, ZERO), ONE)
            widths[m, s] = width
            total += width
        sums[m] = total


@once(types.float64, F2, FLOAT, F1, F2, fastmath=True)
def back_through_clip(charge, threshold, of_sums, grad):  # type: ignore[no-untyped-def]
    """From the gradient of the widths, and of their sums, to that of the charge, in place; the sum of it."""
    whole = np.float64(0.0)
    for m in range(charge.shape[0]):
        of_sum, total = of_sums[m], ZERO
        for s in range(charge.shape[1]):
            above = charge[m, s] - threshold
            number = grad[m, s] + of_sum if above >= ZERO and above <= ONE else ZERO
            grad[m, s] = number
            total += number
        whole += total
    return whole


@numba.njit(inline="always")
def level_of(x, counter):  # type: ignore[no-untyped-def]
    """The nearest level inside the range, up to the last digit."""
    level = min(max(x, counter.v_min), counter.v_max)
    if counter.steps:
        level = np.rint((level - counter.zero) * counter.steps) * (ONE / counter.steps) + counter.zero
        level = min(max(level, counter.v_min), counter.v_max) if counter.clips else level
    return level


@once(NOTHING, F2, F1, COUNTER, F1, fastmath=True)
def find_largest(charge, gains, score, largest):  # type: ignore[no-untyped-def]
    """Raise the largest logits `[T']` to those of the charges."""
    for m in range(charge.shape[0]):
        gain, top = gains[m], largest[m]
        for s in range(charge.shape[1]):
            logit = gain * level_of(charge[m, s], score)
            top = max(top, logit if charge[m, s] > SEEN else HIDDEN)
        largest[m] = top


@once(NOTHING, F2, F1, F1, COUNTER, F2, F1, fastmath=True)
def put_shares(charge, gains, largest, score, shares, sums):  # type: ignore[no-untyped-def]
    """Exponentials of the logits over the largest, `[T', R]`, and add their sums to `[T']`."""
    n = charge.shape[1]
    bits = np.empty(n, np.int32)
    powers = bits.view(np.float32)
    for m in range(charge.shape[0]):
        gain, top = gains[m], largest[m] if largest[m] > SEEN else ZERO  # a row of padding sees nothing
        for s in range(n):
            x = min(gain * level_of(charge[m, s], score) - top, ZERO)
            x = x if charge[m, s] > SEEN else HIDDEN
            within = max(x, SMALLEST)
            whole = np.rint(within * LOG2_E)
            rest = within - whole * LN_2
            exponent = np.int32(np.int32(whole) + np.int32(127))
            bits[s] = np.int32(exponent << np.int32(23)) if x > SMALLEST else np.int32(0)
            power = OF_EXP[0] * rest + OF_EXP[1]
            power = ((power * rest + OF_EXP[2]) * rest + OF_EXP[3]) * rest + OF_EXP[4]
            shares[m, s] = (power * rest + OF_EXP[5]) * rest + OF_EXP[6]
        total = ZERO
        for s in range(n):
            share = shares[m, s] * powers[s]
            shares[m, s] = share
            total += share
        sums[m] += total


@once(NOTHING, F2, COUNTER, F2, F1, fastmath=True)
def put_pulses(shares, pulse, widths, sums):  # type: ignore[no-untyped-def]
    """Shares through the DAC, `[T', R]`, and the sums of that, `[T']`."""
    for m in range(shares.shape[0]):
        total = ZERO
        for s in range(shares.shape[1]):
            width = level_of(shares[m, s], pulse)
            widths[m, s] = width
            total += width
        sums[m] = total


@once(NOTHING, F2, F2, F1, COUNTER, COUNTER, F1, F1, F2, F1, fastmath=True)
def back_through_softmax(charge, shares, gains, score, pulse, of_sums, of_divisor, grad, of_gains):  # type: ignore[no-untyped-def]
    """From the gradient of the widths, of their sums and of the sum of the shares to that of the charge, in place; and
    add that of the gains, `[T']`."""
    for m in range(charge.shape[0]):
        of_sum, of_total, gain, of_gain = of_sums[m], of_divisor[m], gains[m], ZERO
        for s in range(charge.shape[1]):
            of_width = grad[m, s] + of_sum if shares[m, s] <= pulse.v_max else ZERO
            of_logit = (of_width + of_total) * shares[m, s]
            of_gain += of_logit * level_of(charge[m, s], score)
            inside = charge[m, s] >= score.v_min and charge[m, s] <= score.v_max
            grad[m, s] = of_logit * gain if inside else ZERO
        of_gains[m] += of_gain
