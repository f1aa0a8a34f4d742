"""One training run of one stage: transformers' Trainer, with what a hardware-aware run must never do left out of reach."""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from train.callbacks import COMPLETE, MarkComplete, Progress, StopOnSignal
from train.errors import RunError
from train.schema import Budget, RunConfig
from train.telemetry import hardware_metrics
from train.tokens import Blocks, TokenData


class Diverged(RunError):
    """The loss became NaN or infinite."""


class Interrupted(RunError):
    """Ctrl-C: the state is saved and the same command goes on from there."""


def train(
    model: PreTrainedModel, data: TokenData, config: RunConfig, stage: str, budget: Budget, folder: Path, context: int
) -> list[dict[str, float]]:
    """Train in place, resuming from the last complete checkpoint in `folder`.

    Returns:
        The log: one dict a log line, with `step`, `tokens`, and any of `loss`, `eval_loss`, `learning_rate`, …

    Raises:
        Diverged: the loss became NaN or infinite; the checkpoints before that stay.
        Interrupted: Ctrl-C; a checkpoint was written.
    """
    if budget.steps == 0:
        return []
    if len(Blocks(data.splits["train"], context)) < budget.batch_size:
        raise RunError(
            f"the training text holds {len(data.splits['train'])} tokens, fewer than one batch of {budget.batch_size} × {context}; "
            f"give more text or set trainer.{stage}.batch_size lower"
        )
    trainer = HardwareAwareTrainer(
        stage=stage,
        model=model,
        args=_arguments(config, budget, folder),
        train_dataset=Blocks(data.splits["train"], context),
        eval_dataset=Blocks(data.splits["valid"], context, limit=config.trainer.eval_tokens),
    )
    interrupt = StopOnSignal()
    trainer.add_callback(interrupt)
    trainer.add_callback(MarkComplete())
    with interrupt:
        trainer.train(resume_from_checkpoint=last_complete(folder))
    if interrupt.caught:
        raise Interrupted(
            f"stage {stage}: interrupted at step {trainer.state.global_step}; saved in {folder}; the same command goes on from there"
        )
    per_step = context * budget.batch_size * budget.accumulate * trainer.args.world_size
    return [{**line, "tokens": line["step"] * per_step} for line in trainer.state.log_history]


def last_complete(folder: Path) -> str | None:
    """The newest checkpoint in `folder` that was written to its end."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return str(max(complete, key=lambda path: int(path.name.split("-")[1]))) if complete else None


def _arguments(config: RunConfig, budget: Budget, folder: Path) -> TrainingArguments:
    if config.logger.name == "wandb":
        os.environ.setdefault("WANDB_PROJECT", config.logger.project)
        os.environ.setdefault("WANDB_DIR", str(folder))
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
        data_seed=config.seed,
        bf16=config.trainer.precision == "bf16",
        fp16=config.trainer.precision == "fp16",
        use_cpu=config.trainer.device == "cpu" or not torch.cuda.is_available(),
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        disable_tqdm=not sys.stderr.isatty(),
        report_to="none" if config.logger.name == "none" else config.logger.name,
        run_name=f"{folder.parent.parent.name}-{folder.parent.name}",
    )


class HardwareAwareTrainer(Trainer):
    """Trainer that stops at the first non-finite loss, decays matrices only, and logs what the hardware does."""

    def __init__(self, stage: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.stage = stage
        self._last_log = (time.perf_counter(), 0)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        if not self.args.disable_tqdm:
            self.add_callback(Progress(stage))

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Matrices only: neither norms and biases nor the scalers of the arrays are pulled towards zero."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise Diverged(
                f"stage {self.stage}: the loss became {loss.item()} at step {self.state.global_step + 1}; "
                f"the last good checkpoint stays in {self.args.output_dir}; lower trainer.{self.stage}.learning_rate"
            )
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            now, step = time.perf_counter(), self.state.global_step
            before, step_before = self._last_log
            per_step = self.get_total_train_batch_size(self.args) * self.train_dataset[0]["input_ids"].numel()
            if step_before:
                logs["tokens_per_s"] = (step - step_before) * per_step / (now - before)
            self._last_log = (now, step)
            logs["perplexity"] = math.exp(min(logs["loss"], 30.0))
            sample = torch.stack([self.eval_dataset[i]["input_ids"] for i in range(min(2, len(self.eval_dataset)))])
            logs.update(hardware_metrics(self.model, sample))
        if "eval_loss" in logs:
            logs["eval_perplexity"] = math.exp(min(logs["eval_loss"], 30.0))
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As the parent, less the pickled arguments: the config stands beside the stage as YAML."""
        super()._save(output_dir, state_dict)
        (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)
