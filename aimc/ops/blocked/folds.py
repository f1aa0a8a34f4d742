"""Fewer terms for a few hundred queries: powers of a decay that hardly differ over so short a time.

What n powers of the decay make of any cell, as a function of time, lies in a space of n dimensions. Over the queries
that are taken at a time the smallest of its singular values is often below float32's rounding (with the published
retention and 256 queries the fourth is 7e-8 of the whole), and so K = n − 1 or fewer functions do: the query has K
weights in place of n, and the n terms of each cell are folded into K by one small matrix for all of them.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

TOLERANCE = 2e-7
"""Largest error of a cell's charge that is left out, relative to the largest that a cell may have: float32's
rounding."""
MOST_CHANGE = 2.0
"""Of an exponent within the queries, beyond which nothing would be left out."""
LEAST_SHARE = 0.01
"""Of the largest term, what each is taken to have at least: mismatch gives terms that the nominal cell has not."""


class Fold(NamedTuple):
    """Of `length` queries, whatever their place in the text."""

    weights: np.ndarray
    """Of the queries, `[length, K]`."""
    matrix: np.ndarray
    """From terms at the middle of these queries to K, `[K, n]`."""


@functools.lru_cache(256)
def fold(powers: tuple[int, ...], sizes: tuple[float, ...], decay_per_token: float, length: int) -> Fold | None:
    """The fewest functions that stand for powers of the decay; None: no fewer than there are.

    Args:
        powers: of the decay, n of them.
        sizes: of the terms that they multiply, at most.
        decay_per_token: λ.
        length: queries that are taken at a time.
    """
    if max(powers) * decay_per_token * length > MOST_CHANGE:
        return None
    most = np.maximum(np.abs(sizes), LEAST_SHARE * np.max(np.abs(sizes)))
    times = np.arange(length) - (length - 1) / 2
    functions = np.exp(-decay_per_token * times[:, None] * np.array(powers)) * most  # [length, n]
    left, values, right = np.linalg.svd(functions, full_matrices=False)
    for n_kept in range(1, len(powers)):
        kept = (left[:, :n_kept] * values[:n_kept]) @ right[:n_kept]
        if np.abs(functions - kept).sum(axis=1).max() <= TOLERANCE * most.sum():
            scale = np.sqrt(length)  # weights about one
            matrix = values[:n_kept, None] * right[:n_kept] / most / scale
            return Fold(left[:, :n_kept] * scale, matrix)
    return None
