"""Steps whose loss or gradient is far outside of what came before: told, saved so that they can be done again
(`train/replay.py`), and, where that is asked, left out or the end of the run."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather, reduce
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from .errors import RunError
from .files import remove, whole_folder, write_json
from .sharding import whole_state
from .tables import warned

if TYPE_CHECKING:
    from .noise import NoiseSchedule
    from .trainer import Training

FACTS, BATCH, WEIGHTS = "spike.json", "batch.safetensors", "model"
"""In the folder of a spike: what it was; its tokens `[passes, sequences, tokens]` and torch's random state; the weights
before it, where they were asked for."""
COMMAND = f"python -m {__package__}.replay"
LEAST = 20
"""Steps before which nobody knows what is usual."""
LOSS_FLOOR, GRADIENT_FLOOR = 0.02, 0.1
"""Deviations, of the logarithm, that are small whatever the last steps were."""


class Spike(RunError):
    """A step far outside of what came before, where `trainer.on_spike=stop` ends the run."""


class Usual:
    """The last values of a positive number, by median and median deviation of the logarithm: spikes hardly move them.

    Args:
        n: values that count.
        floor: of the deviation.
    """

    def __init__(self, n: int, floor: float) -> None:
        self.floor = floor
        self.logs: deque[float] = deque(maxlen=n)

    @property
    def value(self) -> float:
        """What is usual; NaN before there is a value."""
        return math.exp(statistics.median(self.logs)) if self.logs else math.nan

    def deviations(self, value: float) -> float:
        """How many standard deviations, as they are estimated, a value lies above; 0 while that is not known."""
        if len(self.logs) < LEAST:
            return 0.0
        middle = statistics.median(self.logs)
        spread = 1.4826 * statistics.median(abs(log - middle) for log in self.logs)
        return (_log(value) - middle) / max(spread, self.floor)

    def add(self, value: float) -> None:
        """Take in a finite value."""
        self.logs.append(_log(value))


def _log(value: float) -> float:
    return math.log(max(value, 1e-6))


@dataclass(slots=True)
class Step:
    """What a step has read so far."""

    ids: list[Tensor]
    """A micro-step each, `[B, T]`."""
    loss: float = 0.0
    gradient: float = math.nan
    """Norm, before it is clipped."""
    random: Tensor | None = None
    """torch's state before it."""


