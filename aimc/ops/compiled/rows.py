"""Tensors as rows."""

from __future__ import annotations

from torch import Tensor


def rows_of(x: Tensor) -> Tensor | None:
    """A view `[R, S]` of `[…, S]`, without gradient; None: its rows are not evenly apart in memory."""
    try:
        return x.detach().view(-1, x.shape[-1])
    except RuntimeError:
        return None
