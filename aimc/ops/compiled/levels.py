"""A converter in one pass: clip, scale, round, scale back, clip; bit for bit what PyTorch makes in five."""

from __future__ import annotations

import numba
import numpy as np
from torch import Tensor

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
    settings = [np.float32(value) for value in (v_min, v_max, steps, zero)]
    in_parts(lambda start, stop: _to_levels(numbers[start:stop], *settings), len(numbers), numbers.shape[1])
    return True


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _to_levels(x, v_min, v_max, steps, zero):  # type: ignore[no-untyped-def]
    for row in range(x.shape[0]):
        for i in range(x.shape[1]):
            clipped = min(max(x[row, i], v_min), v_max)
            level = np.rint((clipped - zero) * steps) / steps + zero  # a difference of zero changes no bit
            x[row, i] = min(max(level, v_min), v_max)
