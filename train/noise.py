"""Training under non-idealities: noise and chip of each step, put on for the step and taken off after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from aimc.evaluate.chips import noise_of
from aimc.hardware import Noise
from aimc.models.arrays import has_arrays, set_chip
from aimc.ops.frozen import KEPT

from .recipe import FRESH, Recipe

FIRST_FRESH = 2**32
"""Number from which chips are drawn in training; measurements count from zero."""


class NoiseSchedule(TrainerCallback):
    """A model's noise while it trains. All of it follows from recipe, seed and step, so a resumed run goes on as if it
    had not been interrupted; write and read noise come from torch's generator, whose state the trainer saves.

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
        draw = np.random.SeedSequence([self.seed, step // noise.every])
        return FIRST_FRESH + int(draw.generate_state(1, np.uint64)[0] >> np.uint64(2))

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

    def while_evaluating(self, step: int) -> AbstractContextManager[None]:
        """What validation after `step` steps runs under."""
        return self.at(step) if self.is_on and self.recipe.noise.evaluate == "noisy" else nullcontext()

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
        if self.is_on:
            self._step = self.at(state.global_step)
            self._step.__enter__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.take_off()

    def take_off(self) -> None:
        """The model on its hardware as it is; also after a step that ended with an exception."""
        step, self._step = self._step, nullcontext()
        step.__exit__(None, None, None)
