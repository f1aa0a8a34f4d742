"""Comparator levels of pruned softmax: each head keeps the wanted share of the tokens of a text."""

from __future__ import annotations

import torch
from torch import Tensor

from aimc.nn.attention import GainCellAttention
from aimc.ops.attention import gain_cell_attention
from aimc.ops.effects.protection import protected_tokens, sink_tokens
from aimc.ops.ring import visible

MOST_SCORES = 10**6
"""Most scores per head that a level is taken from."""


def set_threshold(
    layer: GainCellAttention, query: Tensor, key: Tensor, value: Tensor, key_padding: Tensor | None
) -> None:
    """Set `layer.prune_threshold` so that on this text a head's comparators keep `pruning.kept_share` of what they see,
    which protected tokens are not among.

    Args:
        layer: calibrated, with `pruning.select = "threshold"`.
        query: `[B, H, T, D]`, as the model has it.
        key, value: `[B, H_kv, T, D]`.
        key_padding: bool `[B, T]`; None: none is padding.
    """
    (query, key, value), scaling = layer.prepared(query, key, value)
    _, inside = gain_cell_attention(
        *(query, key, value, layer.machine),
        scaling=scaling,
        key_padding=key_padding,
        chip=layer.chip,
        details=True,
    )
    at = torch.arange(query.shape[2], device=query.device)
    seen = visible(at, at, layer.machine.array.window, key_padding)
    if key_padding is not None:
        seen = seen & ~key_padding[:, None, :, None]
    protection = layer.machine.protection
    if protection.is_on:
        padding = torch.zeros_like(query[:, 0, :, 0], dtype=torch.bool) if key_padding is None else key_padding
        seen = seen & ~protected_tokens(at, at, sink_tokens(padding, 0, protection), protection)
    seen = seen.expand(query.shape[0], 1, -1, -1)[:, 0]  # [B, T, T]
    if not seen.any():  # all of it is protected: the level stays as it is
        return
    full_scale = layer.machine.array.saturation_qk * (
        1.0 if layer.score_full_scale is None else layer.score_full_scale[:, None]
    )
    scores = inside.S.transpose(0, 1)[:, seen] / full_scale  # [H, N]
    scores = scores[:, :: -(-scores.shape[1] // MOST_SCORES)]
    assert layer.prune_threshold is not None  # the caller has looked
    with torch.no_grad():
        layer.prune_threshold.copy_(scores.quantile(1.0 - layer.machine.pruning.kept_share, dim=1))
