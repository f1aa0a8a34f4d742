"""Cells that leak at rates of their own, for the Triton kernels: polynomials in time.

A cell read at the time t, s_0 the first position of its block, has the charge `Σ_j κ_j·u^j·exp(−jλ_sd·(t − s))`, where
`t − s_0` goes from 0 to the L tokens for which a query sees the block, of which h is half. In `x = (t − s_0)/h − 1`,
from −1 to 1, that is `Σ_m x^m·F_m,sd` with

    F_m,sd = Σ_j κ_j·u^j·exp(−jλ_sd·(s_0 + h − s)) · (−jλ_sd·h)^m / m!

So x takes the place that the decay has where all cells leak alike, and the order m that of its power: the kernels
behind are the same. Left out is what begins with order M, at most `b^M·e^b / M!` of a power's charge in the middle,
`b = jλ_sd·h`.
"""

from __future__ import annotations

import math

import torch

from aimc.hardware import Hardware
from aimc.ops.blocked.interpolation import largest_fall

TOLERANCE = {torch.float32: 1e-6}
"""Largest relative error of a power of a voltage, for the fastest-leaking of cells out to `RARE` standard
deviations."""
OF_HALF = 5e-4
"""The same with two-byte operands, well below their rounding."""
MOST = 10
"""More orders than this would cost more than they gain."""


def half_length(hardware: Hardware, n_tokens: int) -> float:
    """h, half of the tokens for which a query sees a block, from its first position on."""
    rows = hardware.array.rows
    return max(min(hardware.array.window + rows, -(-n_tokens // rows) * rows) - 1, 1) / 2


def orders_needed(hardware: Hardware, n_tokens: int, dtype: torch.dtype) -> int | None:
    """M, the least for which the error is tolerable; 0: all cells leak alike; None: more than :data:`MOST` would be
    needed.

    Args:
        hardware: the machine.
        n_tokens: T, of a call.
        dtype: of the operands.
    """
    if not hardware.leaks_apart:
        return 0
    b = largest_fall(hardware, half_length(hardware, n_tokens))
    tolerance = TOLERANCE.get(dtype, OF_HALF)
    if b > 50.0:  # the numbers below would overflow
        return None
    fitting = (m for m in range(2, MOST + 1) if b**m * math.exp(b) <= tolerance * math.factorial(m))
    return next(fitting, None)
