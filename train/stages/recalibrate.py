"""One chip, such as a measured one: the scalers of the fine-tuned model trained on it, everything else as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .stage import Stage, StageResult

if TYPE_CHECKING:
    from ..run import Run


def run(run: Run) -> StageResult:
    """Train on the chip of the recipe's noise, of the hardware that the model has, and measure there before and
    after."""
    import aimc
    from aimc.models.arrays import hardware_of

    noise = run.config.trainer.recipe("recalibrate").noise
    chip, nonideality = int(noise.chip), run.training_noise("recalibrate")
    name = f"chip {chip}" + (f" at {noise.scale:g} × its noise" if noise.scale != 1 else "")
    result = StageResult(run.model_of("finetune"))
    aimc.set_hardware(result.model, replace(hardware_of(result.model), backend=run.config.hardware.backend))
    result.perplexity[f"{name}, as it is"] = run.measure_on_chip(result.model, nonideality, chip)
    result.history = run.train(result.model, teacher=run.teacher())
    result.perplexity[f"{name}, recalibrated"] = run.measure_on_chip(result.model, nonideality, chip)
    return result


STAGE = Stage(
    name="recalibrate",
    folder="recalibrated",
    describe="Attention on gain-cell arrays, fine-tuned, then recalibrated to one chip.",
    run=run,
    needs="finetune",
    recipes=("recalibrate",),
    data_order=3,
    is_alone=True,
)
