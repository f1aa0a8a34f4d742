"""The fine-tuned model trained further, by a recipe of its own: under noise, on other hardware, or for longer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .stage import NOISE, Stage, StageResult

if TYPE_CHECKING:
    from ..run import Run


def run(run: Run) -> StageResult:
    """Train the fine-tuned model on the run's hardware."""
    from aimc.models.arrays import hardware_of

    result, hardware = StageResult(run.model_of("finetune")), run.config.hardware
    result.perplexity["nonlinear cell, as fine-tuned"] = run.measure(result.model)
    if replace(hardware_of(result.model), backend=hardware.backend) != hardware:
        run.say("  it goes on on other hardware than it was fine-tuned on; see hardware= and hardware.…")
    run.train_on_hardware(result, trained=True)
    result.perplexity["nonlinear cell, trained further"] = run.measure(result.model)
    result.notes["clip fractions"] = run.clip_fractions(result.model)
    return result


STAGE = Stage(
    name="further",
    folder="further",
    describe="Attention on gain-cell arrays with the nonlinear cell, fine-tuned hardware-aware, then trained further.",
    run=run,
    needs="finetune",
    recipes=("further",),
    data_order=4,
    fits=NOISE,
    tells_bounds=True,
    depends_on=("hardware",),
    is_alone=True,
)
