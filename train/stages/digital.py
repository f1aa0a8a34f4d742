"""The digital baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .stage import Stage, StageResult

if TYPE_CHECKING:
    from ..run import Run


def run(run: Run) -> StageResult:
    """Load it, or train it from scratch, or both."""
    from ..models import digital_model, require_convertible

    model = digital_model(run.config.model, run.data.tokenizer, run.config.seed).to(run.device)  # type: ignore[arg-type]
    if run.config.stage.name == "pipeline":
        require_convertible(model)
    source, steps = run.config.model.source, run.recipe("digital").steps
    if source is not None and steps:
        run.say(f"  {source} is trained on for {steps} steps first; trainer.digital.steps=0 takes it as it is")
    history = run.train(model)
    notes = {"validation perplexity": run.validate(model)}
    return StageResult(model, {"digital": run.measure(model)}, history, notes)


STAGE = Stage(
    name="digital",
    folder="digital",
    describe="The digital baseline.",
    run=run,
    recipes=("digital",),
    depends_on=("model",),
    analog=False,
)
