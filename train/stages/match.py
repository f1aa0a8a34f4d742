"""Straight onto arrays of nonlinear cells: scalers set from the digital statistics, counters from their levels, then
every attention block trained by itself to give the digital block's output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .stage import CALIBRATION, DIRECT, LEVELS, Stage, StageResult

if TYPE_CHECKING:
    from ..run import Run


def run(run: Run) -> StageResult:
    """Convert, set the scalers and full scales, match the outputs layer by layer, fit the output projections."""
    import copy

    import aimc

    from ..errors import RunError
    from ..groups import frozen
    from ..models import converted
    from ..ranks import everyone

    reference, recipe = run.model_of("digital"), run.config.trainer.recipe("match")
    result = StageResult(copy.deepcopy(reference))
    run.say(converted(result.model, run.config.hardware))
    result.perplexity["nonlinear cell, straight from digital"] = run.measure(result.model)
    aimc.initialise_scalers(result.model, reference, run.own_batches())
    result.perplexity["nonlinear cell, statistics start"] = run.measure(result.model)
    run.fit_full_scales(result.model, result.notes, aimc.Noise(), trained=False)
    if recipe.steps:
        factors = recipe.learning_rates
        text = run.sequences("match")
        try:
            with frozen(result.model, factors.factors() | {"rest": 1.0}):
                report = aimc.match_outputs(
                    result.model,
                    reference,
                    text,
                    steps=recipe.steps,
                    minutes=recipe.minutes,
                    learning_rate=recipe.learning_rate * (factors.attention or 1.0),  # of a group that is frozen, any
                    scaler_learning_rate=recipe.learning_rate * (factors.scalers or 1.0),
                    max_grad_norm=recipe.max_grad_norm,
                    own_stream=run.config.stage.match_own_stream,
                    patience=run.config.stage.match_patience,
                    seed=run.config.seed,
                    progress=True,
                    ranks=everyone(),
                )
        except ValueError as error:  # what was given, or an error that is no longer finite
            raise RunError(f"stage match: {error}; see trainer.match and stage.match_…") from error
        run.say(str(report))
        per_step = report.n_tokens // report.steps
        result.history = [
            {"step": step, "tokens": step * per_step, "error": error} for step, error in enumerate(report.history, 1)
        ]
        result.perplexity["nonlinear cell, layer-wise start"] = run.measure(result.model)
        result.notes["output matching"] = str(report)
    if len(sequences := run.sequences_to_fit()):
        try:
            fit = aimc.fit_projections(result.model, reference, [sequences], ranks=everyone())
        except ValueError as error:  # a block without a projection that may be changed
            raise RunError(f"stage match: {error}; or set stage.fit_sequences=0") from error
        run.say(str(fit))
        result.perplexity["nonlinear cell, projections fitted"] = run.measure(result.model)
        result.notes["fit of the projections"] = str(fit)
    result.notes["clip fractions"] = run.clip_fractions(result.model)
    return result


STAGE = Stage(
    name="match",
    folder="matched",
    describe=(
        "Attention on gain-cell arrays with the nonlinear cell, each block matched by itself to the digital one's"
        " output; the rest of the model is the digital one's."
    ),
    run=run,
    needs="digital",
    recipes=("match",),
    fits=LEVELS,
    route=DIRECT,
    depends_on=("hardware", "stage.fit_sequences", *CALIBRATION),
)
