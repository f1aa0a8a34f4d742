"""One checkpoint on one text: what is opened for it, what is measured, what is written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import PartialState
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

import aimc
from aimc.evaluate.ablation import ablation
from aimc.evaluate.agreement import Agreement, agreement
from aimc.evaluate.chips import in_cells
from aimc.evaluate.measurement import Measurement
from aimc.evaluate.perplexity import Perplexity, perplexity
from aimc.evaluate.reference import require_reference
from aimc.evaluate.sweeps import nonideality_sweep
from aimc.hardware import Noise
from aimc.models.arrays import gain_cell_layers, hardware_of, has_arrays
from aimc.models.substrates import substrates_under

from .alarms import tell_full_normaliser
from .errors import RunError
from .models import load_any, on_accelerator
from .pretrained import load_digital
from .ranks import everyone
from .report import add_results, write_results
from .tables import Say, ablation_table, agreement_table, announced, sweep_table
from .tokens import prepare, require_vocabulary
from .windows import placed

if TYPE_CHECKING:
    from .schema import EvaluationConfig


@dataclass(frozen=True, slots=True)
class Reference:
    """The digital model that a checkpoint is compared with."""

    model: PreTrainedModel
    name: str
    """Where it came from, as it is shown."""


def model_of(checkpoint: str, nonideality: Noise) -> PreTrainedModel:
    """The model to measure.

    Raises:
        RunError: none is there, or it has nothing that could be non-ideal.
    """
    model = load_any(checkpoint)
    if nonideality.active() and not in_cells(model):
        raise RunError(
            f"checkpoint={checkpoint}: a digital model has no arrays to be non-ideal; set nonideality=none, or"
            " name a converted model"
        )
    return on_accelerator(model)


def text_of(settings: EvaluationConfig, model: PretrainedConfig, say: Say) -> tuple[Tensor, Measurement]:
    """The text, int64 `[N]`, in the model's own tokens, and the measurement with its windows settled.

    Raises:
        RunError: unusable text, windows or tokenizer.
    """
    measurement = placed(settings.measure, settings.data, model)
    data = prepare(settings.data, settings.checkpoint, measurement.context or 1, say)
    require_vocabulary(data.tokenizer, model, settings.checkpoint)
    return data.tensor(settings.split, measurement.tokens), measurement


def digital_of(settings: EvaluationConfig, model: PreTrainedModel) -> Reference:
    """The digital model that the checkpoint is compared with.

    Raises:
        RunError: there is none, it cannot be loaded, or it is not what the checkpoint was made of.
    """
    checkpoint = Path(settings.checkpoint)
    beside = checkpoint.parent / "digital"
    if settings.digital is not None:
        reference = Reference(load_digital(settings.digital, "digital"), settings.digital)
    elif (beside / "config.json").exists() and beside.resolve() != checkpoint.resolve():
        reference = Reference(load_digital(str(beside), "digital"), str(beside))
    elif substrates_under(model) and all(
        layer.hardware.activation != "hard_sigmoid" for _, layer in gain_cell_layers(model)
    ):
        reference = Reference(aimc.to_digital(load_any(settings.checkpoint)), "the same weights")
    else:
        raise RunError(
            f"with_digital=true: there is no digital model to compare {checkpoint} with (no {beside}, and its own"
            " weights are digital already or trained for another activation); set digital=<folder>"
        )
    try:
        require_reference(model, reference.model)
    except ValueError as error:
        raise RunError(f"digital={reference.name}: {error}") from error
    return Reference(on_accelerator(reference.model), reference.name)


def measure(
    model: PreTrainedModel,
    text: Tensor,
    measurement: Measurement,
    settings: EvaluationConfig,
    digital: Reference | None,
    say: Say,
) -> None:
    """Measure perplexity clean and under each non-ideality, where asked also with each effect off and against the
    digital model; write and show it."""
    without: dict[str, float] = {}
    if has_arrays(model) and hardware_of(model).normaliser.is_on:
        window = hardware_of(model).array.window
        seen = text[None, : min(measurement.context or 1, window)]  # at once, by the eager operator
        tell_full_normaliser(model, aimc.clip_fractions(model, [seen]), say)
    if settings.ablate and not has_arrays(model):
        raise RunError(
            "ablate=true: the effects that are switched off are those of attention's arrays, and this model has none;"
            " leave it out"
        )
    if in_cells(model):
        sweep = nonideality_sweep(
            model, text, settings.nonideality, measurement, on_result=announced(say), ranks=everyone()
        )
        if settings.ablate:
            _write(settings, without, sweep)  # kept, whatever becomes of the rest
            without = {
                name if name == "all effects" else f"without {name}": float(value)
                for name, value in ablation(model, text, measurement).items()
            }
    else:
        sweep = {"clean": perplexity(model, text, measurement, ranks=everyone())}
    say(sweep_table(sweep))
    if without:
        say(ablation_table(without))
    _write(settings, without, sweep)
    if digital is not None:
        against = {name: _agreement(model, digital, text, measurement, noise) for name, noise in _cases(settings)}
        say(agreement_table(against, digital.name))
        if PartialState().is_main_process:
            rows = {name: asdict(row) for name, row in against.items()}
            add_results(settings.folder, {"agreement": {"digital": digital.name, "rows": rows}})


def _write(settings: EvaluationConfig, without: dict[str, float], sweep: dict[str, Perplexity]) -> None:
    """What is measured so far, by one of the processes."""
    if PartialState().is_main_process:
        write_results(settings.folder, without, sweep)
        aimc.plot.save(aimc.plot.nonideality_bars(sweep), settings.folder / "nonidealities.png")


def _cases(settings: EvaluationConfig) -> list[tuple[str, Noise]]:
    noisy = [("all", settings.nonideality)] if settings.nonideality.active() else []
    return [("clean", Noise()), *noisy]


def _agreement(
    model: PreTrainedModel, digital: Reference, text: Tensor, measurement: Measurement, noise: Noise
) -> Agreement:
    try:
        return agreement(model, digital.model, text, measurement, nonideality=noise)
    except ValueError as error:  # the digital model has too few positions
        raise RunError(f"digital={digital.name}: {error}") from error
