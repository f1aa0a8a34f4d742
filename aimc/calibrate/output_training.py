"""The steps of matching attention outputs: on the digital model's hidden states, or on the model's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from aimc.calibrate.blocks import Block, Call, learning, relative_error, run_decoder, student_output, watching
from aimc.models.ranks import ALONE, Ranks

LAST_RATE = 0.01
"""Learning rate of the last step, as a share of the first."""
BETAS = (0.9, 0.95)
"""Of AdamW, as where whole models are trained."""


@dataclass(slots=True, kw_only=True)
class Training:
    """How the blocks are trained."""

    steps: int
    learning_rate: float
    scaler_learning_rate: float
    own_stream: float
    weight_decay: float
    max_grad_norm: float
    patience: int | None
    minutes: float | None = None

    def __post_init__(self) -> None:
        for name, usual in (("steps", "80"), ("patience", "10, or None for all steps")):
            value = getattr(self, name)
            if value is None and name == "patience":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value}: must be a whole number of at least 1; {usual} is usual")
        for name, usual in (("learning_rate", "3e-3"), ("scaler_learning_rate", "1e-2"), ("max_grad_norm", "1")):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: must be a finite number above 0; {usual} is usual")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay={self.weight_decay}: must be a finite number of at least 0; 0 is usual")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes={self.minutes}: must be a finite number above 0; None makes all steps")
        if self.minutes is not None and self.own_stream:
            raise ValueError(
                f"own_stream={self.own_stream}: a share of the steps, and how many there will be in"
                f" minutes={self.minutes} nobody knows; set own_stream=0 or minutes=None"
            )
        if not 0 <= self.own_stream <= 1:
            raise ValueError(
                f"own_stream={self.own_stream}: a share of the steps, so at least 0 and at most 1; a third is usual"
            )

    @property
    def own_from(self) -> int:
        """The first step on the model's own hidden states."""
        return self.steps - round(self.own_stream * self.steps)

    def share(self, step: int, spent_s: float) -> float:
        """Share of the training that is over, by steps or by the clock."""
        of_time = 0.0 if self.minutes is None else spent_s / (60 * self.minutes)
        return min(1.0, max(step / self.steps, of_time))

    def rate(self, share: float) -> float:
        """Learning rate as a share of the first: half a cosine."""
        return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * share))


def lost(when: str, layer: int, error: float) -> ValueError:
    """What is raised where an error is no longer finite."""
    return ValueError(
        f"{when}: the error of layer {layer} is {error}, so its weights are lost; start again from initialise_scalers"
        " with a smaller learning_rate"
    )


class Trainer:
    """One optimiser a block; all blocks step on the same batch, of which each process has some rows."""

    def __init__(
        self,
        model: PreTrainedModel,
        reference: PreTrainedModel,
        blocks: list[Block],
        training: Training,
        ranks: Ranks = ALONE,
    ):
        self.model, self.reference, self.blocks, self.training = model, reference, blocks, training
        self.ranks = ranks
        self._started: float | None = None
        rates = (training.scaler_learning_rate, training.learning_rate)
        self.optimisers = [
            torch.optim.AdamW(
                [
                    {"params": group, "lr": rate, "first_lr": rate}
                    for group, rate in zip((block.arrays, block.projections), rates, strict=True)
                    if group
                ],
                betas=BETAS,
                weight_decay=training.weight_decay,
            )
            for block in blocks
        ]

    def share(self, number: int) -> float:
        """Share of the training that is over before step `number`; the clock runs from the first time that is asked."""
        now = perf_counter()
        if self._started is None:
            self._started = now
        spent_s = now - self._started
        if self.ranks.n > 1 and self.training.minutes is not None:  # all must stop at the same step
            device = next(self.model.parameters()).device
            spent_s = float(self.ranks.total(torch.tensor(spent_s, device=device))) / self.ranks.n
        return self.training.share(number, spent_s)

    def step(self, number: int, batch: dict[str, Tensor]) -> float:
        """Every block takes step `number` on the batch; returns the mean of their errors before it."""
        rate = self.training.rate(self.share(number))
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["first_lr"] * rate
        own = number >= self.training.own_from
        errors = (self._on_own_stream if own else self._on_reference)(batch)
        mean = float(torch.stack(errors).mean())
        if not math.isfinite(mean):
            bad = next(i for i, error in enumerate(errors) if not error.isfinite())
            raise lost(f"step {number}", self.blocks[bad].layer.layer, float(errors[bad]))
        return mean

    def _on_reference(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """One pass of the reference; behind each of its blocks, the model's block gets the same input and learns."""
        mask = batch.get("attention_mask")
        errors = []

        def seen(i: int, call: Call) -> None:
            with torch.enable_grad():
                errors.append(self._learn(i, student_output(self.blocks[i], call, mask), call.output, mask))

        with watching([block.teacher for block in self.blocks], seen):
            run_decoder(self.reference, batch)
        return errors

    def _on_own_stream(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """A pass of the reference that is remembered, then one of the model, whose decoder layers learn as they are
        reached: to end with the reference's hidden states, from what their earlier layers have made of the text.

        The whole decoder layer is looked at because there the error of earlier layers can be made up for whatever lies
        between attention and hidden states (norms, parallel branches).
        """
        mask = batch.get("attention_mask")
        wanted: dict[int, Tensor] = {}
        errors = []

        def remember(i: int, call: Call) -> None:
            wanted[i] = call.output

        def learn(i: int, call: Call) -> None:
            arrived = next(x for x in call.inputs.values() if isinstance(x, Tensor))  # the hidden states come first
            errors.append(self._learn(i, call.output - arrived, wanted.pop(i) - arrived, mask))

        with watching([block.teacher_decoder for block in self.blocks], remember):
            run_decoder(self.reference, batch)
        with learning([block.student_decoder for block in self.blocks], learn):
            run_decoder(self.model, batch)
        return errors

    def _learn(self, i: int, output: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        parameters, optimiser = self.blocks[i].parameters, self.optimisers[i]
        error = relative_error(output, target, mask, self.ranks)
        gradients = self._summed(torch.autograd.grad(error, parameters, allow_unused=True))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(parameters, self.training.max_grad_norm)
        optimiser.step()
        optimiser.zero_grad()
        return self.ranks.total(error.detach())

    def _summed(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Over all processes, in one message."""
        if self.ranks.n == 1:
            return gradients
        known = [gradient for gradient in gradients if gradient is not None]
        flat = self.ranks.total(torch.cat([gradient.flatten() for gradient in known]))
        parts = iter(flat.split([gradient.numel() for gradient in known]))
        return [None if gradient is None else next(parts).view_as(gradient) for gradient in gradients]
