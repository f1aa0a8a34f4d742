"""Parts of one computation on as many threads as PyTorch uses."""

from __future__ import annotations

from collections.abc import Callable

import torch

from aimc.ops.threads import side_by_side

LEAST = 2**15
"""Numbers for which a thread of its own pays."""


def in_parts(compute: Callable[[int, int], None], n_rows: int, row_length: int) -> None:
    """Call `compute(start, stop)` for all rows, in parts side by side; what it runs must not hold Python's lock."""
    n_parts = min(torch.get_num_threads(), max(n_rows * row_length // LEAST, 1), n_rows)
    if n_parts < 2:
        return compute(0, n_rows)
    bounds = [n_rows * i // n_parts for i in range(n_parts + 1)]
    side_by_side(lambda i: compute(*bounds[i : i + 2]), range(n_parts))
    return None
