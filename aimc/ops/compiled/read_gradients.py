"""The way back through :mod:`aimc.ops.compiled.reads`: charges are computed again where they are not kept, then
gradients sub-tile by sub-tile, in one call that holds no lock.

Where the digital sum is divided, its gradient is known only behind all sub-tiles: then what they have read is kept for
the queries that are taken at a time. Elsewhere a sub-tile is read and gone back through before the next.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from aimc.ops.compiled.activations import back_through_clip, back_through_softmax, clip, put_pulses
from aimc.ops.compiled.folds import folded, gather
from aimc.ops.compiled.once import BOOL, F1, F2, F4, INT, NOTHING, once
from aimc.ops.compiled.operands import (
    ARRAYS,
    BETWEEN,
    COUNTER,
    GATHERED,
    LINE,
    NOISE,
    PLACE,
    WORK,
    Arrays,
    Between,
    Counter,
    Gathered,
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
from aimc.ops.compiled.reads import put_left, put_tile, take

ZERO, ONE = np.float32(0.0), np.float32(1.0)


@once(NOTHING, WORK, BETWEEN, INT, F2, F1, F2, fastmath=True)
def back_through_division(work, between, head, total, divisor, upstream):  # type: ignore[no-untyped-def]
    """From the gradient of the outputs to that of the digital sums and of their divisors."""
    is_divided, least = between.softmax or between.normalised, between.leasts[head]
    for m in range(len(upstream)):
        if not is_divided:
            for d in range(upstream.shape[1]):
                work.of_total[m, d] = upstream[m, d]
            continue
        factor, of_factor = ONE / max(divisor[m], least), ZERO
        for d in range(upstream.shape[1]):
            of_factor += upstream[m, d] * total[m, d]
            work.of_total[m, d] = upstream[m, d] * factor
        work.of_divisor[m] = -of_factor * factor * factor if divisor[m] >= least else ZERO


@once(NOTHING, WORK, LINE, ARRAYS, COUNTER, BETWEEN, PLACE, INT, fastmath=True)
def back_through_counter(work, line, arrays, counter, between, at, c):  # type: ignore[no-untyped-def]
    """From the gradient of a head's sum, `[T', D]`, to that of the terms and of the sums of the widths, each in the
    place of the number itself, straight through inside the counter's range, whose numbers begin at row `c`."""
    k = at.i % len(work.charge)
    counts, grads = work.counts[k, c : c + at.hi - at.lo], work.of_counts
    weights, terms = arrays.value_weights[at.head, at.lo : at.hi], work.terms
    size, n_terms, constant = counts.shape[1], weights.shape[1], arrays.constants[at.head]
    upstream = work.of_total[at.lo - at.row : at.hi - at.row]
    for m in range(len(upstream)):
        total = ZERO
        for d in range(size):
            inside = counts[m, d] >= counter.v_min and counts[m, d] <= counter.v_max
            grad = upstream[m, d] if inside else ZERO
            grads[m, d] = grad
            total += grad
        work.sums[0, m] = constant * total
        for j in range(n_terms):
            weight = weights[m, j]
            for d in range(size):
                terms[m, j * size + d] = weight * grads[m, d]
    if between.normalised:
        gain = between.sum_gains[at.kv, (at.token - line.first) // line.rows]
        for m in range(len(upstream)):
            charge = work.pulses[k, c + m]
            if charge >= between.sum_counter.v_min and charge <= between.sum_counter.v_max:
                work.sums[0, m] += work.of_divisor[at.lo - at.row + m] * gain


@once(NOTHING, WORK, LINE, ARRAYS, BETWEEN, GATHERED, PLACE, INT, F2, F2, BOOL, fastmath=True)
def back_through_arrays(work, line, arrays, between, gathered, at, n, of_widths, of_left, is_kept):  # type: ignore[no-untyped-def]
    """From the gradient of the terms to those of what the arrays hold and of what met the first; charges begin at row
    `n`. What is kept are they and shares: pulses are made of them again."""
    nothing, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    size, k = work.of_total.shape[1], at.i % len(work.charge)
    for part in range(at.n_parts):
        m, _, tile = part_of(line, at, part)
        queries, of_charge = slice(at.lo - at.row, at.lo - at.row + m), of_widths[:m]
        charge, widths, terms = work.charge[k, n : n + m], work.widths[part, :m], work.terms[:m]
        if between.softmax:
            put_pulses(work.shares[k, n : n + m], between.pulse, widths, work.sums[1])
        elif is_kept:
            clip(charge, between.thresholds[at.head], widths, work.sums[1])
        cells = folded(arrays.values[at.p, tile], arrays.value_folds, at, line, work.values)
        multiply(terms, cells.T, nothing, of_charge)
        of_cells = gathered.values[at.p, tile]
        gather(widths.T, terms, gathered.first_of_values, arrays.value_folds, at, line, work.of_cells, one, of_cells)
        if between.softmax:
            gains, of_gains = between.gains[at.i, at.lo : at.hi], gathered.gains[at.i, at.lo : at.hi]
            shares, of_divisor = work.shares[k, n : n + m], work.of_divisor[queries]
            back_through_softmax(
                charge, shares, gains, between.score, between.pulse, work.sums[0], of_divisor, of_charge, of_gains
            )
        else:
            of_head = back_through_clip(charge, between.thresholds[at.head], work.sums[0], of_charge)
            gathered.thresholds[at.head] -= of_head
        left, of_cells = work.left[queries, : arrays.key_weights.shape[1] * size], gathered.keys[at.p, tile]
        gather(of_charge.T, left, gathered.first_of_keys, arrays.key_folds, at, line, work.of_cells, one, of_cells)
        cells = folded(arrays.keys[at.p, tile], arrays.key_folds, at, line, work.keys)
        multiply(of_charge, cells, one, of_left[queries])
        n += m


@once(NOTHING, F2, ARRAYS, INT, F2, fastmath=True)
def back_to_pulses(of_left, arrays, row, out):  # type: ignore[no-untyped-def]
    """The inverse of :func:`aimc.ops.compiled.reads.put_left` for gradients."""
    size, n_terms = out.shape[1], arrays.key_weights.shape[1]
    for m in range(len(out)):
        number = of_left[m, n_terms * size] if arrays.n_constant else ZERO
        for d in range(size):
            out[m, d] = number
        for j in range(n_terms):
            weight = arrays.key_weights[row + m, j]
            for d in range(size):
                out[m, d] += weight * of_left[m, j * size + d]


@numba.njit(
    types.void(WORK, F2, F2, F4, F4, LINE, ARRAYS, COUNTER, NOISE, BETWEEN, GATHERED, F4, BOOL),
    nogil=True,
    cache=True,
    error_model="numpy",
)
def _read_back(  # type: ignore[no-untyped-def]
    work, of_left, of_widths, pulses, upstream, line, arrays, counter, noise, between, gathered, out, has_been_taken
):
    n_batch, n_heads, n_queries, _ = pulses.shape
    is_kept = has_been_taken or between.softmax or between.normalised
    for batch in range(n_batch):
        for head in range(n_heads):
            n, c, k = 0, 0, (batch * n_heads + head) % len(work.charge)
            for row in range(0, n_queries, line.queries):
                stop = min(row + line.queries, n_queries)
                put_left(pulses[batch, head, row:stop], arrays, row, work.left)
                if not has_been_taken:
                    n, c = 0, 0
                    work.used[:] = 0
                    if is_kept:
                        take(work, line, arrays, counter, noise, between, n_heads, batch, head, row, stop, True)
                total, divisor = work.total[k, row:stop], work.divisor[k, row:stop]
                back_through_division(work, between, head, total, divisor, upstream[batch, head, row:stop])
                of_left[: stop - row] = ZERO
                for token in range(first_tile(line, row), line.start + stop, line.rows):
                    at = place(line, arrays, n_heads, batch, head, row, stop, token)
                    if not is_kept:
                        put_tile(work, line, arrays, noise, between, at, 0, 0, True)
                    back_through_counter(work, line, arrays, counter, between, at, c)
                    back_through_arrays(work, line, arrays, between, gathered, at, n, of_widths, of_left, is_kept)
                    n += n_charges(at) if is_kept else 0
                    c += at.hi - at.lo if is_kept else 0
                back_to_pulses(of_left, arrays, row, out[batch, head, row:stop])


def read_back(
    pulses: np.ndarray,
    upstream: np.ndarray,
    line: Line,
    arrays: Arrays,
    counter: Counter,
    noise: ReadNoise,
    between: Between,
    gathered: Gathered,
    out: np.ndarray,
    kept: Kept | None = None,
) -> None:
    """From the gradient of what :func:`aimc.ops.compiled.reads.read` gives to that of its pulses and of the arrays.

    Args:
        pulses, line, arrays, counter, noise, between: as there.
        upstream: `[B, H, T', D]`.
        gathered: see there.
        out: of the pulses, `[B, H, T', D]`.
        kept: what `read` has kept.
    """
    work = make_work(pulses, line, arrays, between, kept, keeps=True)
    room = np.empty_like(work.left), np.empty_like(work.widths[0])
    _read_back(work, *room, pulses, upstream, line, arrays, counter, noise, between, gathered, out, kept is not None)
