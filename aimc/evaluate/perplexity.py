"""Perplexity of a model on a text, clean and under non-idealities, over chips."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Unpack

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from aimc.evaluate.chips import chips_of
from aimc.evaluate.measurement import Measurement, MeasurementFields, measurement_of
from aimc.hardware import Noise
from aimc.models.modes import evaluating


@dataclass(slots=True, kw_only=True)
class Perplexity:
    """A perplexity and how it was measured."""

    mean: float
    """Mean over the chips."""
    std: float
    """Sample standard deviation over the chips; 0 for a single one."""
    per_chip: list[float] = field(default_factory=list)
    """One value a chip."""
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
        fields: `context`, `stride`, `batch_size`, `chips`, `seed` in place of the measurement's.

    Raises:
        ValueError: empty or too short text, ids outside the vocabulary, a context longer than the model's positions, or
            non-idealities asked of a digital model.
    """
    measurement = measurement_of(measurement, fields)
    context, stride = _window(model, measurement)
    tokens = _check_tokens(model, tokens)[: measurement.tokens]
    with evaluating(model):
        values = [
            math.exp(_mean_nll(model, tokens, context, stride, measurement.batch_size))
            for _ in chips_of(model, measurement.chips, nonideality, measurement.seed)
        ]
    return over_chips(values, n_tokens=len(tokens) - 1, context=context, stride=stride)


def over_chips(per_chip: Sequence[float], *, n_tokens: int, context: int, stride: int) -> Perplexity:
    """Mean and spread of what each chip gave."""
    return Perplexity(
        mean=statistics.fmean(per_chip),
        std=statistics.stdev(per_chip) if len(per_chip) > 1 else 0.0,
        per_chip=list(per_chip),
        n_tokens=n_tokens,
        context=context,
        stride=stride,
    )


def _window(model: PreTrainedModel, measurement: Measurement) -> tuple[int, int]:
    """Context and stride, filled in where they are left to the model."""
    positions = int(getattr(model.config, "max_position_embeddings", None) or 1024)
    context = positions if measurement.context is None else measurement.context
    if context > positions:
        raise ValueError(
            f"context={context}: the model has {positions} positions; use a context between 2 and {positions}"
        )
    stride = max(1, context // 2) if measurement.stride is None else measurement.stride
    if stride > context:
        raise ValueError(f"stride={stride}: must be between 1 and context={context}; half the context is usual")
    return context, stride


def _check_tokens(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    tokens = torch.as_tensor(tokens).reshape(-1)
    if tokens.is_floating_point() or len(tokens) < 2:
        raise ValueError(
            f"tokens: {len(tokens)} values of {tokens.dtype}; a perplexity needs at least two integer token ids"
        )
    vocabulary = model.config.vocab_size
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"tokens: ids from {low} to {high}, outside the model's vocabulary of {vocabulary}; tokenise the text with"
            " the model's own tokenizer"
        )
    return tokens


@torch.no_grad()
def _mean_nll(model: PreTrainedModel, tokens: Tensor, context: int, stride: int, batch_size: int) -> float:
    """Mean negative log-likelihood in nat a token."""
    device = next(model.parameters()).device
    total, scored = 0.0, 0
    for inputs, targets in _batches(tokens, context, stride, batch_size):
        logits = model(inputs.to(device), use_cache=False).logits.float()
        losses = cross_entropy(logits.transpose(1, 2), targets.to(device), ignore_index=-100, reduction="sum")
        total += float(losses)
        scored += int((targets != -100).sum())
    return total / scored


def _batches(tokens: Tensor, context: int, stride: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs `[B, C]` and their next tokens `[B, C]`, −100 where a token is not scored here."""
    windows = []
    scored_to, last = 0, len(tokens) - 1  # token 0 has nothing before it
    while scored_to < last:
        end = min(last, context if scored_to == 0 else scored_to + stride)
        start = max(0, end - context)
        targets = tokens[start + 1 : end + 1].clone()
        targets[: max(0, scored_to - start)] = -100
        windows.append((tokens[start:end], targets))
        scored_to = end
    for first in range(0, len(windows), batch_size):
        group = windows[first : first + batch_size]
        for length in sorted({len(inputs) for inputs, _ in group}):  # only a short text has windows of two lengths
            same = [window for window in group if len(window[0]) == length]
            yield torch.stack([inputs for inputs, _ in same]), torch.stack([targets for _, targets in same])
