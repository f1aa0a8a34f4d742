"""Training under non-idealities: noise and chip of each step, put on for the step and taken off after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from aimc.evaluate.chips import noise_of
from aimc.hardware import Noise
from aimc.models.arrays import has_arrays, set_chip, set_draws
from aimc.ops.frozen import KEPT

from .recipe import FRESH, Recipe

FIRST_FRESH = 2**32
"""Number from which chips are drawn in training; measurements count from zero."""
TRAINING, VALIDATION = 1, 2
"""What passes are for: each has noise of its own."""


class NoiseSchedule(TrainerCallback):
    """A model's noise while it trains. All of it follows from recipe, seed and step, so a resumed run goes on as if it
    had not been interrupted. Write and read noise follow from a sequence's number in its step too, so the same
    sequences meet the same noise in one batch, in micro-steps and on several processes.

    Between steps, where the trainer logs, validates and saves, the model is on its hardware as it is.

    Args:
        model: it trains without noise where it has no arrays.
        recipe: of the run.
        nonideality: what `recipe.noise.scale` scales.
        seed: of the fresh chips.
    """

    def __init__(self, model: PreTrainedModel, recipe: Recipe, nonideality: Noise, seed: int) -> None:
        self.model, self.recipe, self.nonideality, self.seed = model, recipe, nonideality, seed
        self.is_on = bool(recipe.noise.scale) and nonideality.active() != [] and has_arrays(model)
        self._step: AbstractContextManager[None] = nullcontext()
        self._chip: int | None = None
        self._has_arrays = has_arrays(model)
        self._passes = 0

    def scale(self, step: int) -> float:
        """Factor on the non-idealities at a step, counted from 0."""
        noise = self.recipe.noise
        rising = noise.ramp * self.recipe.steps
        return noise.scale * (min(1.0, step / rising) if rising else 1.0)

    def chip(self, step: int) -> int:
        """Number of the chip at a step, counted from 0."""
        noise = self.recipe.noise
        if noise.chip != FRESH:
            return int(noise.chip)
        return FIRST_FRESH + _drawn(self.seed, step // noise.every)

    def draw(self, step: int, n_sequences: int, args: TrainingArguments, of: int) -> None:
        """Have the next pass meet the write and read noise of the sequences that it reads.

        Args:
            step: counted from 0.
            n_sequences: of a full pass on one process.
            args: how many processes there are, and which is this.
            of: what the pass is for, :data:`TRAINING` or :data:`VALIDATION`.
        """
        if self._has_arrays:
            first = (self._passes * args.world_size + args.process_index) * n_sequences
            set_draws(self.model, _drawn(self.seed, step, of), first)
            self._passes += 1

    @contextmanager
    def at(self, step: int) -> Iterator[None]:
        """The model under a step's noise, on its chip; then as it was."""
        chip = self.chip(step)
        if chip != self._chip:
            KEPT.clear()  # the tables of a chip that is met no more
            self._chip = chip
        with noise_of(self.model, self.nonideality.scaled(self.scale(step))):
            set_chip(self.model, chip)
            yield

    @contextmanager
    def while_evaluating(self, step: int) -> Iterator[None]:
        """What validation after `step` steps runs under."""
        self._passes = 0
        noisy = self.is_on and self.recipe.noise.evaluate == "noisy"
        try:
            with self.at(step) if noisy else nullcontext():
                yield
        finally:
            set_draws(self.model, None)

    def facts(self, step: int) -> dict[str, Any]:
        """What the passes of a step meet, to do it again, see `train/replay.py`; `noise` and `chip` None: the
        hardware's own."""
        noise = asdict(self.nonideality.scaled(self.scale(step))) if self.is_on else None
        chip = self.chip(step) if self.is_on else None
        return {"noise": noise, "chip": chip, "noise_seed": _drawn(self.seed, step, TRAINING)}

    def logged(self, step: int) -> dict[str, float]:
        """For the log, after `step` steps: the scale that the last one met."""
        return {"noise/scale": self.scale(step - 1)} if self.is_on and step else {}

    def logged_evaluation(self, step: int) -> dict[str, float]:
        """For the log: the scale that validation after `step` steps met, 0 where it was clean."""
        noisy = self.recipe.noise.evaluate == "noisy"
        return {"eval_noise_scale": self.scale(step) if noisy else 0.0} if self.is_on else {}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._passes = 0
        if self.is_on:
            self._step = self.at(state.global_step)
            self._step.__enter__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.take_off()

    def take_off(self) -> None:
        """The model on its hardware as it is; also after a step that ended with an exception."""
        step, self._step = self._step, nullcontext()
        step.__exit__(None, None, None)
        set_draws(self.model, None)


def _drawn(*words: int) -> int:
    """A number in [0, 2^62) that follows from some others."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(2))
