"""Onto arrays of linear cells, scalers set from the digital statistics, then hardware-aware training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aimc.hardware.presets import linearised

from .stage import CALIBRATION, PUBLISHED, Stage, StageResult

if TYPE_CHECKING:
    from ..run import Run


def run(run: Run) -> StageResult:
    """Convert, set the scalers, train."""
    import copy

    import aimc

    from ..models import converted

    reference = run.model_of("digital")
    result = StageResult(copy.deepcopy(reference))
    run.say(converted(result.model, linearised(run.config.hardware)))
    result.perplexity["linear cell, published start"] = run.measure(result.model)
    if run.config.stage.start == "statistics":
        report = aimc.initialise_scalers(result.model, reference, run.own_batches())
        result.notes["output matching"] = str(report)
        result.perplexity["linear cell, statistics start"] = run.measure(result.model)
    result.history = run.train(result.model, teacher=run.teacher())
    result.perplexity["linear cell, trained"] = run.measure(result.model)
    result.notes["clip fractions"] = run.clip_fractions(result.model)
    return result


STAGE = Stage(
    name="linear",
    folder="linear",
    describe="Attention on gain-cell arrays with a linear cell, trained hardware-aware.",
    run=run,
    needs="digital",
    route=PUBLISHED,
    recipes=("linear",),
    depends_on=("hardware", "stage.start", *CALIBRATION),
    curve="linear cell",
)
