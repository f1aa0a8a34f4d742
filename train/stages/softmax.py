"""The digital model onto arrays with a digital softmax between them, by range calibration alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from aimc.hardware import Hardware
from aimc.hardware.presets import for_pretrained, linearised, with_softmax

from .stage import CALIBRATION, Stage, StageResult, Switch

if TYPE_CHECKING:
    from ..run import Run


def run(run: Run) -> StageResult:
    """Calibrate on three machines; kept is the model on finer converters."""
    import copy

    import aimc

    from ..models import converted, rotation_for

    reference = run.model_of("digital")
    result = StageResult(reference)
    for name, hardware in _machines(run.config.hardware, rotation_for(reference)).items():
        result.model = copy.deepcopy(reference)
        converted(result.model, hardware)
        report = aimc.calibrate_ranges(result.model, reference, run.batches())
        run.say(f"  {name}: {report}")
        result.perplexity[name] = run.measure(result.model)
        result.notes[name] = str(report)
    return result


def _machines(own: Hardware, rotation: str) -> dict[str, Hardware]:
    """What is calibrated, by name; the last is the one to keep."""
    ideal = with_softmax(
        replace(linearised(own), leakage=replace(own.leakage, tau_s=None)),
        **dict.fromkeys(("input_levels", "storage_levels", "score_levels", "probability_levels", "readout_levels")),
    )
    published = for_pretrained(
        own,
        input_levels=own.input_dac.n_levels,
        storage_levels=own.storage_dac.n_levels,
        readout_levels=own.readout.n_levels,
        rotation=rotation,
    )
    return {
        "softmax, ideal arrays": ideal,
        "softmax, the hardware's own levels": published,
        "softmax, finer levels": for_pretrained(own, rotation=rotation),
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
