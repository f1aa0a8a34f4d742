"""Errors of a column's readout circuit: gain and offset, frozen in the chip.

A column of the first array is a slot (one charge-to-pulse circuit), of the second a sub-tile's feature (one counter).
"""

from __future__ import annotations

from torch import Tensor


def with_columns(x: Tensor, gain: Tensor | None, offset: Tensor | None) -> Tensor:
    """Relative charge `x` as columns with a relative gain error and an offset, in full scales, give it; None: none."""
    x = x if gain is None else x * (1.0 + gain)
    return x if offset is None else x + offset
