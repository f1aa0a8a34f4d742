"""What transformers' Trainer leaves open where several processes train as one: the same steps and the same validation
however many there are, and a model that is spread over them, saved and resumed whole."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data._utils import signal_handling
from transformers import PreTrainedModel, Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from aimc.static.tiles import has_static

from . import sharding
from .errors import RESUME, RunError
from .tokens import Blocks, Mixed


def spread_copy(model: PreTrainedModel, checkpoint: Path | None, lora_rank: int) -> PreTrainedModel:
    """A copy to be spread over the processes, with the weights of the point that training goes on from; meanwhile the
    model itself waits in the memory of the CPU.

    Raises:
        RunError: a model that cannot be spread.
    """
    if lora_rank:
        raise RunError(
            f"trainer.sharding=fsdp: low-rank adapters (lora_rank={lora_rank}) are small enough for every process; set"
            " trainer.sharding=none"
        )
    if has_static(model):
        raise RunError("trainer.sharding=fsdp: static tiles cannot be spread over processes; set trainer.sharding=none")
    copied = copy.deepcopy(model)
    if checkpoint is not None:
        load_whole(copied, checkpoint)
    model.to("cpu")  # type: ignore[arg-type]
    return copied


def load_whole(model: PreTrainedModel, checkpoint: Path) -> None:
    """Give a model the weights of a point to resume from.

    Raises:
        RunError: it is of another model.
    """
    lacking = model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
    unknown = [*lacking.unexpected_keys, *(set(lacking.missing_keys) - set(model.all_tied_weights_keys))]
    if unknown:
        raise RunError(f"{checkpoint} is of another model ({unknown[0]}); give restart=true to begin anew")


@contextmanager
def checkpointed(model: PreTrainedModel, is_on: bool) -> Iterator[None]:
    """A model whose layers keep their input alone and compute again for their gradients, while the block runs. What it
    does again meets the same noise: the trainer chooses that for each pass, and dropout's generator is put back.

    Raises:
        RunError: a model that cannot.
    """
    if not is_on:
        yield
        return
    # The older of the two names goes with transformers 6.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise RunError(
            f"trainer.activation_checkpointing=true: {error}; set it to false, and a smaller batch_size with a larger"
            " accumulate where memory is short"
        ) from error
    try:
        yield
    finally:
        disable()


class LostWorker(RunError):
    """A process that reads the text died."""

    status = RESUME


@contextmanager
def reading(stage: str, workers: int) -> Iterator[None]:
    """Around a training whose text other processes read.

    Raises:
        LostWorker: one of them died.
    """
    if workers:
        # Or torch raises wherever the program is when a process ends, once for each; it asks after them too.
        signal_handling._SIGCHLD_handler_set = True
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        if not workers or "_try_get_data" not in frames:
            raise
        told = (str(error).splitlines() or [type(error).__name__])[0].strip()
        raise LostWorker(
            f"stage {stage}: a process that reads the text died ({told}), for lack of memory perhaps; the last point to"
            " resume from is intact, and the same command goes on from there; trainer.workers=0 reads without"
        ) from error


class SharedTrainer(Trainer):
    """Trainer of one process among any number.

    Args:
        is_sharded: whether they share the model too; it must be on the device, and is spread in place.
        kwargs: of the parent.
    """

    def __init__(self, *, is_sharded: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.is_sharded = is_sharded
        if is_sharded and not hasattr(self, "is_distributed_loading_by_transformers"):
            raise RunError(
                "trainer.sharding=fsdp: this version of transformers would average gradients twice; update it (pip"
                " install -U transformers), or set trainer.sharding=none"
            )
        if is_sharded:
            sharding.shard(cast(PreTrainedModel, self.model), self.args.device)
            # The parent's word for a model that brings its own sharding: no wrapper, nor gradients averaged again.
            self.is_distributed_loading_by_transformers = True

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        """The parent's order, which the seed draws for each pass over the text, up to the last whole step: so the steps
        are the same ones however many processes and micro-steps share them."""
        text = cast(Blocks | Mixed, self.train_dataset if train_dataset is None else train_dataset)
        per_step = self.get_total_train_batch_size(self.args)
        return RandomSampler(text, num_samples=len(text) // per_step * per_step)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """With the last, smaller batch, which the parent would drop along with that of the training text. Several
        processes get batches of one size, for the parent fills up the last ones with sequences from the start."""
        n, size, ranks = (
            len(cast(Blocks, self.eval_dataset)),
            self.args.per_device_train_batch_size,
            self.args.world_size,
        )
        whole = (k for k in range(size, 0, -1) if n % (k * ranks) == 0)
        self.args.per_device_eval_batch_size = size if ranks == 1 else next(whole, 1)
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = True

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the parent; a spread model is put together."""
        if not self.is_sharded:
            return super().save_model(output_dir, _internal_call)
        state = sharding.whole_state(cast(PreTrainedModel, self.model), keep=self.args.should_save)
        if self.args.should_save:
            self._save(output_dir, state_dict=state)
        return None

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As the parent, into the same files."""
        if not self.is_sharded:
            return super()._save_optimizer_and_scheduler(output_dir)
        state = sharding.optimizer_state(cast(PreTrainedModel, self.model), self._optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)
        return None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As the parent; a spread model has read its weights before it was spread."""
        if not self.is_sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As the parent, from the same files."""
        if checkpoint is None or not self.is_sharded:
            return super()._load_optimizer_and_scheduler(checkpoint)
        folder, first = Path(checkpoint), self.args.process_index == 0
        state = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True) if first else None
        sharding.load_optimizer_state(cast(PreTrainedModel, self.model), self._optimizer, state)
        assert self.lr_scheduler is not None
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))
        return None

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        """The optimiser itself, out of accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)  # type: ignore[return-value]
