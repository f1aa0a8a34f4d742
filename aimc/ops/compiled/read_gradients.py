"""The way back through :mod:`aimc.ops.compiled.reads`: charges are computed again, then gradients sub-tile by sub-tile,
in one call that holds no lock."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from aimc.ops.compiled.products import multiply
from aimc.ops.compiled.reads import QUERIES, clip, first_tile, hide, put_charge, put_counts, put_left, seen_by

ZERO, ONE = np.float32(0.0), np.float32(1.0)


class Gathered(NamedTuple):
    """Gradients of what the arrays hold, added to what is there: terms from a certain column on, `[P, S, n'·D]`."""

    keys: np.ndarray
    values: np.ndarray


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def read_back(pulses, upstream, line, arrays, counter, noise, gathered, out):  # type: ignore[no-untyped-def]
    """From the gradient of what :func:`aimc.ops.compiled.reads.read` gives to that of its pulses and of the arrays.

    Args:
        pulses, line, arrays, counter, noise: as there.
        upstream: `[B, H, T', D]`.
        gathered: see there.
        out: of the pulses, `[B, H, T', D]`.
    """
    n_batch, n_heads, n_queries, size = pulses.shape
    most, n_terms = min(QUERIES, n_queries), arrays.key_weights.shape[1]
    left = np.zeros((most, arrays.keys.shape[2]), np.float32)
    of_left = np.empty((most, arrays.keys.shape[2]), np.float32)
    charge, widths = np.empty((2, most, line.rows), np.float32), np.empty((2, most, line.rows), np.float32)
    of_widths, terms = np.empty((most, line.rows), np.float32), np.empty((most, arrays.values.shape[2]), np.float32)
    counts, sums = np.empty((most, size), np.float32), np.empty((2, most), np.float32)
    nothing, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    skipped = n_terms * size - gathered.keys.shape[2], arrays.values.shape[2] - gathered.values.shape[2]
    for i in range(n_batch * n_heads):
        batch, head = i // n_heads, i % n_heads
        kv = head * arrays.offsets.shape[0] // n_heads
        p = batch * arrays.offsets.shape[0] + kv
        for row in range(0, n_queries, QUERIES):
            stop = min(row + QUERIES, n_queries)
            put_left(pulses[batch, head, row:stop], arrays, row, left)
            of_left[: stop - row] = ZERO
            for token in range(first_tile(line, row), line.start + stop, line.rows):
                lo, own, hi = seen_by(line, token, row, stop)
                n_parts = 2 if token >= line.window and own > lo else 1  # the second: the oldest tokens in the sub-tile
                for part in range(n_parts):
                    m, then = (own if part else hi) - lo, token - part * line.window
                    tile = slice(then - line.first, then - line.first + line.rows)
                    read_by = left[lo - row : lo - row + m]
                    put_charge(read_by, arrays.keys[p, tile], noise, i, lo, then, charge[part, :m])
                    hide(charge[part, :m], own - lo, line, lo, then, arrays.padding[batch])
                    clip(charge[part, :m], widths[part, :m], sums[part])
                    multiply(widths[part, :m], arrays.values[p, tile], one if part else nothing, terms[:m])
                    if part:
                        sums[0, :m] += sums[1, :m]
                m = hi - lo
                put_counts(terms[:m], sums[0], arrays, line, noise, i, head, kv, lo, token, counts[:m])
                back_through_counter(
                    upstream[batch, head, lo:hi], arrays, counter, head, lo, counts[:m], sums[0], terms
                )
                for part in range(n_parts):
                    m, then = (own if part else hi) - lo, token - part * line.window
                    tile = slice(then - line.first, then - line.first + line.rows)
                    multiply(terms[:m], arrays.values[p, tile].T, nothing, of_widths[:m])
                    multiply(widths[part, :m].T, terms[:m, skipped[1] :], one, gathered.values[p, tile])
                    back_through_clip(charge[part, :m], sums[0], of_widths[:m])
                    read_by = left[lo - row : lo - row + m, skipped[0] : n_terms * size]
                    multiply(of_widths[:m].T, read_by, one, gathered.keys[p, tile])
                    multiply(of_widths[:m], arrays.keys[p, tile], one, of_left[lo - row : lo - row + m])
            back_to_pulses(of_left, arrays, row, out[batch, head, row:stop])


@numba.njit(cache=True, fastmath=True, error_model="numpy")
def back_through_counter(upstream, arrays, counter, head, row, counts, sums, terms):  # type: ignore[no-untyped-def]
    """From the gradient of a head's sum, `[T', D]`, to that of the terms, `[T', n·D]`, and of the widths' sums, `[T']`,
    straight through inside the counter's range."""
    size, n_terms, constant = counts.shape[1], arrays.value_weights.shape[2], arrays.constants[head]
    for m in range(len(counts)):
        total = ZERO
        for d in range(size):
            inside = counts[m, d] >= counter.v_min and counts[m, d] <= counter.v_max
            grad = upstream[m, d] if inside else ZERO
            counts[m, d] = grad
            total += grad
        sums[m] = constant * total
        for j in range(n_terms):
            weight = arrays.value_weights[head, row + m, j]
            for d in range(size):
                terms[m, j * size + d] = weight * counts[m, d]


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
