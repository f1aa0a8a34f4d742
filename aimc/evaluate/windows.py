"""Which tokens of a text a model reads together, and which of them are scored: the windows of every measurement on a
text."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aimc.evaluate.measurement import Measurement

UNSCORED = -100
"""In place of the next token where that is not scored; what torch's cross-entropy ignores."""
MOST_LOGITS = 2**26
"""Logits computed together, 256 MiB of float32: more than one window of 1,024 tokens and a vocabulary of 49,152, and
every batch of the models that ship."""
ON_ACCELERATORS = 8
"""Times as many anywhere but on a CPU, where a short batch leaves most of the device idle."""


def window_of(model: PreTrainedModel, measurement: Measurement) -> tuple[int, int]:
    """Context and stride, filled in where they are left to the model.

    Raises:
        ValueError: a context longer than the model's positions, where it has any, or a stride longer than the context.
    """
    known = getattr(model.config, "max_position_embeddings", None)  # a state, such as Mamba's, has none
    positions = int(known or 1024)
    context = positions if measurement.context is None else measurement.context
    if known and context > positions:
        raise ValueError(
            f"context={context}: the model has {positions} positions; use a context between 2 and {positions}"
        )
    stride = max(1, context // 2) if measurement.stride is None else measurement.stride
    if stride > context:
        raise ValueError(f"stride={stride}: must be between 1 and context={context}; half the context is usual")
    return context, stride


def checked_tokens(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """A text as int64 `[N]`, on the CPU.

    Raises:
        ValueError: fewer than two tokens, values that are no ids, or ids outside the vocabulary.
    """
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
    return tokens.long().cpu()


def windows_together(model: PreTrainedModel, context: int, batch_size: int) -> int:
    """Windows that are computed together: `batch_size`, or as many as :data:`MOST_LOGITS` allows, but one at least."""
    most = MOST_LOGITS if model.device.type == "cpu" else ON_ACCELERATORS * MOST_LOGITS
    return max(1, min(batch_size, most // (context * model.config.vocab_size)))


def windows(tokens: Tensor, context: int, stride: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows in the order of the text: inputs `[B, C]` and their next tokens `[B, C]`, :data:`UNSCORED` where a token
    is not scored here. Every token but the first is scored once."""
    found = []
    scored_to, last = 0, len(tokens) - 1  # token 0 has nothing before it
    while scored_to < last:
        end = min(last, context if scored_to == 0 else scored_to + stride)
        start = max(0, end - context)
        found.append((start, end, max(0, scored_to - start)))
        scored_to = end
    for first in range(0, len(found), batch_size):
        group = found[first : first + batch_size]  # all of one length: only a text's sole window is shorter
        targets = torch.stack([tokens[start + 1 : end + 1] for start, end, _ in group])
        for row, (_, _, n_scored) in zip(targets, group, strict=True):
            row[:n_scored] = UNSCORED
        yield torch.stack([tokens[start:end] for start, end, _ in group]), targets
