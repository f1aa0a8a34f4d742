"""The gain that a head's output has by how many tokens its query sees."""

from __future__ import annotations

import torch
from torch import Tensor


def tokens_seen(n_tokens: int, window: int, before: Tensor | None, key_padding: Tensor | None, like: Tensor) -> Tensor:
    """How many tokens each of T queries sees, its own included and padding not: `[B or 1, T]`, at most the window.

    Args:
        n_tokens: T.
        window: W.
        before: tokens of each text before these, `[B]`; None: none.
        key_padding: bool `[B, T]`, True where padding; None: none.
        like: for the device, and the dtype if that is larger than float32.
    """
    if key_padding is None:
        seen = torch.arange(1, n_tokens + 1, device=like.device)[None]
    else:
        seen = (~key_padding).cumsum(dim=1)
        if before is None and n_tokens > window:  # less what lies behind the window
            seen = torch.cat([seen[:, :window], seen[:, window:] - seen[:, :-window]], dim=1)
    seen = seen if before is None else seen + before[:, None]
    return seen.clamp(1, window).to(torch.promote_types(like.dtype, torch.float32))


def position_gain(exponent: Tensor, seen: Tensor, window: int) -> Tensor:
    """`(n/W)^−γ` of heads with exponents γ `[H]` for queries that see n tokens `[B, T]`: `[B, H, T, 1]`."""
    return torch.exp(-exponent.to(seen.dtype)[:, None] * (seen / window).log()[:, None])[..., None]
