"""Whole reads in one call that holds no lock: both arrays of each head for all queries of a span, sub-tile by sub-tile,
so that what is between the two products never leaves the cache.

Some hundred queries are taken at a time, and of the sub-tiles that they see one after another; a query of the sub-tile
that is being overwritten also meets what it held one window ago. A softmax has to know all charges of a query before
any pulse: then the first arrays come first, and the second after them. The equations are those of
:mod:`aimc.ops.eager`.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from aimc.ops.compiled.activations import HIDDEN, clip, find_largest, hide, put_pulses, put_shares
from aimc.ops.compiled.folds import folded
from aimc.ops.compiled.levels import counted
from aimc.ops.compiled.once import BOOL, F1, F2, F4, FLOAT, INT, NOTHING, once
from aimc.ops.compiled.operands import (
    ARRAYS,
    BETWEEN,
    COUNTER,
    LINE,
    NOISE,
    PLACE,
    WORK,
    Arrays,
    Between,
    Counter,
    Kept,
    Line,
    ReadNoise,
    first_tile,
    make_work,
    n_charges,
    part_of,
    place,
)
from aimc.ops.compiled.products import multiply
from aimc.ops.compiled.read_noise import add_column, add_rows, states_of

ZERO, ONE = np.float32(0.0), np.float32(1.0)


@once(NOTHING, F2, ARRAYS, INT, F2, fastmath=True)
def put_left(pulses, arrays, row, left):  # type: ignore[no-untyped-def]
    """What meets the first array, `[T', K·D + e]`."""
    size, n_terms = pulses.shape[1], arrays.key_weights.shape[1]
    at = n_terms * size
    for m in range(len(pulses)):
        for j in range(n_terms):
            weight = arrays.key_weights[row + m, j]
            for d in range(size):
                left[m, j * size + d] = weight * pulses[m, d]
        if left.shape[1] > at:
            if arrays.n_constant:
                total = ZERO
                for d in range(size):
                    total += pulses[m, d]
                left[m, at] = total
            left[m, at + arrays.n_constant] = ONE


@once(NOTHING, WORK, LINE, ARRAYS, NOISE, PLACE, INT, F2)
def put_charge(work, line, arrays, noise, at, part, charge):  # type: ignore[no-untyped-def]
    """Charge of the first array in full scales."""
    m, token, tile = part_of(line, at, part)
    left = work.left[at.lo - at.row : at.lo - at.row + m]
    cells = folded(arrays.keys[at.p, tile], arrays.key_folds, at, line, work.keys)
    multiply(left, cells.T, np.zeros(1, np.float32), charge)
    if noise.qk:
        queries = slice(at.lo, at.lo + m)
        add_rows(charge, noise.qk, noise.of_qk[0, at.i, queries], noise.of_qk[1, at.i, queries], token)
    hide(charge, at.own - at.lo, line, at.lo, token, arrays.padding[at.batch])


@once(NOTHING, F2, F2, F1, FLOAT, F2, fastmath=True)
def add_terms(terms, weights, sums, constant, out):  # type: ignore[no-untyped-def]
    """Terms `[T', K·D]`, each times its factor of the row `[T', K]`, and a constant for the sum of the pulses, added up
    into `[T', D]`."""
    size, n_terms = out.shape[1], weights.shape[1]
    for m in range(len(out)):
        number = constant * sums[m]
        for d in range(size):
            out[m, d] = number
        for j in range(n_terms):
            weight = weights[m, j]
            for d in range(size):
                out[m, d] += weight * terms[m, j * size + d]


@once(NOTHING, WORK, LINE, ARRAYS, NOISE, BETWEEN, PLACE, INT, INT, BOOL, fastmath=True)
def put_tile(work, line, arrays, noise, between, at, n, c, keeps):  # type: ignore[no-untyped-def]
    """A sub-tile from the pulses to its counter, `work.counts` from row `c` on, by charges from row `n` on."""
    scale, k = np.zeros(1, np.float32), at.i % len(work.charge)
    for part in range(at.n_parts):
        m, _, tokens = part_of(line, at, part)
        widths, sums, charge = work.widths[part, :m], work.sums[part], work.charge[k, n : n + m]
        if between.softmax:
            shares = work.shares[k, n : n + m] if keeps else work.shares[0, :m]
            rows = slice(at.lo - at.row, at.lo - at.row + m)
            gains = between.gains[at.i, at.lo : at.hi]
            put_shares(charge, gains, work.largest[rows], between.score, shares, work.divisor[k, at.lo : at.lo + m])
            put_pulses(shares, between.pulse, widths, sums)
        else:
            put_charge(work, line, arrays, noise, at, part, charge)
            clip(charge, between.thresholds[at.head], widths, sums)
        scale[0] = part
        cells = folded(arrays.values[at.p, tokens], arrays.value_folds, at, line, work.values)
        multiply(widths, cells, scale, work.terms[:m])
        for query in range(m if part else 0):
            work.sums[0, query] += sums[query]
        n += m
    counts = work.counts[k, c : c + at.hi - at.lo]
    weights, constant = arrays.value_weights[at.head, at.lo : at.hi], arrays.constants[at.head]
    add_terms(work.terms, weights, work.sums[0], constant, counts)
    if arrays.offsets.shape[1]:
        offsets = arrays.offsets[at.kv, (at.token - line.first) // line.rows]
        for m in range(len(counts)):
            for d in range(counts.shape[1]):
                counts[m, d] += offsets[d]
    if noise.av:
        states = states_of(line, noise, at)
        add_rows(counts, noise.av, states[0], states[1], 0)


@once(NOTHING, WORK, LINE, NOISE, BETWEEN, PLACE, F1, fastmath=True)
def put_sum(work, line, noise, between, at, charge):  # type: ignore[no-untyped-def]
    """What the counter of a sub-tile's normaliser column is given, `[T']`."""
    number = (at.token - line.first) // line.rows
    gain, offset = between.sum_gains[at.kv, number], between.sum_offsets[at.kv, number]
    gain = gain / between.sum_full_scales[at.head]
    for m in range(len(charge)):
        charge[m] = work.sums[0, m] * gain + offset
    if noise.av:
        states = states_of(line, noise, at)
        add_column(charge, noise.av, states[0], states[1], work.total.shape[2])


@once(NOTHING, F2, COUNTER, F2)
def add_levels(counts, counter, out):  # type: ignore[no-untyped-def]
    """Through the counters, and added."""
    for m in range(counts.shape[0]):
        for d in range(counts.shape[1]):
            out[m, d] += counted(counts[m, d], counter)


@once(NOTHING, F1, BETWEEN, INT, F1)
def add_sum(charge, between, head, out):  # type: ignore[no-untyped-def]
    """Through the counter of the normaliser column, and added in pulses of full length."""
    for m in range(len(charge)):
        out[m] += counted(charge[m], between.sum_counter) * between.sum_full_scales[head]


@once(NOTHING, WORK, LINE, ARRAYS, COUNTER, NOISE, BETWEEN, *(5 * [INT]), BOOL)
def take(work, line, arrays, counter, noise, between, n_heads, batch, head, row, stop, keeps):  # type: ignore[no-untyped-def]
    """All sub-tiles that some queries see: total and divisor in `work`; with `keeps` what the way back needs, from the
    rows `work.used` on, which then are those behind it."""
    k = (batch * n_heads + head) % len(work.charge)
    work.total[k, row:stop] = ZERO
    work.divisor[k, row:stop] = ZERO
    tokens = range(first_tile(line, row), line.start + stop, line.rows)
    n, c = work.used
    if between.softmax:
        work.largest[: stop - row] = HIDDEN
        for token in tokens:
            at = place(line, arrays, n_heads, batch, head, row, stop, token)
            for part in range(at.n_parts):
                m, _, _ = part_of(line, at, part)
                charge = work.charge[k, n : n + m]
                put_charge(work, line, arrays, noise, at, part, charge)
                top = work.largest[at.lo - row : at.lo - row + m]
                find_largest(charge, between.gains[at.i, at.lo : at.hi], between.score, top)
                n += m
    n = work.used[0]
    for token in tokens:
        at = place(line, arrays, n_heads, batch, head, row, stop, token)
        put_tile(work, line, arrays, noise, between, at, n, c, keeps)
        behind = c + at.hi - at.lo
        add_levels(work.counts[k, c:behind], counter, work.total[k, at.lo : at.hi])
        if between.normalised:
            put_sum(work, line, noise, between, at, work.pulses[k, c:behind])
            add_sum(work.pulses[k, c:behind], between, head, work.divisor[k, at.lo : at.hi])
        n += n_charges(at) if keeps or between.softmax else 0
        c = behind if keeps else c
    if keeps:
        work.used[0], work.used[1] = n, c


@once(NOTHING, F2, F1, BETWEEN, INT, F2)
def divided(total, divisor, between, head, out):  # type: ignore[no-untyped-def]
    """The digital sums of some queries over what divides them."""
    for m in range(len(out)):
        factor = ONE / max(divisor[m], between.leasts[head]) if between.softmax or between.normalised else ONE
        for d in range(out.shape[1]):
            out[m, d] = total[m, d] * factor


@numba.njit(
    types.void(WORK, F4, LINE, ARRAYS, COUNTER, NOISE, BETWEEN, F4, BOOL), nogil=True, cache=True, error_model="numpy"
)
def _read(work, pulses, line, arrays, counter, noise, between, out, keeps):  # type: ignore[no-untyped-def]
    n_batch, n_heads, n_queries, _ = pulses.shape
    for batch in range(n_batch):
        for head in range(n_heads):
            work.used[:] = 0
            k = (batch * n_heads + head) % len(work.charge)
            for row in range(0, n_queries, line.queries):
                stop = min(row + line.queries, n_queries)
                put_left(pulses[batch, head, row:stop], arrays, row, work.left)
                take(work, line, arrays, counter, noise, between, n_heads, batch, head, row, stop, keeps)
                divided(work.total[k, row:stop], work.divisor[k, row:stop], between, head, out[batch, head, row:stop])


def read(
    pulses: np.ndarray,
    line: Line,
    arrays: Arrays,
    counter: Counter,
    noise: ReadNoise,
    between: Between,
    out: np.ndarray,
    kept: Kept | None = None,
) -> None:
    """Digital sums of the sub-tiles in full scales of the head.

    Args:
        pulses: over S_sat, `[B, H, T', D]`.
        line, arrays, counter, noise, between: see there.
        out: `[B, H, T', D]`.
        kept: room for what the way back needs; None: it computes that again.
    """
    work = make_work(pulses, line, arrays, between, kept, keeps=False)
    _read(work, pulses, line, arrays, counter, noise, between, out, kept is not None)
