"""What transformers' Trainer is given: texts in sequences, and its arguments."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from .errors import RunError
from .streaming import Stream
from .tokens import Blocks, Mixed, TokenData

if TYPE_CHECKING:
    from .trainer import Training


def texts_of(data: TokenData, training: Training) -> dict[str, Blocks | Mixed | Stream]:
    """Training and validation text in sequences, by the name of the Trainer's argument.

    Raises:
        RunError: too little of one.
    """
    recipe, context = training.recipe, training.context
    text = data.training_blocks(context, training.data_seed)
    validation = Blocks(data.splits["valid"], context, limit=training.shared.eval_tokens)
    if not len(validation):
        raise RunError(
            f"trainer.eval_tokens={training.shared.eval_tokens}: fewer than one sequence of {context} tokens; give"
            f" {context} or more"
        )
    sizes = [n for n in (recipe.batch_size, recipe.accumulate, PartialState().num_processes) if n > 1] or [1]
    if not isinstance(text, Stream) and len(text) < math.prod(sizes):
        n_tokens = len(text) * context if data.written is not None else len(data.splits["train"])
        raise RunError(
            f"the training text holds {n_tokens} tokens, fewer than one batch of {' × '.join(map(str, sizes))} ×"
            f" {context}; give more text or set {training.setting}.batch_size lower"
        )
    return {"train_dataset": text, "eval_dataset": validation}


def arguments_of(training: Training, is_streamed: bool) -> TrainingArguments:
    """A recipe in the words of transformers; a stream of text goes to its place by itself."""
    recipe, shared = training.recipe, training.shared
    on_cpu = shared.device == "cpu" or not torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(training.folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulate,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": recipe.min_lr_ratio},
        warmup_steps=min(recipe.warmup_steps, recipe.steps // 2),
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.beta1,
        adam_beta2=recipe.beta2,
        max_grad_norm=recipe.max_grad_norm,
        logging_steps=recipe.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=recipe.eval_every,
        prediction_loss_only=True,
        save_steps=recipe.save_every,
        seed=training.seed,
        data_seed=training.data_seed,
        bf16=shared.precision == "bf16",
        fp16=shared.precision == "fp16",
        use_cpu=on_cpu,
        dataloader_num_workers=shared.workers,
        ignore_data_skip=is_streamed,
        ddp_backend="gloo" if on_cpu and PartialState().use_distributed else None,
        dataloader_drop_last=True,
        dataloader_pin_memory=not on_cpu,
        ddp_find_unused_parameters=False,
        disable_tqdm=not sys.stderr.isatty(),
        report_to="none",
        run_name=training.run_name,
    )
