"""How much of a training run is over: by its steps, or by the clock."""

from __future__ import annotations

import json
import math
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class Clock(TrainerCallback, ExportableState):
    """Ends a run when its minutes are over. What a run had before it was interrupted counts; it stands in its
    checkpoints.

    Args:
        steps: of the whole run, if no clock ends it sooner.
        minutes: of the whole run, with all that it does between steps; None: no clock.
    """

    def __init__(self, steps: int, minutes: float | None) -> None:
        self.steps, self.minutes = steps, minutes
        self.spent_s = 0.0
        """Time so far, as of the last step's beginning or end."""
        self._started = perf_counter()

    def share(self, step: int) -> float:
        """Share of the run that is over after so many steps."""
        of_time = 0.0 if self.minutes is None else self.spent_s / (60 * self.minutes)
        return min(1.0, max(step / self.steps, of_time))

    def rate(self, step: int, warmup_steps: int, min_lr_ratio: float) -> float:
        """Learning rate after so many steps, as a share of the peak: half a cosine by :meth:`share`, and a linear
        warm-up."""
        cosine = min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * self.share(step)))
        return min(1.0, step / warmup_steps) * cosine if warmup_steps else cosine

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        spent_s = perf_counter() - self._started
        return {"args": {"steps": self.steps, "minutes": self.minutes}, "attributes": {"spent_s": spent_s}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = perf_counter() - _spent_s(state.stateful_callbacks)
        self._look(args)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._look(args)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._look(args)
        if self.minutes is not None and self.spent_s >= 60 * self.minutes:
            control.should_training_stop = True
            control.should_log = control.should_evaluate = control.should_save = True  # as after the last of all steps

    def _look(self, args: TrainingArguments) -> None:
        if self.minutes is None:
            return
        self.spent_s = perf_counter() - self._started
        if args.world_size > 1:  # all processes must stop at the same step, and learn at the same rate
            self.spent_s = float(reduce(torch.tensor(self.spent_s, device=args.device), "mean"))


def is_over(checkpoint: str, steps: int, minutes: float | None) -> bool:
    """Whether a run that wrote this checkpoint had nothing left to do."""
    if int(checkpoint.rpartition("-")[2]) >= steps:
        return True
    saved = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    return minutes is not None and _spent_s(saved["stateful_callbacks"]) >= 60 * minutes


def _spent_s(stateful_callbacks: Any) -> float:
    return stateful_callbacks.get(Clock.__name__, {}).get("attributes", {}).get("spent_s", 0.0)
