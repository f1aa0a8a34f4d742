"""Weighted linear least squares, with a rising result where that is asked for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from aimc.circuit.errors import CircuitError
from aimc.circuit.typing import FloatArray


class Solution(NamedTuple):
    """What fits best."""

    coefficients: FloatArray
    """`[P]`."""
    standard_errors: FloatArray
    """`[P]`, for independent errors whose size the residuals tell; NaN where the monotone constraint holds the
    solution."""


def solve(
    basis: FloatArray, y: FloatArray, weights: FloatArray | None = None, slopes: FloatArray | None = None
) -> Solution:
    """Coefficients c that make `basis @ c` closest to `y`.

    Args:
        basis: `[N, P]`.
        y: `[N]`.
        weights: `[N]`, of the squared errors, not negative; None: all alike.
        slopes: `[M, P]`; `slopes @ c >= 0` is demanded; None: nothing is.

    Raises:
        CircuitError: the points do not determine the coefficients, or no solution rises everywhere.
    """
    root = np.ones(len(y)) if weights is None else np.sqrt(weights)
    norms = np.linalg.norm(basis * root[:, None], axis=0)
    norms[norms == 0] = 1.0
    scaled, target = basis * root[:, None] / norms, y * root
    solution, _, rank, _ = np.linalg.lstsq(scaled, target, rcond=1e-12)
    if rank < basis.shape[1]:
        raise CircuitError(
            f"{len(y)} points determine {rank} of {basis.shape[1]} coefficients: too few different voltages for this"
            " degree; measure more, or lower the degree"
        )
    freedom = max(len(y) - basis.shape[1], 1)
    variance = float(np.sum((scaled @ solution - target) ** 2)) / freedom
    errors = np.sqrt(np.diag(np.linalg.inv(scaled.T @ scaled)) * variance) / norms
    if slopes is not None and (slopes @ (solution / norms)).min() < 0:
        solution = _constrained(scaled, target, slopes / norms)
        errors = np.full_like(errors, np.nan)
    return Solution(solution / norms, errors)


def _constrained(basis: FloatArray, y: FloatArray, slopes: FloatArray) -> FloatArray:
    """Least squares under `slopes @ c >= 0`, as a least-distance problem solved by non-negative least squares.

    Source: C. Lawson, R. Hanson, "Solving least squares problems" (1974), chapter 23: with basis = QR and z = Rc − Qᵀy
        the problem is
    the shortest z with G·z >= h, G = slopes·R⁻¹, h = −G·Qᵀy.
    """
    q, r = np.linalg.qr(basis)
    g = np.linalg.solve(r.T, slopes.T).T
    g /= np.linalg.norm(g, axis=1, keepdims=True).clip(min=np.finfo(float).tiny)
    h = -g @ (q.T @ y)
    system, target = np.vstack([g.T, h]), np.append(np.zeros(basis.shape[1]), 1.0)
    multipliers, distance = nnls(system, target)
    residual = system @ multipliers - target
    if distance < 1e-12 or residual[-1] == 0:
        raise CircuitError("no polynomial of this degree rises everywhere; try another degree, or monotone=False")
    return np.linalg.solve(r, -residual[:-1] / residual[-1] + q.T @ y)
