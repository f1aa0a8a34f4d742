"""What happens around the training loop: progress, interruption, and marks on finished checkpoints."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from train.files import write_text

COMPLETE = "complete"
"""Marks a resume checkpoint whose every file is written; one without it was cut off and is not resumed from."""


class Progress(ProgressCallback):
    """One bar a stage that carries the last loss and validation perplexity, instead of a line of numbers every few steps."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(f"  {self.stage}")

    def on_prediction_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """No second bar: measurements are short."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        names = {"loss": "loss", "eval_perplexity": "validation perplexity", "tokens_per_s": "tokens/s"}
        self.shown |= {names[key]: f"{value:.4g}" for key, value in (logs or {}).items() if key in names}
        if self.training_bar is not None:
            self.training_bar.set_postfix(self.shown)


class MarkComplete(TrainerCallback):
    """Writes :data:`COMPLETE` into a checkpoint after its last file."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_text(Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE, "")


class StopOnSignal(TrainerCallback):
    """The first Ctrl-C ends the step, saves and stops; a second one is Python's own. A context manager around the training."""

    def __init__(self) -> None:
        self.caught = False

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGINT, self._handle)

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, signum: int, frame: object) -> None:
        self.caught = True
        signal.signal(signal.SIGINT, self._before)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.caught:
            control.should_save = True
            control.should_training_stop = True
