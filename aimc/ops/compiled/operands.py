"""What the compiled reads are given, and the room in which they work."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numba
import numpy as np

from aimc.ops.compiled.once import BOOL, F1, F2, F3, FLOAT, HIDDEN2, INT, INTS, WORDS3, type_of


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
    queries: int
    """Taken at a time: more leave the cache, fewer make slower products."""


class Arrays(NamedTuple):
    """What P = B·H_kv arrays hold, n terms a cell, and what a term counts for a query; float32. Where there are folds,
    K terms are made of the n for the queries that are taken at a time, see :mod:`aimc.ops.blocked.folds`; else K = n.
    """

    keys: np.ndarray
    """`[P, S, n·D + e]`; behind the terms what is multiplied by the sum of the pulses, then by one."""
    key_folds: np.ndarray
    """`[N, K, n]`, N times that queries are taken; N = 0: none."""
    key_weights: np.ndarray
    """`[T', K]`."""
    n_constant: int
    """Columns behind the terms for the sum of the pulses, 0 or 1."""
    values: np.ndarray
    """`[P, S, n·D]`."""
    value_folds: np.ndarray
    """As `key_folds`."""
    value_weights: np.ndarray
    """Over the full scale of the head, `[H, T', K]`."""
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


def counter_of(v_min: float, v_max: float, steps: float, zero: float, clips: bool) -> Any:
    """A :class:`Counter` of these numbers in float32."""
    numbers: tuple[Any, ...] = tuple(np.float32(x) for x in (v_min, v_max, steps, zero))
    return Counter._make((*numbers, clips))


class Between(NamedTuple):
    """What makes pulses of charges, and by what the digital sum is divided."""

    thresholds: np.ndarray
    """Of the charge-to-pulse circuits, `[H]`."""
    softmax: bool
    """Whether a softmax makes the pulses, and not these circuits."""
    gains: np.ndarray
    """From a charge to its logit, `[B·H, T']`."""
    score: Counter
    """The ADC behind the first array, of the softmax."""
    pulse: Counter
    """The DAC in front of the second, likewise."""
    normalised: bool
    """Whether there is a normaliser column."""
    sum_counter: Counter
    """Its counter."""
    sum_full_scales: np.ndarray
    """Pulses that fill it, `[H]`."""
    sum_gains: np.ndarray
    """One and the gain errors of these counters, `[H_kv, J]`."""
    sum_offsets: np.ndarray
    """Their offsets, `[H_kv, J]`."""
    leasts: np.ndarray
    """What the digital sum is divided by at least, `[H]`."""


class ReadNoise(NamedTuple):
    """Standard deviations, 0: none; and the states of the two lanes of every query, uint32 `[2, B·H, T']`."""

    qk: float
    of_qk: np.ndarray
    av: float
    of_av: np.ndarray


class Kept(NamedTuple):
    """What the way back over all sub-tiles needs of K heads, one sub-tile behind the other, N rows of charges and C of
    counts; K = 1: of the queries that are taken at a time, or of one sub-tile."""

    charge: np.ndarray
    """Of the columns in full scales, `[K, N, R]`; a sub-tile that is being overwritten has rows for its own tokens,
    then for its oldest."""
    shares: np.ndarray
    """Of the softmax, before the DAC, `[K, N, R]`; N = 0: there is none."""
    counts: np.ndarray
    """Charge of the second arrays in full scales before the counter, `[K, C, D]`."""
    pulses: np.ndarray
    """What the normaliser columns' counters are given, `[K, C]`."""
    total: np.ndarray
    """Digital sum, `[K, T', D]`."""
    divisor: np.ndarray
    """Sum of what divides, `[K, T']`."""


class Work(NamedTuple):
    """What the queries that are taken at a time need; the first six are those of :class:`Kept`."""

    charge: np.ndarray
    shares: np.ndarray
    counts: np.ndarray
    pulses: np.ndarray
    total: np.ndarray
    divisor: np.ndarray
    left: np.ndarray
    """What meets the first array, `[T', K·D + e]`."""
    widths: np.ndarray
    """Pulses of a sub-tile, `[2, T', R]`."""
    sums: np.ndarray
    """Of these, `[2, T']`."""
    terms: np.ndarray
    """Charge of its second array, term by term, `[T', K·D]`."""
    of_counts: np.ndarray
    """Gradient of its counts, `[T', D]`."""
    of_total: np.ndarray
    """Gradient of the digital sum, `[T', D]`."""
    of_divisor: np.ndarray
    """Of what divides, `[T']`."""
    largest: np.ndarray
    """Logit, `[T']`."""
    keys: np.ndarray
    """A sub-tile's cells folded, `[R, K·D + e]`."""
    values: np.ndarray
    """Likewise, `[R, K·D]`."""
    of_cells: np.ndarray
    """Their gradient, `[R, K·D]`."""
    used: np.ndarray
    """Rows of charges and of counts that are taken, `[2]`."""


class Gathered(NamedTuple):
    """Gradients of what the arrays hold, added to what is there: of neighbouring terms, `[P, S, n'·D]`, and the column
    of the first; and of what is between."""

    keys: np.ndarray
    first_of_keys: int
    values: np.ndarray
    first_of_values: int
    thresholds: np.ndarray
    """`[H]`."""
    gains: np.ndarray
    """`[B·H, T']`."""


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