class SpikeWatch(TrainerCallback, ExportableState):
    """Looks at each step before the optimiser takes it. What is usual stands in the points to resume from.

    Args:
        training: of which `shared` says what is a spike and what is done then.
        noise: what the step meets.
        diverged: makes the error for a loss that is not finite, from what it was and where it is saved.
    """

    def __init__(self, training: Training, noise: NoiseSchedule, diverged: Callable[[str, str], RunError]) -> None:
        self.training, self.noise, self.diverged = training, noise, diverged
        n = training.shared.spike_window
        self.losses, self.gradients = Usual(n, LOSS_FLOOR), Usual(n, GRADIENT_FLOOR)
        self.step = Step([])
        self._was_spike = False

    def saw(self, ids: Tensor, loss: Tensor) -> None:
        """A micro-step: its tokens `[B, T]`, and its share of the step's loss."""
        self.step.ids.append(ids.detach())
        self.step.loss += float(loss)

    def state(self) -> dict[str, Any]:
        """For the point to resume from."""
        return {"args": {}, "attributes": {"losses": list(self.losses.logs), "gradients": list(self.gradients.logs)}}

    def usual_gradient(self) -> float | None:
        """Median norm of the last gradients, before they are clipped; None while that is not known."""
        return self.gradients.value if len(self.gradients.logs) >= LEAST else None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        callbacks: Any = state.stateful_callbacks
        before = callbacks.get(type(self).__name__, {})
        for name, logs in before.get("attributes", {}).items():
            getattr(self, name).logs.extend(logs)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.step = Step([], random=torch.get_rng_state())

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step, shared = self.step, self.training.shared
        if args.world_size > 1:  # all must come to the same end
            step.loss = float(reduce(torch.tensor(step.loss, dtype=torch.float64, device=args.device), "mean"))
        why = self._why()
        if why is None:
            self._was_spike = False
        else:
            told, saved = f"{why} at step {state.global_step + 1}", ""
            if shared.on_spike != "off" and not self._was_spike:  # of a row of them the first is the one to look at
                saved = self._saved(args, state, kwargs["model"])
            if not math.isfinite(step.loss) and shared.on_spike != "skip":
                raise self.diverged(told, saved)
            told += saved
            if shared.on_spike == "stop":
                raise Spike(f"stage {self.training.stage}: {told}; trainer.on_spike=stop ends the run here")
            if shared.on_spike == "skip":
                told += "; the step is left out"
                for parameter in kwargs["model"].parameters():
                    parameter.grad = None
            if shared.on_spike == "skip" or not self._was_spike:
                self.training.say(f"  {warned(told)}")
            self._was_spike = True
        for usual, value in ((self.losses, step.loss), (self.gradients, step.gradient)):
            if math.isfinite(value):
                usual.add(value)

    def _why(self) -> str | None:
        """What is wrong with the step; None: nothing."""
        shared, step = self.training.shared, self.step
        if not math.isfinite(step.loss):
            return f"the loss became {step.loss}"
        if shared.on_spike == "off":
            return None
        # Autocast in fp16 meets infinite gradients on purpose, and leaves such steps out.
        if not math.isfinite(step.gradient) and shared.precision != "fp16":
            return f"the gradient became {step.gradient}"
        for name, usual, value in (("loss", self.losses, step.loss), ("gradient norm", self.gradients, step.gradient)):
            if usual.deviations(value) > shared.spike_deviations:
                return f"the {name} is {value:.4g} where {usual.value:.4g} was usual"
        return None

    def _saved(self, args: TrainingArguments, state: TrainerState, model: PreTrainedModel) -> str:
        """Save the step; returns what the user is told of it."""
        shared, root = self.training.shared, self.training.spikes
        if root is None or not shared.keep_spikes:
            return ""
        ids = torch.stack(self.step.ids)  # [passes, B, T]
        if args.world_size > 1:  # the sequences of a pass go by the number of their process
            ids = gather(ids[None]).transpose(0, 1).flatten(1, 2)  # type: ignore[union-attr]
        # All processes help to put a spread model together.
        weights = whole_state(model, keep=args.process_index == 0) if shared.spike_weights else None
        folder = root / f"step-{state.global_step + 1:07d}"
        if args.process_index == 0:
            try:
                self._write(folder, ids, self._facts(state, model), None if weights is None else (model, weights))
            except RunError as error:  # no reason to end the training
                return f" (and could not be saved: {error})"
        if self.training.recipe.lora_rank:  # what points hold then are adapters, around weights that are elsewhere
            return f"; its batch is saved in {folder}, which cannot be done again with low-rank adapters"
        return f"; its batch is saved, to do it again: {COMMAND} '{folder}'"

    def _facts(self, state: TrainerState, model: PreTrainedModel) -> dict[str, Any]:
        training, step = self.training, self.step
        return {
            "stage": training.stage,
            "recipe": training.setting.rpartition(".")[2],
            "steps_before": state.global_step,
            "loss": step.loss,
            "usual_loss": self.losses.value,
            "gradient_norm": step.gradient,
            "usual_gradient_norm": self.gradients.value,
            "seed": training.seed,
            "data_seed": training.data_seed,
            "precision": training.shared.precision,
            "dropout": training.recipe.dropout,
            "has_teacher": training.recipe.has_teacher,
            "points": str(training.folder),
            **self.noise.facts(state.global_step),
        }

    def _write(
        self,
        folder: Path,
        ids: Tensor,
        facts: dict[str, Any],
        weights: tuple[PreTrainedModel, dict[str, Tensor]] | None,
    ) -> None:
        assert self.step.random is not None
        with whole_folder(folder) as partial:
            write_json(partial / FACTS, {k: _finite(v) for k, v in facts.items()})
            save_file({"input_ids": ids.cpu().contiguous(), "random": self.step.random}, partial / BATCH)
            if weights is not None:
                model, state = weights
                model.save_pretrained(partial / WEIGHTS, state_dict=state)
        kept = sorted(folder.parent.glob("step-*"))
        for old in _but_newest(kept, self.training.shared.keep_spikes):
            remove(old)


def _but_newest(folders: Iterable[Path], n: int) -> list[Path]:
    """All folders but the last few."""
    return sorted(folders)[:-n]


def _finite(value: Any) -> Any:
    """JSON knows no NaN."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
