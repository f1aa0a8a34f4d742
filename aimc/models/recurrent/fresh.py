"""Fresh weights of projections, as GPT-2's."""

from __future__ import annotations

import math

from torch import nn
from transformers import initialization as init

_MARK = "ends_branch"


def end_of_branch(projection: nn.Linear) -> nn.Linear:
    """Mark the last projection of a residual branch; returns it.

    A mark and no class, for static tiles go by `nn.Linear` itself.
    """
    setattr(projection, _MARK, True)
    return projection


def draw_smaller(module: nn.Module, std: float, n_layers: int) -> None:
    """Draw a marked projection with a standard deviation of std / √(2·layers), for two branches a layer add up."""
    if getattr(module, _MARK, False):
        init.normal_(module.weight, std=std / math.sqrt(2 * n_layers))  # type: ignore[arg-type]
