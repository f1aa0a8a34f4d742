"""Hardware-aware training of the adapted model on the nonlinear cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .stage import Stage, StageResult

if TYPE_CHECKING:
    from ..run import Run


def run(run: Run) -> StageResult:
    """Train on the nonlinear cell."""
    import aimc

    result = StageResult(run.model_of("adapt"))
    aimc.set_hardware(result.model, run.config.hardware)
    result.history = run.train(result.model, teacher=run.teacher())
    result.perplexity["nonlinear cell, fine-tuned"] = run.measure(result.model)
    result.notes["clip fractions"] = aimc.clip_fractions(result.model, run.batches()[:1])
    return result


STAGE = Stage(
    name="finetune",
    folder="finetuned",
    describe="Attention on gain-cell arrays with the nonlinear cell, adapted and fine-tuned hardware-aware.",
    run=run,
    needs="adapt",
    recipes=("finetune",),
    data_order=1,
    depends_on=("hardware",),
    curve="nonlinear cell, fine-tuned",
)
