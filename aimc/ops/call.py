"""One call of the operator."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from aimc.ops.heads import Heads
from aimc.ops.scaling import Scaling


class Call(NamedTuple):
    """What every implementation is given."""

    query: Tensor
    """`[B, H, T, D]`, before its scaler if there is one."""
    key: Tensor
    """`[B, H_kv, T, D]`, likewise."""
    value: Tensor
    """`[B, H_kv, T, D]`, likewise."""
    scaling: Scaling
    """Scalers that are still to be applied."""
    key_padding: Tensor | None
    """Bool `[B, T]`, True where a token is padding."""
    heads: Heads
    """Sizes, hardware, chip and noise."""
