"""The text that a model is matched on: checked, and on its device; how likely a model finds it, and how far its
predictions are from others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedModel

from aimc.calibrate.observation import Batches, run_batches
from aimc.models.arrays import hardware_of
from aimc.models.ranks import ALONE, Ranks


def checked_batches(batches: Batches, reference: PreTrainedModel) -> list[dict[str, Tensor]]:
    """The batches as keyword arguments, on the models' device.

    Raises:
        ValueError: none, rows of one token, or ids that are no tokens of the models.
    """
    device, vocab_size = next(reference.parameters()).device, reference.config.get_text_config(decoder=True).vocab_size
    text = [batch if isinstance(batch, dict) else {"input_ids": batch} for batch in batches]
    if not text:
        raise ValueError(
            "no batch was given, so there is nothing to match on; pass at least one batch of token ids [B, T]"
        )
    for batch in text:
        ids = batch["input_ids"]
        if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2:
            raise ValueError(
                f"a batch has shape {list(ids.shape)}: rows of at least two tokens [B, T] are needed, for a single"
                " token attends to itself alone; give rows as long as the model will read"
            )
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise ValueError(
                f"a batch has token ids from {int(ids.min())} to {int(ids.max())}, and the models know 0 to"
                f" {vocab_size - 1}, so the text is of another tokenizer; use the model's own"
            )
    return [{name: x.to(device) for name, x in batch.items()} for batch in text]


def n_tokens(batch: dict[str, Tensor]) -> int:
    """Tokens of a batch that are no padding."""
    mask = batch.get("attention_mask")
    return batch["input_ids"].numel() if mask is None else int(mask.sum())


def ranks_for(ranks: Ranks, model: PreTrainedModel, text: list[dict[str, Tensor]]) -> Ranks:
    """The processes, where a batch can be shared by them: noise is drawn for a whole one."""
    is_noisy = bool(hardware_of(model).noise.active())
    return ALONE if is_noisy or any(len(batch["input_ids"]) < ranks.n for batch in text) else ranks


def rows_of(batch: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """This process's sequences of a batch."""
    return {name: x[ranks.number :: ranks.n] for name, x in batch.items()}


def read(model: PreTrainedModel, batches: Batches, told: Callable[[dict[str, Tensor], Tensor], None]) -> None:
    """Call `told(keyword arguments, logits [B, T, V] in float32)` for one batch after another; the same draws of noise
    at every call."""

    def seen(_: object, __: object, inputs: dict[str, Tensor], out: Any) -> None:
        told(inputs, out.logits.float())

    hook = model.register_forward_hook(seen, with_kwargs=True)
    try:
        run_batches(model, batches)
    finally:
        hook.remove()


def next_token_loss(model: PreTrainedModel, batches: Batches) -> float:
    """Mean negative log-likelihood of the batches' next tokens, in nat."""
    losses: list[float] = []

    def told(inputs: dict[str, Tensor], logits: Tensor) -> None:
        targets, mask = inputs["input_ids"][:, 1:], inputs.get("attention_mask")
        if mask is not None:
            targets = targets.masked_fill(mask[:, 1:] == 0, -100)
        of_batch = cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)
        losses.append(float(of_batch))

    read(model, batches, told)
    return sum(losses) / len(losses)


def predictions(model: PreTrainedModel, batches: Batches) -> list[Tensor]:
    """Logarithms of the shares of all next tokens, `[N, V]` of each batch's N tokens that are no padding."""
    found: list[Tensor] = []
    read(model, batches, lambda inputs, logits: found.append(_real(inputs, logits).log_softmax(dim=-1)))
    return found


def divergence(model: PreTrainedModel, batches: Batches, target: list[Tensor]) -> float:
    """Mean Kullback-Leibler divergence from `target`, of :func:`predictions`, to the model's predictions, in nat a
    token."""
    found: list[Tensor] = []

    def told(inputs: dict[str, Tensor], logits: Tensor) -> None:
        own = _real(inputs, logits).log_softmax(dim=-1)
        found.append(kl_div(own, target[len(found)], reduction="none", log_target=True).sum(dim=-1))

    read(model, batches, told)
    return float(torch.cat(found).mean())


def _real(inputs: dict[str, Tensor], x: Tensor) -> Tensor:
    """Of `[B, T, V]` the tokens that are no padding, `[N, V]`."""
    mask = inputs.get("attention_mask")
    return x.flatten(0, 1) if mask is None else x[mask.bool()]
