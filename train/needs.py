"""Everything that a run will need later, looked at before its first stage: nothing is found missing after hours."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import torch

from aimc.static.install import MissingAihwkit, require_aihwkit

from .errors import RunError
from .recipe import FRESH
from .run import Run
from .stages.stage import CALIBRATION


def require_all(run: Run) -> None:
    """Check packages, devices, texts and teachers of all stages that a run wants.

    Raises:
        RunError: something is missing.
    """
    config, stages = run.config, [run.config.stage.stage(name) for name in run.config.stage.wanted()]
    on_gpu = config.trainer.device != "cpu" and torch.cuda.is_available()
    recipes = {name for stage in stages for name in stage.recipes if config.trainer.recipe(name).steps}
    if any(stage.name == "joint" for stage in stages):
        try:
            require_aihwkit()
        except MissingAihwkit as error:
            raise RunError(f"stage joint: {error}") from error
    for name in sorted(recipes):
        if rank := config.trainer.recipe(name).lora_rank:
            _require_package("peft", f"trainer.{name}.lora_rank={rank}", "pip install 'aimc[lora]', or set it to 0")
    if config.logger.name == "wandb":
        _require_package("wandb", "logger=wandb", "pip install 'aimc[train]', or set logger=none")
    if config.hardware.backend == "triton" and any(stage.analog for stage in stages) | (not stages):
        if not on_gpu:
            raise RunError(
                "hardware.backend=triton: its kernels run on NVIDIA GPUs, and this run is on a CPU; set"
                " hardware.backend=auto, which takes the fastest that the machine has"
            )
        _require_package("triton", "hardware.backend=triton", "pip install triton, or set hardware.backend=auto")
    if config.trainer.precision == "fp16" and recipes and not on_gpu:
        raise RunError(
            "trainer.precision=fp16: its gradients are scaled on GPUs only, and this run is on a CPU; set"
            " trainer.precision=bf16 or fp32"
        )
    if any(CALIBRATION[0] in stage.depends_on or stage.tells_bounds for stage in stages):
        run.batches()
    if any(replace(run, stage=stage).fits_full_scales for stage in stages):
        run.text_to_fit()
    if any("stage.fit_sequences" in stage.depends_on for stage in stages):
        run.sequences_to_fit()
    if config.data.streaming:  # what is kept of the text is enough
        run.data.require("test", config.measure.tokens)
        run.data.require("valid", config.trainer.eval_tokens)
    if any(stage.name == "recalibrate" for stage in stages):
        _require_chip(run)
    _require_teachers(run)


def _require_chip(run: Run) -> None:
    """That there is one chip to recalibrate to, and something that is off about it."""
    noise = run.config.trainer.recipe("recalibrate").noise
    if noise.chip == FRESH:
        raise RunError(
            f"trainer.recalibrate.noise.chip={FRESH}: a model is recalibrated to one chip, while fresh ones are for"
            " trainer.finetune; use stage=recalibrate, which brings its recipe, and give the chip's number, such as 7"
        )
    if not noise.scale:
        raise RunError(
            "trainer.recalibrate.noise.scale=0: nothing is off about this chip, so nothing would be recalibrated; 1 is"
            " `nonideality` as it stands"
        )


def _require_package(name: str, setting: str, remedy: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise RunError(f"{setting}: needs {name}, which is not installed; {remedy}")


def _require_teachers(run: Run) -> None:
    """That there is or will be a teacher for all that learn from one."""
    wanted = run.config.stage.wanted()
    for at in (replace(run, stage=run.config.stage.stage(name)) for name in wanted):
        for teacher in map(at.teacher_name, at.stage.recipes):
            if teacher is not None and teacher not in wanted:
                at.input(teacher)
