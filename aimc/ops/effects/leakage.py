"""Leakage: a stored voltage relaxes exponentially with its age."""

from __future__ import annotations

import torch
from torch import Tensor


def age(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """Tokens between write and read, `max(t − s, 0)`: integers `[T, S]` from positions `[T]` and `[S]`.

    A key of the future has not been written; it gets age 0 so that no decay factor can overflow.
    """
    return (query_positions[:, None] - key_positions[None, :]).clamp(min=0)


def own_decay(rates: Tensor, ages: Tensor) -> Tensor:
    """`exp(−λ_sd·age)` of cells that leak at rates of their own.

    Args:
        rates: λ of each cell per token time, `[H, S, D]`.
        ages: of the tokens in them, `[..., S]`, floating point.

    Returns:
        Factors in (0, 1]: `[H, S, D]` for ages `[S]`, `[H, T, S, D]` for ages `[T, S]`.
    """
    return torch.exp(-(rates if ages.ndim == 1 else rates[:, None]) * ages.to(rates.dtype)[..., None])


def decay_factor(ages: Tensor, decay_per_token: float, *, power: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """`exp(−power·λ·age)`: by how much the given power of a stored voltage about rest has fallen.

    Args:
        ages: ages in tokens, any shape.
        decay_per_token: λ = token time / τ, dimensionless.
        power: power of the voltage, 1 for the voltage itself.
        dtype: floating dtype of the result.

    Returns:
        Factors in (0, 1], the shape of `ages`.
    """
    return torch.exp(-power * decay_per_token * ages.to(dtype))
