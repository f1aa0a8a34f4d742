"""One training run of one stage: transformers' Trainer, with what a hardware-aware run must never do left out of
reach."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from torch.nn.functional import kl_div
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from aimc.static.tiles import follow_optimizer, has_static

from .callbacks import COMPLETE, MarkComplete, Progress, StopOnSignal, WandbLog
from .errors import RunError
from .schema import Budget, RunConfig
from .telemetry import hardware_metrics
from .tokens import Blocks, TokenData

DATA_SEEDS = {"finetune": 1, "joint": 2}
"""Added to the seed of the data's order where a stage goes on from another: not with the same sequences again."""


class Diverged(RunError):
    """The loss became NaN or infinite."""


class Interrupted(RunError):
    """Ctrl-C: the state is saved and the same command goes on from there."""


def train(
    model: PreTrainedModel,
    data: TokenData,
    config: RunConfig,
    stage: str,
    budget_name: str,
    folder: Path,
    context: int,
    teacher: PreTrainedModel | None = None,
) -> list[dict[str, float]]:
    """Train in place, resuming from the last complete checkpoint in `folder`.

    Args:
        model: digital or converted.
        data: the text, in an order that depends on the seed and the budget, not on the model.
        config: the run.
        stage: for messages.
        budget_name: `digital`, `linear`, `finetune` or `joint`: which budget of `config.trainer`.
        folder: what to resume from.
        context: tokens a sequence.
        teacher: digital model whose predictions the loss draws the model to, by the budget's `distillation`.

    Returns:
        The log: one dict a log line, with `step`, `tokens`, and any of `loss`, `eval_loss`, `learning_rate`, …

    Raises:
        Diverged: the loss became NaN or infinite; the checkpoints before that stay.
        Interrupted: Ctrl-C; a checkpoint was written.
    """
    budget: Budget = getattr(config.trainer, budget_name)
    if budget.steps == 0:
        return []
    training = Blocks(data.splits["train"], context)
    validation = Blocks(data.splits["valid"], context, limit=config.trainer.eval_tokens)
    if not len(validation):
        raise RunError(
            f"trainer.eval_tokens={config.trainer.eval_tokens}: fewer than one sequence of {context} tokens; give"
            f" {context} or more"
        )
    if len(training) < budget.batch_size * PartialState().num_processes:
        raise RunError(
            f"the training text holds {len(data.splits['train'])} tokens, fewer than one batch of {budget.batch_size} ×"
            f" {context}; give more text or set trainer.{budget_name}.batch_size lower"
        )
    trainer = HardwareAwareTrainer(
        stage=stage,
        budget_name=budget_name,
        teacher=teacher if budget.distillation else None,
        distillation=budget.distillation,
        model=model,
        args=_arguments(config, budget_name, folder),
        train_dataset=training,
        eval_dataset=validation,
    )
    interrupt = StopOnSignal()
    trainer.add_callback(interrupt)
    trainer.add_callback(MarkComplete())
    if config.logger.name == "wandb":
        trainer.add_callback(WandbLog(config.logger.project, Path(config.output_dir)))
    checkpoint = last_complete(folder)
    if checkpoint is not None and int(checkpoint.rpartition("-")[2]) >= budget.steps:
        # Killed after the last step: the trainer would make one step more before it sees that none is left.
        trainer._load_from_checkpoint(checkpoint)
        trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    else:
        if trainer.args.process_index:
            torch.manual_seed(config.seed + trainer.args.process_index)  # noise and dropout of its own on every process
        with interrupt:
            trainer.train(resume_from_checkpoint=checkpoint)
    if interrupt.caught:
        raise Interrupted(
            f"stage {stage}: interrupted at step {trainer.state.global_step}; saved in {folder}; the same command goes"
            " on from there"
        )
    per_step = context * budget.batch_size * budget.accumulate * trainer.args.world_size
    return [{**line, "tokens": line["step"] * per_step} for line in trainer.state.log_history]


