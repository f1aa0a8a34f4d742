"""Whole reads in one call that holds no lock: both arrays of each head for all queries of a span, sub-tile by sub-tile,
so that what is between the two products never leaves the cache.

Some hundred queries are taken at a time, and of the sub-tiles that they see one after another; a query of the sub-tile
that is being overwritten also meets what it held one window ago. The equations are those of :mod:`aimc.ops.eager`.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from aimc.ops.compiled.normal import _add_rows, _mixed
from aimc.ops.compiled.products import multiply
from aimc.ops.effects import words

QUERIES = 256
"""Taken at a time: more leave the cache, fewer make slower products."""
ZERO, ONE = np.float32(0.0), np.float32(1.0)
HIDDEN = np.float32(-1.0)
"""Charge of a key that is not visible: it gives no pulse and passes no gradient."""
SPREAD = np.uint32(words.SPREAD)


class Line(NamedTuple):
    """Where the queries and tokens of a span are in the text."""

    start: int
    """First query."""
    first: int
    """First token, where a sub-tile begins."""
    rows: int
    """R, tokens of a sub-tile."""
    window: int
    """W, tokens that a query sees."""


class Arrays(NamedTuple):
    """What P = B·H_kv arrays hold, n terms a cell, and what a term counts for a query; float32."""

    keys: np.ndarray
    """`[P, S, n·D + e]`; behind the terms what is multiplied by the sum of the pulses, then by one."""
    key_weights: np.ndarray
    """`[T', n]`."""
    n_constant: int
    """Columns behind the terms for the sum of the pulses, 0 or 1."""
    values: np.ndarray
    """`[P, S, n·D]`."""
    value_weights: np.ndarray
    """Over the full scale of the head, `[H, T', n]`."""
    constants: np.ndarray
    """What a value cell adds to all columns alike, over the full scale of the head, `[H]`."""
    offsets: np.ndarray
    """Of the counters, `[H_kv, J, D]`; J = 0: none."""
    padding: np.ndarray
    """Which tokens are padding, `[B, S]`; S = 0: none."""


class Counter(NamedTuple):
    """Clip to a range, then to the nearest level; float32."""

    v_min: float
    v_max: float
    steps: float
    """Levels per unit; 0: no levels."""
    zero: float
    """Where they count from."""
    clips: bool
    """Whether a level stays inside the range."""


class ReadNoise(NamedTuple):
    """Standard deviations, 0: none; and the states of the two lanes of every query, uint32 `[2, B·H, T']`."""

    qk: float
    of_qk: np.ndarray
    av: float
    of_av: np.ndarray


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def read(pulses, line, arrays, counter, noise, out):  # type: ignore[no-untyped-def]
    """Digital sums of the sub-tiles in full scales of the head.

    Args:
        pulses: over S_sat, `[B, H, T', D]`.
        line, arrays, counter, noise: see there.
        out: `[B, H, T', D]`.
    """
    n_batch, n_heads, n_queries, size = pulses.shape
    most = min(QUERIES, n_queries)
    left = np.zeros((most, arrays.keys.shape[2]), np.float32)
    charge, terms = np.empty((most, line.rows), np.float32), np.empty((most, arrays.values.shape[2]), np.float32)
    counts, sums = np.empty((most, size), np.float32), np.empty(most, np.float32)
    oldest, nothing, one = np.empty((most, line.rows), np.float32), np.zeros(1, np.float32), np.ones(1, np.float32)
    for i in range(n_batch * n_heads):
        batch, head = i // n_heads, i % n_heads
        kv = head * arrays.offsets.shape[0] // n_heads
        p = batch * arrays.offsets.shape[0] + kv
        for row in range(0, n_queries, QUERIES):
            stop = min(row + QUERIES, n_queries)
            put_left(pulses[batch, head, row:stop], arrays, row, left)
            out[batch, head, row:stop] = ZERO
            for token in range(first_tile(line, row), line.start + stop, line.rows):
                lo, own, hi = seen_by(line, token, row, stop)
                m, at = hi - lo, token - line.first
                tile = slice(at, at + line.rows)
                put_charge(left[lo - row : hi - row], arrays.keys[p, tile], noise, i, lo, token, charge[:m])
                hide(charge[:m], own - lo, line, lo, token, arrays.padding[batch])
                clip(charge[:m], charge[:m], sums)
                multiply(charge[:m], arrays.values[p, tile], nothing, terms[:m])
                if token >= line.window and own > lo:
                    m_own, back = own - lo, at - line.window
                    tile = slice(back, back + line.rows)
                    before, then = oldest[:m_own], token - line.window
                    put_charge(left[lo - row : own - row], arrays.keys[p, tile], noise, i, lo, then, before)
                    hide(before, m_own, line, lo, then, arrays.padding[batch])
                    clip(before, before, counts[:, 0])
                    sums[:m_own] += counts[:m_own, 0]
                    multiply(before, arrays.values[p, tile], one, terms[:m_own])
                put_counts(terms[:m], sums, arrays, line, noise, i, head, kv, lo, token, counts[:m])
                to_levels(counts[:m], counter)
                out[batch, head, lo:hi] += counts[:m]


@numba.njit(inline="always")
def first_tile(line, row):  # type: ignore[no-untyped-def]
    """First token of the first sub-tile that is seen from a query on."""
    own = (line.start + row) // line.rows * line.rows
    return max(own - line.window + line.rows, 0)


@numba.njit(inline="always")
def seen_by(line, token, row, stop):  # type: ignore[no-untyped-def]
    """The queries among `row` to `stop` that see the sub-tile which begins with a token: the first, one past those that
    are written to it themselves, one past the last."""
    first = max(token - line.start, row)
    return first, max(min(token + line.rows - line.start, stop), first), min(token + line.window - line.start, stop)


@numba.njit(cache=True, fastmath=True, error_model="numpy")
def put_left(pulses, arrays, row, left):  # type: ignore[no-untyped-def]
    """What meets the first array, `[T', n·D + e]`."""
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


@numba.njit(cache=True, fastmath=True, error_model="numpy")
def put_charge(left, keys, noise, i, row, token, charge):  # type: ignore[no-untyped-def]
    """Charge of a sub-tile's columns in full scales, `[T', R]`."""
    multiply(left, keys.T, np.zeros(1, np.float32), charge)
    if noise.qk:
        stop = row + len(charge)
        _add_rows(charge, noise.qk, noise.of_qk[0, i, row:stop], noise.of_qk[1, i, row:stop], token)


@numba.njit(cache=True)
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


@numba.njit(cache=True, fastmath=True, error_model="numpy")
def clip(charge, widths, sums):  # type: ignore[no-untyped-def]
    """Pulse widths of charges, and their sums, `[T']`."""
    for m in range(charge.shape[0]):
        total = ZERO
        for s in range(charge.shape[1]):
            width = min(max(charge[m, s], ZERO), ONE)
            widths[m, s] = width
            total += width
        sums[m] = total


@numba.njit(cache=True, fastmath=True, error_model="numpy")
def put_counts(terms, sums, arrays, line, noise, i, head, kv, row, token, counts):  # type: ignore[no-untyped-def]
    """Charge of a sub-tile in full scales before its counter, `[T', D]`."""
    size, n_terms, constant = counts.shape[1], arrays.value_weights.shape[2], arrays.constants[head]
    tile = (token - line.first) // line.rows
    for m in range(len(counts)):
        number = constant * sums[m]
        for d in range(size):
            counts[m, d] = number
        for j in range(n_terms):
            weight = arrays.value_weights[head, row + m, j]
            for d in range(size):
                counts[m, d] += weight * terms[m, j * size + d]
    if arrays.offsets.shape[1]:
        for m in range(len(counts)):
            for d in range(size):
                counts[m, d] += arrays.offsets[kv, tile, d]
    if noise.av:
        word = np.uint32(np.uint32(token % line.window // line.rows) * SPREAD)
        states = np.empty((2, len(counts)), np.uint32)
        for lane in range(2):
            for m in range(len(counts)):
                states[lane, m] = _mixed(np.uint32(noise.of_av[lane, i, row + m] ^ word))
        _add_rows(counts, noise.av, states[0], states[1], 0)


@numba.njit(cache=True, error_model="numpy")
def to_levels(x, counter):  # type: ignore[no-untyped-def]
    """Clip, and the nearest level, bit for bit that of PyTorch."""
    for m in range(x.shape[0]):
        for d in range(x.shape[1]):
            level = min(max(x[m, d], counter.v_min), counter.v_max)
            if counter.steps:
                level = np.rint((level - counter.zero) * counter.steps) / counter.steps + counter.zero
                level = min(max(level, counter.v_min), counter.v_max) if counter.clips else level
            x[m, d] = level
