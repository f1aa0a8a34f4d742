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


class Work(NamedTuple):
    """What the queries that are taken at a time need; where there are two, the second is for the oldest tokens in the
    sub-tile that is being overwritten."""

    left: np.ndarray
    """What meets the first array, `[T', n·D + e]`."""
    charge: np.ndarray
    """Of a sub-tile's columns in full scales, `[2, T', R]`."""
    widths: np.ndarray
    """Of its pulses, `[2, T', R]`."""
    sums: np.ndarray
    """Of these, `[2, T']`."""
    terms: np.ndarray
    """Charge of its second array, term by term, `[T', n·D]`."""
    counts: np.ndarray
    """The same in full scales before the counter, `[T', D]`."""


class Place(NamedTuple):
    """Who reads what: queries of a head, a sub-tile of its arrays."""

    batch: int
    head: int
    kv: int
    """K/V head."""
    i: int
    """Of B·H."""
    p: int
    """Of P = B·H_kv."""
    row: int
    """First query that is taken."""
    lo: int
    """First query that sees the sub-tile."""
    own: int
    """One past the last that is written to it."""
    hi: int
    """One past the last that sees it."""
    token: int
    """Where it begins."""
    n_parts: int
    """2: `lo` to `own` also meet what it held one window ago."""


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def read(pulses, line, arrays, counter, noise, out):  # type: ignore[no-untyped-def]
    """Digital sums of the sub-tiles in full scales of the head.

    Args:
        pulses: over S_sat, `[B, H, T', D]`.
        line, arrays, counter, noise: see there.
        out: `[B, H, T', D]`.
    """
    n_batch, n_heads, n_queries, _ = pulses.shape
    work = make_work(pulses, line, arrays)
    for batch in range(n_batch):
        for head in range(n_heads):
            for row in range(0, n_queries, QUERIES):
                stop = min(row + QUERIES, n_queries)
                put_left(pulses[batch, head, row:stop], arrays, row, work.left)
                out[batch, head, row:stop] = ZERO
                for token in range(first_tile(line, row), line.start + stop, line.rows):
                    at = place(line, arrays, n_heads, batch, head, row, stop, token)
                    put_counts(work, line, arrays, noise, at)
                    add_levels(work.counts[: at.hi - at.lo], counter, out[batch, head, at.lo : at.hi])


@numba.njit(cache=True)
def make_work(pulses, line, arrays):  # type: ignore[no-untyped-def]
    """Room for the queries that are taken at a time."""
    most = min(QUERIES, pulses.shape[2])
    return Work(
        np.zeros((most, arrays.keys.shape[2]), np.float32),
        np.empty((2, most, line.rows), np.float32),
        np.empty((2, most, line.rows), np.float32),
        np.empty((2, most), np.float32),
        np.empty((most, arrays.values.shape[2]), np.float32),
        np.empty((most, pulses.shape[3]), np.float32),
    )


@numba.njit(inline="always")
def first_tile(line, row):  # type: ignore[no-untyped-def]
    """First token of the first sub-tile that is seen from a query on."""
    own = (line.start + row) // line.rows * line.rows
    return max(own - line.window + line.rows, 0)


@numba.njit(cache=True)
def place(line, arrays, n_heads, batch, head, row, stop, token):  # type: ignore[no-untyped-def]
    """Who of the queries `row` to `stop` reads the sub-tile that begins with a token."""
    n_kv = arrays.offsets.shape[0]
    kv = head * n_kv // n_heads
    lo, hi = max(token - line.start, row), min(token + line.window - line.start, stop)
    own = max(min(token + line.rows - line.start, stop), lo)
    n_parts = 2 if token >= line.window and own > lo else 1
    return Place(batch, head, kv, batch * n_heads + head, batch * n_kv + kv, row, lo, own, hi, token, n_parts)


@numba.njit(inline="always")
def part_of(line, at, part):  # type: ignore[no-untyped-def]
    """How many queries a part has, its first token, and which of the span's tokens these are."""
    token = at.token - part * line.window
    return (at.own if part else at.hi) - at.lo, token, slice(token - line.first, token - line.first + line.rows)


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
def put_counts(work, line, arrays, noise, at):  # type: ignore[no-untyped-def]
    """A sub-tile from the pulses to its counter: everything in `work` but the first."""
    scale = np.zeros(1, np.float32)
    for part in range(at.n_parts):
        m, token, tile = part_of(line, at, part)
        charge, widths = work.charge[part, :m], work.widths[part, :m]
        left = work.left[at.lo - at.row : at.lo - at.row + m]
        multiply(left, arrays.keys[at.p, tile].T, np.zeros(1, np.float32), charge)
        if noise.qk:
            states = noise.of_qk[:, at.i, at.lo : at.lo + m]
            _add_rows(charge, noise.qk, states[0], states[1], token)
        hide(charge, at.own - at.lo, line, at.lo, token, arrays.padding[at.batch])
        clip(charge, widths, work.sums[part])
        scale[0] = part
        multiply(widths, arrays.values[at.p, tile], scale, work.terms[:m])
        if part:
            work.sums[0, :m] += work.sums[1, :m]
    counts = work.counts[: at.hi - at.lo]
    weights, constant = arrays.value_weights[at.head, at.lo : at.hi], arrays.constants[at.head]
    add_terms(work.terms, weights, work.sums[0], constant, counts)
    if arrays.offsets.shape[1]:
        offsets = arrays.offsets[at.kv, (at.token - line.first) // line.rows]
        for m in range(len(counts)):
            for d in range(len(offsets)):
                counts[m, d] += offsets[d]
    if noise.av:
        word = np.uint32(np.uint32(at.token % line.window // line.rows) * SPREAD)
        states = noise.of_av[:, at.i, at.lo : at.hi].copy()
        for lane in range(2):
            for m in range(len(counts)):
                states[lane, m] = _mixed(np.uint32(states[lane, m] ^ word))
        _add_rows(counts, noise.av, states[0], states[1], 0)


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
    """Charges to pulse widths elsewhere (in place it would be five times as slow), and their sums, `[T']`."""
    for m in range(charge.shape[0]):
        total = ZERO
        for s in range(charge.shape[1]):
            width = min(max(charge[m, s], ZERO), ONE)
            widths[m, s] = width
            total += width
        sums[m] = total


@numba.njit(cache=True, fastmath=True, error_model="numpy")
def add_terms(terms, weights, sums, constant, out):  # type: ignore[no-untyped-def]
    """Terms `[T', n·D]`, each times its factor of the row `[T', n]`, and a constant for the sum of the pulses, added up
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


@numba.njit(cache=True, error_model="numpy")
def add_levels(counts, counter, out):  # type: ignore[no-untyped-def]
    """Clip, take the nearest level, bit for bit that of PyTorch, and add it."""
    for m in range(counts.shape[0]):
        for d in range(counts.shape[1]):
            level = min(max(counts[m, d], counter.v_min), counter.v_max)
            if counter.steps:
                level = np.rint((level - counter.zero) * counter.steps) / counter.steps + counter.zero
                level = min(max(level, counter.v_min), counter.v_max) if counter.clips else level
            out[m, d] += level
