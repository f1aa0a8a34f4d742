"""One training run of one stage: transformers' Trainer, with what a hardware-aware run must never do left out of
reach."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from aimc.hardware import Noise
from aimc.models.selective_scan import lighten_backward
from aimc.static.tiles import follow_optimizer, has_static

from .alarms import Alarms
from .arguments import arguments_of, texts_of
from .callbacks import Heartbeat, Progress, SaveAsAsked, SaveBest, StopOnSignal
from .clock import Clock, is_over
from .distillation import divergence, hidden_distance, require_teacher
from .dropout import dropout
from .errors import RESUME, RunError
from .files import remove, saving
from .groups import frozen, set_rates
from .lora import adapters
from .noise import TRAINING, VALIDATION, NoiseSchedule
from .ranks import noticing
from .resume import PARTIAL, PREFIX, best_intact, keep, last_intact, step_of
from .sharding import take_over, whole
from .shared import SharedTrainer, checkpointed, load_whole, reading, spread_copy
from .spikes import SpikeWatch
from .streaming import Stream
from .telemetry import hardware_metrics
from .tokens import Blocks, Mixed, TokenData

if TYPE_CHECKING:
    from .recipe import Recipe
    from .trainer_schema import TrainerConfig


class Diverged(RunError):
    """The loss became NaN or infinite."""


class Interrupted(RunError):
    """Ctrl-C, or the system asks to end: the state is saved and the same command goes on from there."""

    status = RESUME


@dataclass(slots=True, kw_only=True)
class Training:
    """How one model is trained, and where it resumes from."""

    stage: str
    """For messages."""
    setting: str
    """For messages: where the recipe is set, such as `trainer.finetune`."""
    recipe: Recipe
    shared: TrainerConfig
    """Precision, validation tokens and device, which all recipes share."""
    context: int
    """Tokens a sequence."""
    seed: int = 0
    """Seed of noise and dropout."""
    data_seed: int = 0
    """Seed of the data's order."""
    folder: Path
    """What to resume from."""
    run_name: str = "run"
    """For loggers."""
    callbacks: Sequence[TrainerCallback] = ()
    """Loggers."""
    heartbeat: Path | None = None
    """The file that says how far training is; None: none is written."""
    say: Callable[[Any], None] = lambda _: None
    """Gets a line for what was found damaged."""
    again: str = "the same command"
    """What goes on from where a training was interrupted."""
    nonideality: Noise = field(default_factory=Noise)
    """What the recipe's `noise.scale` scales."""
    spikes: Path | None = None
    """Folder of the steps that were far outside of what came before; None: none is saved."""


def train(
    model: PreTrainedModel, data: TokenData, training: Training, teacher: PreTrainedModel | None = None
) -> list[dict[str, float]]:
    """Train in place, resuming from the last complete checkpoint in `training.folder`.

    Args:
        model: digital or converted.
        data: the text, in an order that depends on the seed and the recipe, not on the model.
        training: how.
        teacher: digital model to whose predictions and hidden states the loss draws the model, by the recipe's
            `distillation` and `hidden_weight`.

    Returns:
        The log: one dict a log line, with `step`, `tokens`, and any of `loss`, `eval_loss`, `learning_rate`, …

    Raises:
        Diverged: the loss became NaN or infinite; the checkpoints before that stay.
        Interrupted: Ctrl-C; a checkpoint was written.
        RunError: too little text, a teacher of another kind, or adapters that cannot be.
    """
    recipe = training.recipe
    if recipe.steps == 0:
        return []
    lighten_backward(model)
    if teacher is not None and recipe.has_teacher:
        require_teacher(teacher, model, training.stage)
    setting = f"{training.setting}.lora_rank"
    with (
        adapters(model, recipe.lora_rank, setting, training.seed),
        frozen(model, recipe.learning_rates.factors()),
        dropout(model, recipe.dropout),
    ):
        return _train(model, data, training, teacher if recipe.has_teacher else None)


