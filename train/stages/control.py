"""The digital model with the same extra training, recipe by recipe, that the analog one gets: what it is to be compared
with. By what it reads what is matched layer by layer there, :meth:`train.run.Run.recipe` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .stage import Stage, StageResult, Switch

if TYPE_CHECKING:
    from ..run import Run


def run(run: Run) -> StageResult:
    """Train the digital baseline further, by the recipes of the analog stages."""
    model = run.model_of("digital")
    history: list[dict[str, float]] = []
    for recipe in run.stage.recipes:
        log = run.train(model, recipe, run.teacher(recipe))
        done = history[-1] if history else {"step": 0, "tokens": 0}
        history += [{**line, **{count: line[count] + done[count] for count in ("step", "tokens")}} for line in log]
    return StageResult(model, {"digital, same extra tokens": run.measure(model)}, history)


STAGE = Stage(
    name="control",
    folder="control",
    describe=(
        "The digital baseline after the same extra training that the analog models get: what they are compared with."
    ),
    run=run,
    needs="digital",
    recipes=("match", "finetune"),
    analog=False,
    switch=Switch("with_control", default=True),
    curve="digital, same extra tokens",
)
