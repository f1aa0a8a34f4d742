"""Swap in the nonlinear cell and match statistics to the linear model; no gradient. Also what happens without any of
this."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .stage import CALIBRATION, PUBLISHED, Stage, StageResult

if TYPE_CHECKING:
    from ..run import Run


def run(run: Run) -> StageResult:
    """Match statistics, and measure after each iteration."""
    import copy

    import aimc

    from ..models import converted

    hardware, settings = run.config.hardware, run.config.stage
    reference = run.model_of("linear")
    result = StageResult(copy.deepcopy(reference))
    naive = run.model_of("digital")
    converted(naive, hardware)
    result.perplexity["nonlinear cell, straight from digital"] = run.measure(naive)
    aimc.set_hardware(result.model, hardware)
    curve: list[dict[str, float]] = []

    def on_iteration(iteration: int, deviation: float) -> None:
        value = run.measure(result.model)
        curve.append({"iteration": iteration, "perplexity": value, "deviation": deviation})
        run.say(f"  iteration {iteration}: perplexity {value:.2f}, largest deviation {deviation:.3f} σ")

    report = aimc.match_statistics(
        result.model,
        reference=reference,
        batches=run.own_batches(),
        iterations=settings.adapt_iterations,
        damping=settings.adapt_damping,
        tolerance=settings.adapt_tolerance,
        on_iteration=on_iteration,
    )
    run.say(str(report))
    result.perplexity["nonlinear cell, unadapted"] = curve[0]["perplexity"]
    result.perplexity["nonlinear cell, adapted"] = curve[-1]["perplexity"]
    result.notes |= {
        "adaptation": curve,
        "matching": str(report),
        "clip fractions": run.clip_fractions(result.model),
    }
    return result


STAGE = Stage(
    name="adapt",
    folder="adapted",
    describe=(
        "The linear model's weights on the nonlinear cell, scalers adapted by statistics matching; no gradient step."
    ),
    run=run,
    needs="linear",
    route=PUBLISHED,
    depends_on=(
        "hardware",
        *CALIBRATION,
        "stage.adapt_iterations",
        "stage.adapt_damping",
        "stage.adapt_tolerance",
    ),
)
