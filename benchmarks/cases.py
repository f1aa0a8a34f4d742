"""The registry of cases, and running one of their points."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from aimc.evaluate.energy import energy_per_call, find_meter, idle_power
from aimc.evaluate.memory import peak_bytes
from benchmarks import baselines, decoding, evaluation, models, operators, variants
from benchmarks.case import (
    CLEAN,
    COPIED,
    DIGITAL,
    EAGER,
    EARLY,
    HARD_SIGMOID,
    MIDDLE,
    NOISY,
    PRODUCTS,
    SUBJECT,
    Case,
    Point,
    Result,
    Skipped,
)
from benchmarks.settings import PRESET, Settings
from benchmarks.timing import time_in_turn

FORWARD, TRAINING, NO_LEAKAGE, DEMO = "forward", "forward+backward", "forward, no leakage", "demo shape"
NOISE_FORWARD, NOISE_TRAINING, CHIP_FORWARD, CHIP_TRAINING = (
    f"{what}, {how}" for what in (NOISY, "frozen chip") for how in (FORWARD, TRAINING)
)
SOFTMAX_FORWARD, SOFTMAX_TRAINING, PRUNED_FORWARD, PRUNED_TRAINING = (
    f"{what}, {how}" for what in ("softmax", "pruned softmax") for how in (FORWARD, TRAINING)
)
STEP, EVALUATION = "training step", "evaluation"
DECODING, BATCH_DECODING, LONG_TEXT, BASELINE = (
    "decoding",
    "decoding, large batch",
    "decoding, long text",
    "digital baseline",
)


def _variant(name: str, words: str, change: variants.Change, against: str) -> Case:
    gradient = name.endswith(TRAINING)
    return Case(
        name=name,
        measures=f"time of the operator {'and its gradients' if gradient else 'without gradients'}, {words}",
        comparisons=(against,),
        points=partial(variants.variant_points, change=change, against=against, gradient=gradient),
    )


_NOISE = "under write and read noise, mismatch and column errors, against without"
_CHIP = "on one chip with mismatch and column errors, from its second call on, against without"
_SOFTMAX = "with a softmax between the arrays, against the hard sigmoid"
_PRUNED = "where the arrays select tokens for a digital softmax, against the hard sigmoid"
CASES = (
    Case(
        name=FORWARD,
        measures="time of the operator without gradients, and of its matrix products alone",
        comparisons=(DIGITAL, EAGER, PRODUCTS),
        points=operators.forward_points,
    ),
    Case(
        name=TRAINING,
        measures="time of the operator and its gradients, and their peak memory beyond the inputs",
        comparisons=(DIGITAL, EAGER),
        points=operators.training_points,
    ),
    Case(
        name=NO_LEAKAGE,
        measures="time of the operator without gradients, cells that do not leak",
        comparisons=(DIGITAL, EAGER, PRODUCTS),
        points=operators.no_leakage_points,
        leakage=False,
    ),
    Case(
        name=DEMO,
        measures="time of the operator and its gradients at the shape of the demo's model, several sequences, short",
        comparisons=(DIGITAL, EAGER),
        points=operators.demo_points,
    ),
    _variant(NOISE_FORWARD, _NOISE, variants.typical_noise, CLEAN),
    _variant(NOISE_TRAINING, _NOISE, variants.typical_noise, CLEAN),
    _variant(CHIP_FORWARD, _CHIP, variants.frozen_chip, CLEAN),
    _variant(CHIP_TRAINING, _CHIP, variants.frozen_chip, CLEAN),
    _variant(SOFTMAX_FORWARD, _SOFTMAX, variants.softmax, HARD_SIGMOID),
    _variant(SOFTMAX_TRAINING, _SOFTMAX, variants.softmax, HARD_SIGMOID),
    _variant(PRUNED_FORWARD, _PRUNED, variants.pruned_softmax, HARD_SIGMOID),
    _variant(PRUNED_TRAINING, _PRUNED, variants.pruned_softmax, HARD_SIGMOID),
    Case(
        name=STEP,
        measures=(
            "time and peak memory of forward, backward and AdamW of a GPT-2 against the same model digital; also under"
            " noise"
        ),
        comparisons=(DIGITAL, NOISY),
        points=models.training_points,
    ),
    Case(
        name=EVALUATION,
        measures=(
            "time of one window of a pretrained model on 6-bit arrays against the same model digital; also under noise"
        ),
        comparisons=(DIGITAL, NOISY),
        points=evaluation.evaluation_points,
    ),
    Case(
        name=DECODING,
        measures=(
            "time and memory of one token of greedy decoding on full arrays of a GPT-2, and of one of the shape of the"
            " model that ships, against the same models digital, the same window"
        ),
        comparisons=(DIGITAL, COPIED),
        points=decoding.decoding_points,
    ),
    Case(
        name=BATCH_DECODING,
        measures="the same for one token of each of several sequences",
        comparisons=(DIGITAL,),
        points=decoding.batch_points,
    ),
    Case(
        name=LONG_TEXT,
        measures="time and memory of one token of greedy decoding late in a text against early, small GPT-2 on arrays",
        comparisons=(EARLY, MIDDLE),
        points=decoding.long_text_points,
    ),
    Case(
        name=BASELINE,
        measures=(
            "time and energy of digital softmax attention of one decoding step in one layer, caches cold; no gain cells"
        ),
        comparisons=tuple(name for name in baselines.CONTENDERS if name != baselines.STEP_SUBJECT),
        points=baselines.step_points,
        leakage=False,
        subject=baselines.STEP_SUBJECT,
    ),
)


def measure(case: Case, make: Callable[[], Point], settings: Settings) -> Result:
    """Check one point, then measure it; an error or a wrong result becomes the reason of a failure, and what is
    not there the reason of being skipped, without numbers."""
    result = Result(
        case=case.name,
        measures=case.measures,
        tokens=0,
        window=0,
        shapes={},
        dtype=settings.dtype,
        hardware=PRESET,
        leakage=case.leakage,
        backend=settings.backend,
        check="not run",
        subject=case.subject,
    )
    if case.subject != SUBJECT:
        result.hardware = result.backend = "digital"
    try:
        point = make()
        result.tokens, result.window, result.shapes = point.tokens, point.window, point.shapes
        result.check = point.check()
        if point.contenders:
            times = time_in_turn(point.contenders, seconds=settings.seconds, device=settings.device)
            result.repetitions = times.repetitions
            result.median_s, result.iqr_s = _per_step(times.median_s, point), _per_step(times.iqr_s, point)
            result.time_ratio = _ratios(result.median_s, case.subject)
        if point.metered:
            _measure_energy(result, point, settings)
        if point.memory:  # behind the timing: what is allocated once, such as an optimiser's state, is there by then
            result.peak_bytes = {name: peak_bytes(call, device=settings.device) for name, call in point.memory.items()}
            result.memory_ratio = _ratios(result.peak_bytes, case.subject)
        result.held_bytes = {name: held() for name, held in point.held.items()}
        result.held_ratio = _ratios(result.held_bytes, case.subject)
    except Skipped as reason:
        result.skipped = str(reason)
    except Exception as error:  # any: the other cases should still be seen
        result.failed = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return result


def _measure_energy(result: Result, point: Point, settings: Settings) -> None:
    meter, result.energy_source = find_meter(settings.device)
    if meter is None:
        return
    seconds = settings.seconds / len(point.contenders)
    result.idle_w = idle_power(meter, seconds=seconds)
    per_call = {
        name: energy_per_call(call, meter, seconds=seconds, device=settings.device)
        for name, call in point.contenders.items()
    }
    result.energy_j = _per_step(per_call, point)


def _per_step(per_call: dict[str, float], point: Point) -> dict[str, float]:
    return {name: value / point.steps.get(name, 1) for name, value in per_call.items()}


def _ratios(of: dict[str, float] | dict[str, int], subject: str) -> dict[str, float]:
    return {name: of[subject] / value for name, value in of.items() if name != subject}