def _train(
    model: PreTrainedModel, data: TokenData, training: Training, teacher: PreTrainedModel | None
) -> list[dict[str, float]]:
    """As :func:`train`, all parameters as they are to be trained."""
    recipe, context = training.recipe, training.context
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RunError(
            f"{training.setting}.learning_rates: stage {training.stage} has no parameter in the groups that"
            " are not frozen, so nothing would be trained; give another group a factor above 0, or leave the stage out"
        )
    checkpoint = last_intact(training.folder, training.say)
    trained = spread_copy(model, checkpoint, recipe.lora_rank) if training.shared.sharding == "fsdp" else model
    shared = training.shared
    alarms = Alarms(
        model, clip=shared.alarm_clip, drift=shared.alarm_drift, gradient=shared.alarm_gradient, say=training.say
    )
    texts = texts_of(data, training)
    text = texts["train_dataset"]
    trainer = HardwareAwareTrainer(
        training=training,
        teacher=teacher,
        alarms=alarms,
        model=trained,
        args=arguments_of(training, isinstance(text, Stream)),
        **texts,
    )
    if isinstance(text, Stream) and checkpoint is not None:
        text.go_on(checkpoint, lambda: trainer._load_rng_state(str(checkpoint)))
    interrupt = StopOnSignal()
    beating = [] if training.heartbeat is None else [Heartbeat(training.heartbeat, training.stage)]
    for callback in (interrupt, *beating, *training.callbacks):
        trainer.add_callback(callback)
    if checkpoint is not None and is_over(str(checkpoint), recipe.steps, recipe.minutes):
        # Killed after the last step: the trainer would make one step more before it sees that none is left.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    else:
        if trainer.args.process_index:
            # Noise and dropout of its own on every process.
            torch.manual_seed(training.seed + trainer.args.process_index)
        try:
            with (
                interrupt,
                checkpointed(trained, shared.activation_checkpointing),
                reading(training.stage, shared.workers),
            ):
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            if isinstance(text, Stream):
                text.close()
            trainer.noise.take_off()
            # Behind the training the model computes in the precision of its weights, as it will when it is loaded.
            trainer.accelerator.unwrap_model(trained, keep_fp32_wrapper=False)
    if trained is not model:
        take_over(model, trained)
        model.to(trainer.args.device)  # type: ignore[arg-type]
    if interrupt.caught:
        raise Interrupted(
            f"stage {training.stage}: interrupted at step {trainer.state.global_step}; saved in {training.folder};"
            f" {training.again} goes on from there"
        )
    if training.shared.best == "loaded":
        _load_best(trainer, model)
    per_step = context * recipe.batch_size * recipe.accumulate * trainer.args.world_size
    return [{**line, "tokens": line["step"] * per_step} for line in trainer.state.log_history]


def _load_best(trainer: HardwareAwareTrainer, model: PreTrainedModel) -> None:
    """Give the model the weights of the step with the lowest validation loss."""
    losses, last, say = trainer.validation_losses(), trainer.state.global_step, trainer.training.say
    point = best_intact(trainer.training.folder, losses)
    if point is None or step_of(point) == last:
        return
    if trainer.is_sharded:
        load_whole(model, point)
    else:
        trainer._load_from_checkpoint(str(point))
    best = step_of(point)
    say(f"  validation loss was lowest, {losses[best]:.4f}, after step {best} of {last}: ends with the weights of then")


