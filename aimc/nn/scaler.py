"""The trainable bridge between a model's numbers and the arrays' units: one gain and one offset a head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from aimc.ops.scaling import Affine, scaled


def kept_precise(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What moves or casts a module's tensors, without the cast to half precision."""

    def kept(x: Tensor) -> Tensor:
        moved = fn(x)
        return x.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

    return kept


class AffineScaler(nn.Module):
    """`x' = a·x + b` per head, in float32 whatever the surrounding precision.

    Args:
        n_heads: H.
        scale: first value of every a.
        offset: first value of every b, in the unit of the output.
    """

    def __init__(self, n_heads: int, scale: float = 1.0, offset: float = 0.0):
        super().__init__()
        self.scale = nn.Parameter(torch.full((n_heads,), float(scale)))  # [H]
        self.offset = nn.Parameter(torch.full((n_heads,), float(offset)))  # [H]

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, T, D]` to the same shape, in float32 (float64 for float64)."""
        with torch.autocast(x.device.type, enabled=False):
            return scaled(x, self.affine)

    @property
    def affine(self) -> Affine:
        """Its parameters, for an operator that applies them itself."""
        return Affine(self.scale, self.offset)

    def extra_repr(self) -> str:
        return f"n_heads={len(self.scale)}"
