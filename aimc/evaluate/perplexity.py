"""Perplexity of a model on a text, clean and under non-idealities, over chips."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Unpack

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from aimc.evaluate.chips import chips_of, is_random, noise_of_windows
from aimc.evaluate.estimates import exp_mean_of, std_over
from aimc.evaluate.measurement import Measurement, MeasurementFields, measurement_of
from aimc.evaluate.windows import UNSCORED, checked_tokens, window_of, windows, windows_together
from aimc.hardware import Noise
from aimc.models.modes import evaluating
from aimc.models.ranks import ALONE, Ranks


@dataclass(slots=True, kw_only=True)
class Perplexity:
    """A perplexity and how it was measured."""

    mean: float
    """Mean over the chips."""
    std: float
    """Over the chips, see :func:`aimc.evaluate.estimates.std_over`."""
    per_chip: list[float] = field(default_factory=list)
    """One value a chip."""
    stderr: float | None = None
    """Standard error of `mean` over the text, see :func:`aimc.evaluate.estimates.block_stderr`; None: not known, or the
    text is shorter than two contexts."""
    n_tokens: int = 0
    """Tokens that were scored."""
    context: int = 0
    """Tokens a window."""
    stride: int = 0
    """Tokens scored a window: each scored token sees more than `context − stride` tokens before it (fewer at the text's
    start)."""

    def __float__(self) -> float:
        return self.mean

    def __str__(self) -> str:
        spread = f" ± {self.std:.2f} over {len(self.per_chip)} chips" if len(self.per_chip) > 1 else ""
        return f"{self.mean:.2f}{spread}"


def perplexity(
    model: PreTrainedModel,
    tokens: Tensor,
    measurement: Measurement | None = None,
    *,
    nonideality: Noise | None = None,
    ranks: Ranks = ALONE,
    **fields: Unpack[MeasurementFields],
) -> Perplexity:
    """Strided perplexity on a text.

    The model reads windows of `context` tokens that advance by `stride`; of each window, the next tokens of its last
    `stride` positions are scored (of the first window, of all positions). So every token but the first is scored once.

    Args:
        model: digital or converted, with or without static tiles.
        tokens: int64 `[N]`, the text.
        measurement: windows, chips and how much of the text; None: one chip, the whole text.
        nonideality: noise of this measurement in place of the hardware's own; None: the hardware's own.
        ranks: processes that share the chips, or the text of a single one; each must call this, and has what one alone
            would have, to the bit.
        fields: `context`, `stride`, `batch_size`, `chips`, `seed` in place of the measurement's.

    Raises:
        ValueError: empty or too short text, ids outside the vocabulary, a context longer than the model's positions, or
            non-idealities asked of a digital model.
    """
    measurement = measurement_of(measurement, fields)
    context, stride = window_of(model, measurement)
    return perplexity_of(token_losses(model, tokens, measurement, nonideality, ranks), context, stride)


def token_losses(
    model: PreTrainedModel,
    tokens: Tensor,
    measurement: Measurement,
    nonideality: Noise | None = None,
    ranks: Ranks = ALONE,
) -> list[Tensor]:
    """What a perplexity is made of: losses in nat, `[N − 1]` in the text's order, one tensor a chip. Arguments and
    errors are those of :func:`perplexity`."""
    context, stride = window_of(model, measurement)
    tokens = checked_tokens(model, tokens)[: measurement.tokens]
    together = windows_together(model, context, measurement.batch_size)
    chips = chips_of(model, measurement.chips, nonideality, measurement.seed)
    by_text = ranks if not is_random(model, nonideality) else ALONE  # noise of tiles goes through a text in order
    mine = chips if by_text is ranks else chips.only(ranks)
    with evaluating(model):
        losses = {chip: _losses(model, tokens, context, stride, together, chip, by_text) for chip in mine}
    return list(losses.values()) if by_text is ranks else ranks.united(losses)


def perplexity_of(losses: Sequence[Tensor], context: int, stride: int) -> Perplexity:
    """The perplexity that losses in nat, `[N − 1]`, one tensor a chip, come to."""
    found = exp_mean_of(losses, context)
    return Perplexity(
        mean=found.mean,
        std=found.std,
        stderr=found.stderr,
        per_chip=found.per_chip,
        n_tokens=len(losses[0]),
        context=context,
        stride=stride,
    )


def over_chips(per_chip: Sequence[float], *, n_tokens: int, context: int, stride: int) -> Perplexity:
    """Mean and spread of what each chip gave."""
    return Perplexity(
        mean=statistics.fmean(per_chip),
        std=std_over(per_chip),
        per_chip=list(per_chip),
        n_tokens=n_tokens,
        context=context,
        stride=stride,
    )


@torch.no_grad()
def _losses(
    model: PreTrainedModel, tokens: Tensor, context: int, stride: int, batch_size: int, chip: int, ranks: Ranks
) -> Tensor:
    """Negative log-likelihood of each scored token in nat, `[N − 1]`, in the order of the text; each process computes
    some of the batches."""
    device = next(model.parameters()).device
    parts = {}
    for number, (inputs, targets) in enumerate(windows(tokens, context, stride, batch_size)):
        if number % ranks.n != ranks.number:
            continue
        noise_of_windows(model, chip, number * batch_size)
        logits = model(inputs.to(device), use_cache=False).logits.float()
        # One row a token: on a CPU six times as fast as with the vocabulary in the middle, as [B, V, C] has it.
        losses = cross_entropy(
            logits.flatten(0, 1), targets.flatten().to(device), ignore_index=UNSCORED, reduction="none"
        )  # [B C]
        parts[number] = losses.cpu()[targets.flatten() != UNSCORED]
    return torch.cat(ranks.united(parts)).double()
