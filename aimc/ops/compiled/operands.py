"""What the compiled reads are given, and the room in which they work."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from aimc.ops.compiled.once import BOOL, F1, F2, F3, FLOAT, HIDDEN2, INT, WORDS3, type_of


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
    sum_full_scale: float
    """Pulses that fill it."""
    sum_gains: np.ndarray
    """One and the gain errors of these counters, `[H_kv, J]`."""
    sum_offsets: np.ndarray
    """Their offsets, `[H_kv, J]`."""
    least: float
    """What the digital sum is divided by at least."""


class ReadNoise(NamedTuple):
    """Standard deviations, 0: none; and the states of the two lanes of every query, uint32 `[2, B·H, T']`."""

    qk: float
    of_qk: np.ndarray
    av: float
    of_av: np.ndarray


class Work(NamedTuple):
    """What the queries that are taken at a time need. N places hold charges: of one sub-tile, or, where the digital sum
    is divided and the whole of it must be known first, of all; a sub-tile that is being overwritten needs two, the
    second for its oldest tokens."""

    left: np.ndarray
    """What meets the first array, `[T', K·D + e]`."""
    charge: np.ndarray
    """Of a sub-tile's columns in full scales, `[N, T', R]`."""
    shares: np.ndarray
    """Of the softmax, before the DAC, `[N, T', R]`; N = 0: none, 1: they are not kept."""
    widths: np.ndarray
    """Pulses of a sub-tile, `[2, T', R]`."""
    sums: np.ndarray
    """Of these, `[2, T']`."""
    terms: np.ndarray
    """Charge of its second array, term by term, `[T', K·D]`."""
    counts: np.ndarray
    """The same in full scales before the counter, of one or of all sub-tiles, `[J, T', D]`."""
    pulses: np.ndarray
    """What the normaliser columns' counters are given, `[J, T']`."""
    total: np.ndarray
    """Digital sum, `[T', D]`; on the way back its gradient."""
    divisor: np.ndarray
    """Sum of what divides, `[T']`."""
    of_divisor: np.ndarray
    """Its gradient, `[T']`."""
    largest: np.ndarray
    """Logit, `[T']`."""
    keys: np.ndarray
    """A sub-tile's cells folded, `[R, K·D + e]`."""
    values: np.ndarray
    """Likewise, `[R, K·D]`."""
    of_cells: np.ndarray
    """Their gradient, `[R, K·D]`."""


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
BETWEEN = type_of(Between, F1, BOOL, F2, COUNTER, COUNTER, BOOL, COUNTER, FLOAT, F2, F2, FLOAT)
NOISE = type_of(ReadNoise, FLOAT, WORDS3, FLOAT, WORDS3)
WORK = type_of(Work, F2, *(3 * [F3]), F2, F2, F3, F2, F2, F1, F1, F1, *(3 * [F2]))
GATHERED = type_of(Gathered, F3, INT, F3, INT, F1, F2)
PLACE = type_of(Place, *(11 * [INT]))


def make_work(pulses: np.ndarray, line: Line, arrays: Arrays, between: Between, keeps: bool) -> Work:
    """Room for the queries that are taken at a time; `keeps`: for what a way back over all sub-tiles needs."""
    most, size = min(line.queries, pulses.shape[2]), pulses.shape[3]
    n_key_terms, n_value_terms = arrays.key_weights.shape[1], arrays.value_weights.shape[2]
    n_stored = arrays.key_folds.shape[2] if len(arrays.key_folds) else n_key_terms
    n_left = n_key_terms * size + arrays.keys.shape[2] - n_stored * size
    n_tiles = min(line.window, line.start + pulses.shape[2]) // line.rows + most // line.rows + 3
    n_all = n_tiles + most // line.rows + 2
    is_divided = between.softmax or between.normalised
    n_charges = n_all if between.softmax or (keeps and is_divided) else 2
    n_counts = n_tiles if keeps and is_divided else 1
    n_shares = 0 if not between.softmax else n_all if keeps else 1
    return Work(
        np.zeros((most, n_left), np.float32),
        np.empty((n_charges, most, line.rows), np.float32),
        np.empty((n_shares, most, line.rows), np.float32),
        np.empty((2, most, line.rows), np.float32),
        np.empty((2, most), np.float32),
        np.empty((most, n_value_terms * size), np.float32),
        np.empty((n_counts, most, size), np.float32),
        np.empty((n_counts, most), np.float32),
        np.empty((most, size), np.float32),
        np.empty(most, np.float32),
        np.empty(most, np.float32),
        np.empty(most, np.float32),
        np.empty((line.rows, n_left), np.float32),
        np.empty((line.rows, n_value_terms * size), np.float32),
        np.empty((line.rows, max(n_key_terms, n_value_terms) * size), np.float32),
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
