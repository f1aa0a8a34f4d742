"""Projections and MLPs onto static tiles, and hardware-aware training of tiles and arrays together; measured a day
after programming."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .stage import CALIBRATION, Stage, StageResult, Switch

if TYPE_CHECKING:
    from ..run import Run


def run(run: Run) -> StageResult:
    """Put the rest on tiles and train everything together."""
    import aimc

    from ..models import converted, static_from

    result = StageResult(run.model_of("finetune"))
    aimc.set_hardware(result.model, run.config.hardware)
    run.say(converted(result.model, static_from(run.config.static)))
    aimc.static.calibrate_input_ranges(result.model, run.batches())
    _after_a_day(run, result, "static tiles, untrained")
    result.history = run.train(result.model, teacher=run.teacher())
    _after_a_day(run, result, "trained together")
    result.notes["clip fractions"] = run.clip_fractions(result.model)
    return result


def _after_a_day(run: Run, result: StageResult, name: str) -> None:
    """Held-out perplexity with the weights as they are wanted, and as devices hold them a day after programming, drift
    compensated."""
    result.perplexity[f"{name}, weights as wanted"] = run.measure(result.model)
    day = run.measure_after_a_day(result.model)
    result.notes[f"{name}, a day after programming"] = day.per_chip
    result.perplexity[f"{name}, a day after programming"] = float(day)


STAGE = Stage(
    name="joint",
    folder="joint",
    describe=(
        "Attention on gain-cell arrays, projections and MLPs on static tiles (aihwkit), trained together; weights are"
        " targets, not programmed."
    ),
    run=run,
    needs="finetune",
    recipes=("joint",),
    data_order=2,
    depends_on=("hardware", "static", *CALIBRATION),
    switch=Switch("with_static", default=False),
    curve="trained together",
)