LINE = type_of(Line, *(5 * [INT]))
ARRAYS = type_of(Arrays, F3, F3, F2, INT, F3, F3, F3, F1, F3, HIDDEN2)
COUNTER = type_of(Counter, *(4 * [FLOAT]), BOOL)
BETWEEN = type_of(Between, F1, BOOL, F2, COUNTER, COUNTER, BOOL, COUNTER, F1, F2, F2, F1)
NOISE = type_of(ReadNoise, FLOAT, WORDS3, FLOAT, WORDS3)
WORK = type_of(Work, *(3 * [F3]), F2, F3, F2, F2, F3, F2, F2, F2, F2, F1, F1, *(3 * [F2]), INTS)
GATHERED = type_of(Gathered, F3, INT, F3, INT, F1, F2)
PLACE = type_of(Place, *(11 * [INT]))


@numba.njit(inline="always")
def first_tile(line, row):  # type: ignore[no-untyped-def]
    """First token of the first sub-tile that is seen from a query on."""
    own = (line.start + row) // line.rows * line.rows
    return max(own - line.window + line.rows, 0)


@numba.njit(inline="always")
def seen_by(line, row, stop, token):  # type: ignore[no-untyped-def]
    """Of the queries `row` to `stop` the first that sees a sub-tile, one past the last that is written to it, and one
    past the last that sees it."""
    lo, hi = max(token - line.start, row), min(token + line.window - line.start, stop)
    return lo, max(min(token + line.rows - line.start, stop), lo), hi


@numba.njit(cache=True)
def place(line, arrays, n_heads, batch, head, row, stop, token):  # type: ignore[no-untyped-def]
    """Who of the queries `row` to `stop` reads the sub-tile that begins with a token."""
    n_kv = arrays.offsets.shape[0]
    kv = head * n_kv // n_heads
    lo, own, hi = seen_by(line, row, stop, token)
    n_parts = 2 if token >= line.window and own > lo else 1
    return Place(batch, head, kv, batch * n_heads + head, batch * n_kv + kv, row, lo, own, hi, token, n_parts)


@numba.njit(inline="always")
def part_of(line, at, part):  # type: ignore[no-untyped-def]
    """How many queries a part has, its first token, and which of the span's tokens these are."""
    token = at.token - part * line.window
    return (at.own if part else at.hi) - at.lo, token, slice(token - line.first, token - line.first + line.rows)


@numba.njit(inline="always")
def n_charges(at):  # type: ignore[no-untyped-def]
    """Rows of charges of a sub-tile."""
    return at.hi - at.lo + (at.own - at.lo if at.n_parts == 2 else 0)


def kept_shapes(line: Line, n_queries: int, size: int, softmax: bool) -> Any:
    """Shapes of :class:`Kept` for all queries of a head, but for K."""
    n, c = np.sum(_rows(line, n_queries), axis=0).tolist()
    return _shapes(n, n if softmax else 0, c, (n_queries, size), line.rows)


def _shapes(n_charges: int, n_shares: int, n_counts: int, total: tuple[int, int], rows: int) -> Any:
    return Kept((n_charges, rows), (n_shares, rows), (n_counts, total[1]), (n_counts,), total, total[:1])  # type: ignore[arg-type]


@functools.lru_cache
def _rows(line: Line, n_queries: int) -> list[tuple[int, int]]:
    """How many of charges and of counts all sub-tiles have together, for each of the times that queries are taken."""
    found = []
    for row in range(0, n_queries, line.queries):
        stop, n, c = min(row + line.queries, n_queries), 0, 0
        for token in range(first_tile.py_func(line, row), line.start + stop, line.rows):
            lo, own, hi = seen_by.py_func(line, row, stop, token)
            n, c = n + hi - lo + (own - lo if token >= line.window else 0), c + hi - lo
        found.append((n, c))
    return found


def make_work(
    pulses: np.ndarray, line: Line, arrays: Arrays, between: Between, kept: Kept | None, *, keeps: bool
) -> Work:
    """Room for the queries that are taken at a time; `keeps`: for what a way back over all sub-tiles needs, if it is
    not kept anyway."""
    n_queries, size = pulses.shape[2:]
    most = min(line.queries, n_queries)
    n_key_terms, n_value_terms = arrays.key_weights.shape[1], arrays.value_weights.shape[2]
    n_stored = arrays.key_folds.shape[2] if len(arrays.key_folds) else n_key_terms
    n_left = n_key_terms * size + arrays.keys.shape[2] - n_stored * size

    def room(*shape: int) -> np.ndarray:
        return np.empty(shape, np.float32)

    if kept is None:
        n_all, c_all = np.max(_rows(line, n_queries), axis=0).tolist()
        keeps &= between.softmax or between.normalised
        n, c = n_all if keeps or between.softmax else 2 * most, c_all if keeps else most
        n_shares = 0 if not between.softmax else n if keeps else most
        kept = Kept(*(room(1, *shape) for shape in _shapes(n, n_shares, c, (n_queries, size), line.rows)))
    return Work(
        *kept,
        np.zeros((most, n_left), np.float32),
        room(2, most, line.rows),
        room(2, most),
        room(most, n_value_terms * size),
        room(most, size),
        room(most, size),
        room(most),
        room(most),
        room(line.rows, n_left),
        room(line.rows, n_value_terms * size),
        room(line.rows, max(n_key_terms, n_value_terms) * size),
        np.zeros(2, np.int64),
    )
