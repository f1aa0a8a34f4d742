"""How far a model's predictions are from the digital model's, token by token: divergence, top-1 agreement, ratio of
perplexities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aimc.evaluate.chips import chips_of, noise_of_windows
from aimc.evaluate.estimates import Estimate, exp_mean_of, mean_of
from aimc.evaluate.measurement import Measurement, MeasurementFields, measurement_of
from aimc.evaluate.perplexity import Perplexity, perplexity_of
from aimc.evaluate.reference import require_reference
from aimc.evaluate.windows import UNSCORED, checked_tokens, window_of, windows, windows_together
from aimc.hardware import Noise
from aimc.models.modes import evaluating

_ROWS = 128
"""Tokens compared at once: 50 MB a tensor in float64 at a vocabulary of 49,152."""


@dataclass(slots=True, kw_only=True)
class Agreement:
    """A model against the digital one, on the tokens that are scored. Standard errors are over the text, see
    :func:`aimc.evaluate.estimates.block_stderr`."""

    kl: Estimate
    """Kullback-Leibler divergence KL(digital ‖ model) of the predicted distributions, mean over tokens, in nat a token;
    0 where they are the same."""
    top1: Estimate
    """Share of tokens, from 0 to 1, at which both models find the same next token the likeliest."""
    ratio: Estimate
    """Perplexity ÷ digital perplexity. Its error is that of the ratio, both having read the same tokens, and much
    smaller than that of either."""
    perplexity: Perplexity
    """Of the model."""
    digital: Perplexity
    """Of the digital model."""
    n_tokens: int
    """Tokens that were scored."""
    context: int
    """Tokens a window."""
    stride: int
    """Tokens scored a window."""

    def __str__(self) -> str:
        chips = f" over {len(self.kl.per_chip)} chips" if len(self.kl.per_chip) > 1 else ""
        return (
            f"KL {self.kl} nat a token, top-1 agreement {self.top1}, perplexity {self.perplexity.mean:.2f} ÷"
            f" {self.digital.mean:.2f} = {self.ratio}{chips}"
        )


def agreement(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokens: Tensor,
    measurement: Measurement | None = None,
    *,
    nonideality: Noise | None = None,
    **fields: Unpack[MeasurementFields],
) -> Agreement:
    """KL divergence from the digital model, top-1 agreement with it, and both perplexities, in one pass over a text.

    Windows, scored tokens and chips are those of :func:`aimc.perplexity`. Both models' logits of one batch are held at
    a time, 256 MiB each or one window.

    Args:
        model: converted, or a digital one of other weights.
        reference: the digital model, with the same vocabulary; it may be on another device.
        tokens: int64 `[N]`, the text.
        measurement: windows, chips and how much of the text; None: one chip, the whole text. The digital model reads
            the text once a chip.
        nonideality: noise of this measurement in place of the hardware's own; None: the hardware's own.
        fields: `context`, `stride`, `batch_size`, `chips`, `seed` in place of the measurement's.

    Raises:
        TypeError: `reference` is no transformers model.
        ValueError: `reference` is on analog hardware or has another vocabulary, or what :func:`aimc.perplexity`
            refuses.
    """
    require_reference(model, reference)
    measurement = measurement_of(measurement, fields)
    context, stride = window_of(model, measurement)
    window_of(reference, Measurement(context=context, stride=stride))  # its positions, too, have to reach
    tokens = checked_tokens(model, tokens)[: measurement.tokens]
    together = windows_together(model, context, measurement.batch_size)
    with evaluating(model), evaluating(reference):
        chips = [
            by_token(model, reference, tokens, context, stride, together, chip)
            for chip in chips_of(model, measurement.chips, nonideality, measurement.seed)
        ]
    kl, same, loss, digital = (list(rows) for rows in zip(*chips, strict=True))
    return Agreement(
        kl=mean_of(kl, context),
        top1=mean_of(same, context),
        ratio=exp_mean_of([ours - theirs for ours, theirs in zip(loss, digital, strict=True)], context),
        perplexity=perplexity_of(loss, context, stride),
        digital=perplexity_of(digital[:1], context, stride),
        n_tokens=len(tokens) - 1,
        context=context,
        stride=stride,
    )


@torch.no_grad()
def by_token(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokens: Tensor,
    context: int,
    stride: int,
    batch_size: int,
    chip: int,
) -> Tensor:
    """Divergence, whether both agree, loss of the model and of the digital one: `[4, N − 1]`, in the text's order."""
    here, there = next(model.parameters()).device, next(reference.parameters()).device
    parts = []
    for number, (inputs, targets) in enumerate(windows(tokens, context, stride, batch_size)):
        noise_of_windows(model, chip, number * batch_size)
        ours = model(inputs.to(here), use_cache=False).logits
        theirs = reference(inputs.to(there), use_cache=False).logits
        for window, wanted in enumerate(targets):
            for rows in (wanted != UNSCORED).nonzero().flatten().split(_ROWS):
                digital = theirs[window, rows.to(there)].to(here)
                parts.append(_compared(ours[window, rows.to(here)], digital, wanted[rows].to(here)))
    return torch.cat(parts, dim=1)


def _compared(logits: Tensor, digital: Tensor, targets: Tensor) -> Tensor:
    """Of logits `[R, V]` and next tokens `[R]`: `[4, R]` on the CPU.

    In float64, because a divergence of 1e-4 nat is a small difference of large logarithms.
    """
    log_p, log_q = digital.double().log_softmax(-1), logits.double().log_softmax(-1)
    p = log_p.exp()
    kl = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)  # a token that both rule out adds nothing, not a NaN
    same = digital.argmax(-1) == logits.argmax(-1)
    losses = (-log.gather(-1, targets[:, None])[:, 0] for log in (log_q, log_p))
    return torch.stack([kl, same.double(), *losses]).cpu()
