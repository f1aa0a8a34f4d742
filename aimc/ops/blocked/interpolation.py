"""A few nodes stand for a run of queries: how cells that leak at rates of their own are read by matrix products all
the same.

The charge of a cell is a smooth function of time, `P_sd(t) = Σ_j operand_j,sd·exp(−j·λ_sd·(t − s))`, and within a run
of queries it hardly bends. So it is evaluated, exactly and cell by cell, at K moments, the nodes, and interpolated in
time between them, `P_sd(t) ≈ Σ_k w_k(t)·P_sd(t_k)`. The weights belong to the query alone: `S_ts = Σ_k Σ_d
(w_k(t)·q_td)·P_sd(t_k)` is one product of inner size K·D, without any decay.

The nodes are Chebyshev's points of the run, half as long as m. There the interpolation of `exp(−b·x)`, x from −1 to
1, is in error by at most `b^K·e^b / (2^(K−1)·K!)` (Cauchy's remainder), and so the power j of a voltage by that with `b
= j·λ_sd·m`, relative to its value at the middle of the run. K is the least that keeps this below :data:`TOLERANCE`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from aimc.hardware import Hardware

TOLERANCE = 1e-7
"""Largest relative error of a power of a voltage, for the fastest-leaking of cells out to `RARE` standard deviations:
float32's rounding."""
RARE = 4.0
"""Standard deviations of the logarithm of τ; one cell in 30 000 lies beyond and is in error by more."""
MOST = 12
"""More nodes than this would cost more than they gain."""


class Nodes(NamedTuple):
    """K moments in a run of queries, at which cells are evaluated."""

    times: Tensor
    """In token times, `[K]`."""
    weights: Tensor
    """What each counts for a query, `[T', K]`."""


def nodes(start: int, stop: int, number: int, device: torch.device, dtype: torch.dtype) -> Nodes:
    """`number` nodes for the queries `start <= t < stop`."""
    middle, half = (start + stop - 1) / 2, max((stop - start - 1) / 2, 0.5)  # one query: any length will do
    points = [math.cos(math.pi * (2 * k + 1) / (2 * number)) for k in range(number)]
    at = (torch.arange(start, stop, device=device, dtype=torch.float64) - middle) / half
    weights = []
    for k, point in enumerate(points):  # Lagrange's polynomials
        factors = [(at - other) / (point - other) for i, other in enumerate(points) if i != k]
        weights.append(torch.stack(factors).prod(dim=0))
    times = torch.tensor(points, device=device, dtype=torch.float64) * half + middle
    return Nodes(times, torch.stack(weights, dim=1).to(dtype))


def nodes_needed(hardware: Hardware) -> int | None:
    """K for runs of `array.rows` queries; None: cells fade so much within a run that more than :data:`MOST` would be
    needed."""
    b = largest_fall(hardware, (hardware.array.rows - 1) / 2)
    for number in range(2, MOST + 1):
        if interpolation_error(b, number) <= TOLERANCE:
            return number
    return None


def largest_fall(hardware: Hardware, half: float) -> float:
    """b, by how much the exponent of the highest power falls within a half of the time, in token times, for the
    fastest-leaking of cells out to :data:`RARE` standard deviations."""
    fastest = hardware.leakage.decay_per_token * math.exp(min(RARE * hardware.noise.tau_spread, 100.0))
    return (len(hardware.cell.coefficients) - 1) * fastest * half


def interpolation_error(b: float, number: int) -> float:
    """Bound of the error of `exp(−b·x)` interpolated at `number` Chebyshev points of [−1, 1]."""
    if b > 50.0:  # the numbers below would overflow
        return math.inf
    return b**number * math.exp(b) / (2 ** (number - 1) * math.factorial(number))
