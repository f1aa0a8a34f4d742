"""A converter in one pass: clip, scale, round, scale back, clip; bit for bit what PyTorch makes in five."""

from __future__ import annotations

import numba
import numpy as np
from torch import Tensor

from aimc.ops.compiled.operands import counter_of
from aimc.ops.compiled.rows import rows_of
from aimc.ops.compiled.threads import in_parts


def to_levels(x: Tensor, v_min: float, v_max: float, steps: float, zero: float) -> bool:
    """Replace each number by the nearest level `zero + i/steps` inside the range; halves go to the even i.

    Args:
        x: float32 `[…, S]` on a CPU; changed in place.
        v_min, v_max: range.
        steps: levels per unit.
        zero: where they count from.

    Returns:
        Whether that was done: rows that are not evenly apart in memory are left as they are.
    """
    rows = rows_of(x)
    if rows is None:
        return False
    numbers = rows.numpy()
    counter = counter_of(v_min, v_max, steps, zero, clips=True)
    in_parts(lambda start, stop: _to_levels(numbers[start:stop], counter), len(numbers), numbers.shape[1])
    return True


@numba.njit(inline="always")
def counted(x, counter):  # type: ignore[no-untyped-def]
    """Clip, and take the nearest level, bit for bit that of PyTorch."""
    level = min(max(x, counter.v_min), counter.v_max)
    if counter.steps:
        # a difference of zero changes no bit
        level = np.rint((level - counter.zero) * counter.steps) / counter.steps + counter.zero
        level = min(max(level, counter.v_min), counter.v_max) if counter.clips else level
    return level


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _to_levels(x, counter):  # type: ignore[no-untyped-def]
    for row in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[row, i] = counted(x[row, i], counter)
