"""The way back through :mod:`aimc.ops.compiled.reads`: charges are computed again, then gradients sub-tile by sub-tile,
in one call that holds no lock."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from aimc.ops.compiled.products import multiply
from aimc.ops.compiled.reads import QUERIES, first_tile, make_work, part_of, place, put_counts, put_left

ZERO, ONE = np.float32(0.0), np.float32(1.0)


class Gathered(NamedTuple):
    """Gradients of what the arrays hold, added to what is there: of neighbouring terms, `[P, S, n'·D]`, and the column
    of the first."""

    keys: np.ndarray
    first_of_keys: int
    values: np.ndarray
    first_of_values: int


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def read_back(pulses, upstream, line, arrays, counter, noise, gathered, out):  # type: ignore[no-untyped-def]
    """From the gradient of what :func:`aimc.ops.compiled.reads.read` gives to that of its pulses and of the arrays.

    Args:
        pulses, line, arrays, counter, noise: as there.
        upstream: `[B, H, T', D]`.
        gathered: see there.
        out: of the pulses, `[B, H, T', D]`.
    """
    n_batch, n_heads, n_queries, _ = pulses.shape
    work = make_work(pulses, line, arrays)
    of_left, of_widths = np.empty_like(work.left), np.empty_like(work.widths[0])
    for batch in range(n_batch):
        for head in range(n_heads):
            for row in range(0, n_queries, QUERIES):
                stop = min(row + QUERIES, n_queries)
                put_left(pulses[batch, head, row:stop], arrays, row, work.left)
                of_left[: stop - row] = ZERO
                for token in range(first_tile(line, row), line.start + stop, line.rows):
                    at = place(line, arrays, n_heads, batch, head, row, stop, token)
                    put_counts(work, line, arrays, noise, at)
                    back_through_counter(upstream[batch, head, at.lo : at.hi], arrays, counter, at, work)
                    back_through_arrays(work, line, arrays, gathered, at, of_widths, of_left)
                back_to_pulses(of_left, arrays, row, out[batch, head, row:stop])


@numba.njit(cache=True, fastmath=True, error_model="numpy")
def back_through_counter(upstream, arrays, counter, at, work):  # type: ignore[no-untyped-def]
    """From the gradient of a head's sum, `[T', D]`, to that of the counts, of the terms and of the sums of the widths,
    each in the place of the number itself, straight through inside the counter's range."""
    counts, weights, terms = work.counts[: len(upstream)], arrays.value_weights[at.head, at.lo : at.hi], work.terms
    size, n_terms, constant = counts.shape[1], weights.shape[1], arrays.constants[at.head]
    for m in range(len(counts)):
        total = ZERO
        for d in range(size):
            inside = counts[m, d] >= counter.v_min and counts[m, d] <= counter.v_max
            grad = upstream[m, d] if inside else ZERO
            counts[m, d] = grad
            total += grad
        work.sums[0, m] = constant * total
        for j in range(n_terms):
            weight = weights[m, j]
            for d in range(size):
                terms[m, j * size + d] = weight * counts[m, d]


@numba.njit(cache=True, fastmath=True, error_model="numpy")
def back_through_arrays(work, line, arrays, gathered, at, of_widths, of_left):  # type: ignore[no-untyped-def]
    """From the gradient of the terms to those of what the arrays hold and of what met the first."""
    nothing, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    of_keys = slice(gathered.first_of_keys, gathered.first_of_keys + gathered.keys.shape[2])
    of_values = slice(gathered.first_of_values, gathered.first_of_values + gathered.values.shape[2])
    for part in range(at.n_parts):
        m, _, tile = part_of(line, at, part)
        queries, of_charge = slice(at.lo - at.row, at.lo - at.row + m), of_widths[:m]
        multiply(work.terms[:m], arrays.values[at.p, tile].T, nothing, of_charge)
        multiply(work.widths[part, :m].T, work.terms[:m, of_values], one, gathered.values[at.p, tile])
        back_through_clip(work.charge[part, :m], work.sums[0], of_charge)
        multiply(of_charge.T, work.left[queries, of_keys], one, gathered.keys[at.p, tile])
        multiply(of_charge, arrays.keys[at.p, tile], one, of_left[queries])


@numba.njit(cache=True, fastmath=True, error_model="numpy")
def back_through_clip(charge, of_sums, grad):  # type: ignore[no-untyped-def]
    """From the gradient of the widths, and of their sums, to that of the charge, in place."""
    for m in range(charge.shape[0]):
        of_sum = of_sums[m]
        for s in range(charge.shape[1]):
            passes = charge[m, s] >= ZERO and charge[m, s] <= ONE
            grad[m, s] = grad[m, s] + of_sum if passes else ZERO


@numba.njit(cache=True, fastmath=True, error_model="numpy")
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
