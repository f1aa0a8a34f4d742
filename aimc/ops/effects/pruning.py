"""Pruning: the analog scores say which tokens matter, and digital logic attends to those exactly.

The selection has no gradient; the softmax over what is kept has that of digital attention.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from aimc.hardware import Hardware
from aimc.ops.effects.activation import logit_gain
from aimc.ops.effects.converters import adc
from aimc.ops.scaling import Scaling, per_head

if TYPE_CHECKING:
    from aimc.ops.heads import Heads


def selected(
    charge: Tensor, visible: Tensor, hardware: Hardware, threshold: Tensor | None, padding: Tensor | None = None
) -> Tensor:
    """Which tokens each query keeps of those that it sees in the arrays.

    Args:
        charge: scores of all columns in full scales, `S / S_sat`, `[B, H, T, S]`, with their noise.
        visible: what a query sees of them, broadcastable.
        hardware: the machine; its `pruning` and `score_adc` are used.
        threshold: comparator level of each head, `[H]`; None: the hardware's.
        padding: bool `[B, T]`, queries that are none, and whose scores no comparator sees; None: none is.

    Returns:
        Bool `[B, H, T, S]`.
    """
    pruning, charge = hardware.pruning, charge.detach()
    if pruning.select == "share":
        return _first_of_ramp(adc(charge, hardware.score_adc), visible, pruning.kept_share)
    level = pruning.threshold if threshold is None else per_head(threshold, charge.dtype)
    taken = (charge > level) & visible
    if not pruning.hysteresis:
        return taken
    # A comparator that has taken a token holds it until its score falls below the lower level: the last of the two
    # events decides.
    held = (charge > level - pruning.hysteresis) & visible
    if padding is not None:
        taken, held = taken & ~padding[:, None, :, None], held | padding[:, None, :, None]
    step = torch.arange(charge.shape[-2], device=charge.device)[:, None]
    last_taken = torch.where(taken, step, -1).cummax(dim=-2).values
    last_dropped = torch.where(held, -1, step).cummax(dim=-2).values
    return visible & (last_taken > last_dropped)


def _first_of_ramp(codes: Tensor, visible: Tensor, share: float) -> Tensor:
    """The ramp stops at the step at which the share of the visible columns has fired; all of that step are kept."""
    codes = codes.masked_fill(~visible, -math.inf)
    n_visible = visible.expand_as(codes).sum(dim=-1, keepdim=True)
    # A share like 0.1 is a little more than a tenth in floating point: a whole number of tokens stays that number.
    n_kept = torch.ceil(n_visible.to(torch.float64) * share - 1e-6).to(torch.int64).clamp(min=1)
    last = _ascending(codes).gather(-1, codes.shape[-1] - n_kept)
    return (codes >= last) & visible


def _ascending(x: Tensor) -> Tensor:
    """Each row in order. NumPy sorts with vector instructions, seven times as fast as PyTorch on a CPU."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return x.sort(dim=-1).values
    return torch.from_numpy(np.sort(x.numpy(), axis=-1))


def placed(parts: list[Tensor], firsts: list[int], at: list[Tensor], like: Tensor) -> Tensor:
    """Parts `[..., T', S]` by sub-tile, each of the queries from `first` on, as one `[..., T, M]`: column `at` of it
    each; zero where nothing is placed."""
    whole = like.new_zeros(like.shape, dtype=parts[0].dtype)
    for part, first, columns in zip(parts, firsts, at, strict=True):
        whole[..., first:, columns] = part
    return whole


def kept_in_memory(
    heads: Heads,
    charges: list[Tensor],
    visible: list[Tensor],
    firsts: list[int],
    at: list[Tensor],
    digital: Tensor,
    threshold: Tensor | None,
    padding: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What of the digital copy is attended to because the arrays have selected it, and its scores.

    Args:
        heads: sizes and hardware.
        charges: per sub-tile, `[B, H, T', S]`, in full scales.
        visible: which keys a query sees there.
        firsts: the first query of each.
        at: where each sub-tile's tokens stand in the copy.
        digital: exact scores of the copy, `[B, H, T, M]`, in the same unit.
        threshold, padding: as for :func:`selected`.

    Returns:
        Bool `[B, H, T, M]`, and the scores of the copy: exact, or with `recompute="values"` those of the score ADC.
    """
    hardware = heads.hardware
    seen = placed([mask.expand_as(x) for mask, x in zip(visible, charges, strict=True)], firsts, at, digital)
    charge = placed(charges, firsts, at, digital)
    kept = selected(charge, seen, hardware, threshold, padding)
    if hardware.pruning.recompute == "values":
        digital = torch.where(seen, adc(charge, hardware.score_adc), digital)
    return kept, digital


def weights_of_kept(heads: Heads, scores: Tensor, attended: Tensor, scaling: Scaling) -> Tensor:
    """Softmax in digital of the scores `[B, H, T, M]` in full scales, over what is attended to; zero where that is
    nothing."""
    logits = (logit_gain(heads, scaling) * scores).masked_fill(~attended, -math.inf)
    return torch.softmax(logits, dim=-1).masked_fill(~attended.any(dim=-1, keepdim=True), 0.0)
