"""One checkpoint on one text: what is opened for it, what is measured, what is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

import aimc
from aimc.evaluate.ablation import ablation
from aimc.evaluate.measurement import Measurement
from aimc.evaluate.perplexity import perplexity
from aimc.evaluate.sweeps import nonideality_sweep
from aimc.hardware import Noise
from aimc.models.arrays import has_arrays

from .errors import RunError
from .models import load_any
from .report import write_results
from .tables import Say, ablation_table, announced, sweep_table
from .tokens import prepare, require_vocabulary
from .windows import placed

if TYPE_CHECKING:
    from .schema import EvaluationConfig


def model_of(checkpoint: str, nonideality: Noise) -> PreTrainedModel:
    """The model to measure.

    Raises:
        RunError: none is there, or it has nothing that could be non-ideal.
    """
    model = load_any(checkpoint)
    if nonideality.active() and not has_arrays(model):
        raise RunError(
            f"checkpoint={checkpoint}: a digital model has no arrays to be non-ideal; set nonideality=none, or"
            " name a converted model"
        )
    return model


def text_of(settings: EvaluationConfig, model: PretrainedConfig) -> tuple[Tensor, Measurement]:
    """The text, int64 `[N]`, in the model's own tokens, and the measurement with its windows settled.

    Raises:
        RunError: unusable text, windows or tokenizer.
    """
    measurement = placed(settings.measure, settings.data, model)
    data = prepare(settings.data, settings.checkpoint, measurement.context or 1)
    require_vocabulary(data.tokenizer, model, settings.checkpoint)
    return data.tensor(settings.split, measurement.tokens), measurement


def measure(
    model: PreTrainedModel,
    text: Tensor,
    measurement: Measurement,
    nonideality: Noise,
    ablate: bool,
    folder: Path,
    say: Say,
) -> None:
    """Measure perplexity clean and under each non-ideality, where asked also with each effect off; write and show
    it."""
    without = {}
    if has_arrays(model):
        sweep = nonideality_sweep(model, text, nonideality, measurement, on_result=announced(say))
        if ablate:
            without = {
                name if name == "all effects" else f"without {name}": float(value)
                for name, value in ablation(model, text, measurement).items()
            }
    else:
        sweep = {"clean": perplexity(model, text, measurement)}
    say(sweep_table(sweep))
    if without:
        say(ablation_table(without))
    write_results(folder, without, sweep)
    aimc.plot.save(aimc.plot.nonideality_bars(sweep), folder / "nonidealities.png")
