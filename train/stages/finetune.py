"""Hardware-aware training on the nonlinear cell, of the matched or, on the published route, the adapted model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .stage import NOISE, Stage, StageResult

if TYPE_CHECKING:
    from ..run import Run


def run(run: Run) -> StageResult:
    """Train on the nonlinear cell."""
    assert run.stage.needs is not None  # below
    result = StageResult(run.model_of(run.stage.needs))
    run.train_on_hardware(result, trained=False)
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
    tells_bounds=True,
    depends_on=("hardware",),
    curve="nonlinear cell, fine-tuned",
)
