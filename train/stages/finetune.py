"""Hardware-aware training on the nonlinear cell, of the matched or, on the published route, the adapted model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .stage import NOISE, Stage, StageResult

if TYPE_CHECKING:
    from ..run import Run


def run(run: Run) -> StageResult:
    """Train on the nonlinear cell."""
    import aimc

    assert run.stage.needs is not None  # below
    result = StageResult(run.model_of(run.stage.needs))
    aimc.set_hardware(result.model, run.config.hardware)
    if run.recipe("finetune").noise.scale:
        run.fit_full_scales(result.model, result.notes, run.training_noise("finetune"), trained=False)
    result.history = run.train(result.model, teacher=run.teacher())
    run.fit_full_scales(result.model, result.notes, run.config.nonideality)
    result.perplexity["nonlinear cell, fine-tuned"] = run.measure(result.model)
    result.notes["clip fractions"] = run.clip_fractions(result.model)
    return result


STAGE = Stage(
    name="finetune",
    folder="finetuned",
    describe="Attention on gain-cell arrays with the nonlinear cell, fine-tuned hardware-aware.",
    run=run,
    needs="match",
    recipes=("finetune",),
    data_order=1,
    fits=NOISE,
    depends_on=("hardware",),
    curve="nonlinear cell, fine-tuned",
)