def last_complete(folder: Path) -> str | None:
    """The newest checkpoint in `folder` that was written to its end."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return str(max(complete, key=lambda path: int(path.name.split("-")[1]))) if complete else None


def _arguments(config: RunConfig, budget_name: str, folder: Path) -> TrainingArguments:
    budget: Budget = getattr(config.trainer, budget_name)
    on_cpu = config.trainer.device == "cpu" or not torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=budget.steps,
        per_device_train_batch_size=budget.batch_size,
        per_device_eval_batch_size=budget.batch_size,
        gradient_accumulation_steps=budget.accumulate,
        learning_rate=budget.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": budget.min_lr_ratio},
        warmup_steps=min(budget.warmup_steps, budget.steps // 2),
        weight_decay=budget.weight_decay,
        adam_beta1=budget.beta1,
        adam_beta2=budget.beta2,
        max_grad_norm=budget.max_grad_norm,
        logging_steps=budget.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=budget.eval_every,
        prediction_loss_only=True,
        save_steps=budget.save_every,
        save_total_limit=2,
        seed=config.seed,
        data_seed=config.seed + DATA_SEEDS.get(budget_name, 0),
        bf16=config.trainer.precision == "bf16",
        fp16=config.trainer.precision == "fp16",
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and PartialState().use_distributed else None,
        dataloader_drop_last=True,
        dataloader_pin_memory=not on_cpu,
        ddp_find_unused_parameters=False,
        disable_tqdm=not sys.stderr.isatty(),
        report_to="none",
        run_name=f"{folder.parent.parent.name}-{folder.parent.name}",
    )


class HardwareAwareTrainer(Trainer):
    """Trainer that stops at the first non-finite loss, decays matrices only, and logs what the hardware does."""

    def __init__(
        self, stage: str, budget_name: str, teacher: PreTrainedModel | None, distillation: float, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.stage, self.budget_name = stage, budget_name
        self.teacher = None if teacher is None else teacher.eval().to(self.args.device)
        self.distillation = distillation
        self._last_log = (time.perf_counter(), 0)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        if not self.args.disable_tqdm:
            self.add_callback(Progress(stage))

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As the parent; static tiles clip and remap their weights after each step."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh and has_static(cast(PreTrainedModel, self.model)):
            follow_optimizer(cast(PreTrainedModel, self.model), optimizer)
        return optimizer

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Matrices only: neither norms and biases nor the scalers of the arrays are pulled towards zero."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """With the last, smaller batch, which the parent would drop along with that of the training text."""
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = True

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy with the text; with a teacher, a weighted mean of that and of the divergence from its
        predictions."""
        if self.teacher is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        with torch.no_grad():
            wanted = self.teacher(input_ids=inputs["input_ids"]).logits.float().log_softmax(-1)
        divergence = (
            kl_div(outputs.logits.float().log_softmax(-1), wanted, log_target=True, reduction="none").sum(-1).mean()
        )
        if (
            num_items_in_batch is not None
        ):  # the parent's loss is then this micro-batch's share of a mean over the whole step
            divergence = divergence / self.current_gradient_accumulation_steps
        loss = (1 - self.distillation) * loss + self.distillation * divergence
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss became {loss.item()} at step {self.state.global_step + 1}")
        return loss

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """As the parent, unless the last update broke the weights: a finite loss can have an infinite gradient."""
        broken = next(
            (name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()), None
        )
        if broken is not None:
            raise self._diverged(f"{broken} became NaN or infinite at step {self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _diverged(self, what: str) -> Diverged:
        last = last_complete(Path(str(self.args.output_dir)))
        kept = f"the last good checkpoint is {last}" if last else "there was no checkpoint yet"
        return Diverged(f"stage {self.stage}: {what}; {kept}; lower trainer.{self.budget_name}.learning_rate")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            now, step = time.perf_counter(), self.state.global_step
            before, step_before = self._last_log
            per_step = self.get_total_train_batch_size(self.args) * cast(Blocks, self.train_dataset).context
            if step_before:
                logs["tokens_per_s"] = (step - step_before) * per_step / (now - before)
            self._last_log = (now, step)
            if self.teacher is None:
                logs["perplexity"] = math.exp(min(logs["loss"], 30.0))
            validation = cast(Blocks, self.eval_dataset)
            sample = torch.stack([validation[i]["input_ids"] for i in range(min(2, len(validation)))])
            logs.update(hardware_metrics(cast(PreTrainedModel, self.model), sample))
        if "eval_loss" in logs:
            logs["eval_perplexity"] = math.exp(min(logs["eval_loss"], 30.0))
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As the parent, less the pickled arguments: the config stands beside the stage as YAML."""
        super()._save(output_dir, state_dict)
        (Path(str(output_dir or self.args.output_dir)) / "training_args.bin").unlink(missing_ok=True)
