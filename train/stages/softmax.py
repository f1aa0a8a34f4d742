"""The digital model onto arrays with a digital softmax between them, by range calibration alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aimc.hardware import Hardware
from aimc.hardware.presets import linearised, with_softmax

from .stage import CALIBRATION, Stage, StageResult, Switch

if TYPE_CHECKING:
    from ..run import Run


def run(run: Run) -> StageResult:
    """Calibrate on three machines; kept is the model on finer converters."""
    import copy

    import aimc

    from ..models import converted

    reference = run.model_of("digital")
    result = StageResult(reference)
    for name, (hardware, settings) in _machines(run.config.hardware).items():
        result.model = copy.deepcopy(reference)
        converted(result.model, hardware)
        report = aimc.calibrate_ranges(result.model, reference, run.batches(), **settings)
        run.say(f"  {name}: {report}")
        result.perplexity[name] = run.measure(result.model)
        result.notes[name] = str(report)
    return result


def _machines(own: Hardware) -> dict[str, tuple[Hardware, dict[str, Any]]]:
    """What is calibrated, by name, and how; the last is the one to keep."""
    ideal = with_softmax(
        replace(linearised(own), leakage=replace(own.leakage, tau_s=None)),
        **dict.fromkeys(("input_levels", "storage_levels", "score_levels", "probability_levels", "readout_levels")),
    )
    levels = {
        "input_levels": own.input_dac.n_levels,
        "storage_levels": own.storage_dac.n_levels,
        "readout_levels": own.readout.n_levels,
    }
    return {
        "softmax, ideal arrays": (ideal, {"percentile": 100.0}),
        "softmax, the hardware's own levels": (with_softmax(own, **levels), {"method": "search"}),
        "softmax, finer levels": (with_softmax(own), {"method": "search"}),
    }


STAGE = Stage(
    name="softmax",
    folder="softmax",
    describe=(
        "The digital baseline on gain-cell arrays with a digital softmax between them, by range calibration; no"
        " training."
    ),
    run=run,
    needs="digital",
    depends_on=("hardware", *CALIBRATION),
    switch=Switch("with_softmax", default=False),
)