class HardwareAwareTrainer(SharedTrainer):
    """Trainer that stops at the first non-finite loss, decays matrices only, and logs what the hardware does."""

    def __init__(self, training: Training, teacher: PreTrainedModel | None, alarms: Alarms, **kwargs: Any):
        super().__init__(is_sharded=training.shared.sharding == "fsdp", **kwargs)
        self.training, self.alarms = training, alarms
        self.teacher = None if teacher is None else teacher.eval().to(self.args.device)
        if self.teacher is not None and getattr(self.teacher.config, "use_cache", False):
            self.teacher.config.use_cache = False  # nothing is decoded
        self.noise = NoiseSchedule(
            cast(PreTrainedModel, self.model), training.recipe, training.nonideality, training.seed
        )
        self.clock = Clock(training.recipe.steps, training.recipe.minutes)
        self.spikes = SpikeWatch(training, self.noise, self._diverged)
        best = [SaveBest(self.validation_losses)] if training.shared.best == "loaded" else []
        for callback in (self.noise, self.clock, self.spikes, SaveAsAsked(), *best):
            self.add_callback(callback)
        self._last_log = (time.perf_counter(), 0)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        if not self.args.disable_tqdm:
            self.add_callback(Progress(training.stage))

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As the parent, a learning rate a group; static tiles clip and remap their weights after each step."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        factors = self.training.recipe.learning_rates.factors()
        if fresh and set(factors.values()) != {1.0}:
            set_rates(optimizer, cast(PreTrainedModel, self.model), factors)
        if fresh and has_static(cast(PreTrainedModel, self.model)):
            follow_optimizer(cast(PreTrainedModel, self.model), optimizer)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """As the parent, or by the clock."""
        recipe, clock = self.training.recipe, self.clock
        if recipe.minutes is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup_steps = self.args.get_warmup_steps(num_training_steps)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or cast(torch.optim.Optimizer, self.optimizer),
            lambda step: clock.rate(step, warmup_steps, recipe.min_lr_ratio),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Matrices only: neither norms and biases nor the scalers of the arrays are pulled towards zero, nor what says
        how fast a state forgets, which its module marks, or transformers."""
        spared = {
            parameter
            for module in model.modules()
            for parameter in module.parameters(recurse=False)
            if not getattr(module, "has_weight_decay", True) or getattr(parameter, "_no_weight_decay", False)
        }
        return [name for name, x in model.named_parameters() if x.ndim >= 2 and x not in spared]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy with the text; with a teacher, a weighted mean of that and of the divergence from its
        predictions, and the distance from its hidden states."""
        if self.teacher is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        recipe = self.training.recipe
        hidden_weight = recipe.hidden_weight * (1 - self.clock.share(self.state.global_step))
        extra = {"output_hidden_states": True} if hidden_weight else {}
        if (weight := recipe.distillation) == 1:  # the text has no say: its loss would cost a tenth of a step
            outputs = model(**{name: x for name, x in inputs.items() if name != "labels"}, **extra)
            loss: Any = 0.0
        else:
            loss, outputs = super().compute_loss(model, {**inputs, **extra}, True, num_items_in_batch)
            loss = (1 - weight) * loss
        with torch.no_grad(), self.accelerator.autocast():  # the model itself is wrapped in it, its teacher is not
            wanted = self.teacher(input_ids=inputs["input_ids"], **extra)
        # The parent's loss may be this micro-batch's share of a mean over the whole step.
        micro_steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        if weight:
            difference = divergence(outputs.logits, wanted.logits, recipe.temperature, recipe.reverse_share)
            loss = loss + weight * (difference / micro_steps)
        if hidden_weight:
            distance = hidden_distance(outputs.hidden_states, wanted.hidden_states)
            loss = loss + hidden_weight * (distance / micro_steps)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the parent, on clean hardware or under noise, as the recipe says."""
        with self.noise.while_evaluating(self.state.global_step):
            return super().evaluate(*args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        self.noise.draw(self.state.global_step, self.args.eval_batch_size, self.args, VALIDATION)
        return super().prediction_step(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.noise.draw(self.state.global_step, self.training.recipe.batch_size, self.args, TRAINING)
        loss = super().training_step(*args, **kwargs)
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        self.spikes.saw(inputs["input_ids"], loss)
        # Of a step that is left out nothing stays, in the sum that is logged either.
        left_out = self.training.shared.on_spike == "skip" and not torch.isfinite(loss)
        return torch.zeros_like(loss) if left_out else loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent, just before the optimiser's step."""
        norm = super()._get_grad_norm(*args, **kwargs)
        self.spikes.step.gradient = float(whole(norm) if isinstance(norm, torch.Tensor) else norm)
        return norm

    def validation_losses(self) -> dict[int, float]:
        """By step."""
        return {int(line["step"]): line["eval_loss"] for line in self.state.log_history if "eval_loss" in line}

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """As the parent, but whole or not at all; and not if the last update broke the weights: a finite loss can have
        an infinite gradient."""
        broken = next(
            (name for name, parameter in model.named_parameters() if not torch.isfinite(whole(parameter)).all()), None
        )
        if broken is not None:
            raise self._diverged(f"{broken} became NaN or infinite at step {self.state.global_step}")
        folder = Path(str(self.args.output_dir))
        # torch tells of a full disk by a RuntimeError.
        with saving(folder, "output_dir", "the last point to resume from is intact", (RuntimeError,)), noticing():
            self._only_once(lambda: remove(folder / PARTIAL))
            try:
                super()._save_checkpoint(model, trial)
                self._only_once(self._keep)
            except BaseException:
                remove(folder / PARTIAL)  # on a full disk, room for the next try
                raise

    def _keep(self) -> None:
        """Put what was written in place, with the place where a streamed text is to go on."""
        step = self.state.global_step
        if isinstance(self.train_dataset, Stream):
            written = Path(self._get_output_dir(None)) / f"{PREFIX}{step}"
            self.train_dataset.save(written, step * self.get_total_train_batch_size(self.args))
        shared = self.training.shared
        losses = self.validation_losses() if shared.best != "off" else {}
        keep(Path(str(self.args.output_dir)), step, shared.keep_points, losses)

    def _get_output_dir(self, trial: Any) -> str:
        """Where the parent writes a checkpoint."""
        return str(Path(str(self.args.output_dir)) / PARTIAL)

    def _only_once(self, work: Callable[[], None]) -> None:
        """Work on the folder by one process, between what all have done before and do after it."""
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            work()
        self.accelerator.wait_for_everyone()

    def _diverged(self, what: str, saved: str = "") -> Diverged:
        last = last_intact(Path(str(self.args.output_dir)), self.training.say)
        kept = f"the last good checkpoint is {last}" if last else "there was no checkpoint yet"
        return Diverged(
            f"stage {self.training.stage}: {what}; {kept}; lower {self.training.setting}.learning_rate{saved}"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.training.recipe.minutes is not None:
            logs["seconds"] = round(self.clock.spent_s, 3)
        if "loss" in logs:
            now, step = time.perf_counter(), self.state.global_step
            before, step_before = self._last_log
            per_step = (
                self.get_total_train_batch_size(self.args) * cast(Blocks | Mixed | Stream, self.train_dataset).context
            )
            if step_before:
                logs["tokens_per_s"] = (step - step_before) * per_step / (now - before)
            self._last_log = (now, step)
            if "learning_rate" in logs:
                # The parent logs that of the first group, whichever it is.
                assert self.optimizer is not None
                logs["learning_rate"] /= self.optimizer.param_groups[0].get("factor", 1.0)
            logs.update(self.noise.logged(step))
            if self.teacher is None:
                logs["perplexity"] = math.exp(min(logs["loss"], 30.0))
            validation = cast(Blocks, self.eval_dataset)
            sample = torch.stack([validation[i]["input_ids"] for i in range(min(2, len(validation)))])
            logs.update(metrics := hardware_metrics(model := cast(PreTrainedModel, self.model), sample))
            logs.update(self.alarms.look(model, metrics))
            self.alarms.look_at_gradients(model, self.spikes.usual_gradient(), self.training.recipe.max_grad_norm)
        if "eval_loss" in logs:
            logs["eval_perplexity"] = math.exp(min(logs["eval_loss"], 30.0))
            logs.update(self.noise.logged_evaluation(self.state.global_step))
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As the parent, less the pickled arguments: the config stands beside the stage as YAML."""
        super()._save(output_dir, state_dict)
        (Path(str(output_dir or self.args.output_dir)) / "training_args.bin").unlink(missing_ok=True)
