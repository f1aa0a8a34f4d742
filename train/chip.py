"""A chip of gain cells and static tiles: what is opened for it, and what is measured on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from aimc.circuit import ChipCost, ModelShape, chip_cost
from aimc.evaluate.ageing import ageing
from aimc.evaluate.error_budget import error_budget
from aimc.evaluate.measurement import Measurement
from aimc.hardware import Noise
from aimc.models.arrays import gain_cell_layers, hardware_of, has_arrays
from aimc.static.config import Static
from aimc.static.copies import on_tiles, static_of
from aimc.static.install import MissingAihwkit, require_aihwkit
from aimc.static.layers import plan
from aimc.static.tiles import has_static, static_layers

from .errors import RunError
from .models import load_any, static_from
from .pretrained import load_digital
from .tables import Say, terminal
from .tokens import TokenData, prepare, require_vocabulary
from .windows import placed

if TYPE_CHECKING:
    from aimc.evaluate.ageing import AgedPerplexity
    from aimc.evaluate.perplexity import Perplexity

    from .schema import WholeChipConfig

AS_IT_IS, TRAINED, UNTRAINED = "on tiles as it is", "trained for both", "trained for gain cells alone"
_BATCH = 16
"""Sequences of a batch over which input ranges are measured."""


@dataclass(slots=True, kw_only=True)
class Subject:
    """What is measured, and how."""

    digital: PreTrainedModel
    analog: PreTrainedModel
    untrained: PreTrainedModel | None
    """The model before the joint stage, on tiles; None where there is none, or the analog model itself was never
    trained for tiles."""
    static: Static
    """Tiles for a model that has none."""
    nonideality: Noise
    text: Tensor
    """int64 `[N]`."""
    batches: list[Tensor]
    """Of training text, token ids `[B, T]`."""
    measurement: Measurement


def opened(settings: WholeChipConfig) -> Subject:
    """Everything that is measured, checked.

    Raises:
        RunError: a model is missing or of the wrong kind, the text is unusable, or aihwkit is not installed.
    """
    try:
        require_aihwkit()
    except MissingAihwkit as error:
        raise RunError(str(error)) from error
    beside = Path(settings.checkpoint).parent
    analog = _analog(settings.checkpoint, settings.untrained)
    digital = _digital(settings.digital or str(beside / "digital"))
    data, measurement = _text(settings, analog.config)
    batches = _batches(data, settings.calibration_batches, measurement.context or 1)
    before = settings.untrained or str(beside / "finetuned")
    compared = has_static(analog) and (settings.untrained is not None or (Path(before) / "config.json").exists())
    return Subject(
        digital=digital,
        analog=analog,
        untrained=on_tiles(load_any(before), static_of(analog), batches) if compared else None,
        static=static_from(settings.static),
        nonideality=settings.nonideality,
        text=data.tensor("test", measurement.tokens),
        batches=batches,
        measurement=measurement,
    )


def _analog(checkpoint: str, untrained: str | None) -> PreTrainedModel:
    model = load_any(checkpoint)
    if not has_arrays(model):
        raise RunError(
            f"checkpoint={checkpoint}: its attention is digital; give a model on gain cells, such as"
            " checkpoints/shipped/joint"
        )
    if untrained is not None and not has_static(model):
        raise RunError(
            f"untrained={untrained}: {checkpoint} has no static tiles, so no training for them is to be"
            " compared; leave it out"
        )
    return model


def _digital(source: str) -> PreTrainedModel:
    if not (Path(source) / "config.json").exists():
        raise RunError(
            f"digital={source}: no model there (no config.json), and everything is compared with the digital one; set"
            " digital=…"
        )
    return load_digital(source, "digital")


def _text(settings: WholeChipConfig, model: PretrainedConfig) -> tuple[TokenData, Measurement]:
    measurement = placed(settings.measure, settings.data, model)
    data = prepare(settings.data, settings.checkpoint, measurement.context or 1, terminal())
    require_vocabulary(data.tokenizer, model, settings.checkpoint)
    return data, measurement


def _batches(data: TokenData, count: int, context: int) -> list[Tensor]:
    stretches = data.tensor("train", count * _BATCH * context).split(_BATCH * context)
    return [part[: len(part) // context * context].view(-1, context) for part in stretches if len(part) >= context]


def budget(subject: Subject, since_programming_s: float, say: Say) -> dict[str, Perplexity]:
    """Held-out perplexity with no part analog, with each, and with both; with both also as it was before training for
    both."""
    rows = error_budget(
        subject.digital,
        subject.analog,
        subject.text,
        subject.batches,
        subject.measurement,
        static=subject.static,
        since_programming_s=since_programming_s,
        nonideality=subject.nonideality,
        on_result=lambda name, value: say(f"  {name}: {value}"),
    )
    if has_static(subject.analog):
        rows[f"both, {TRAINED}"] = rows.pop("both")
    if subject.untrained is not None:
        (then,) = ageing(
            subject.untrained,
            subject.text,
            subject.measurement,
            times_s=[since_programming_s],
            compensation=[True],
            nonideality=subject.nonideality,
        )
        rows[f"both, {UNTRAINED}"] = then.perplexity
        say(f"  both, {UNTRAINED}: {then.perplexity}")
    return rows


def curves(subject: Subject, say: Say) -> dict[str, list[AgedPerplexity]]:
    """Held-out perplexity from a second to a year after programming."""
    if has_static(subject.analog):
        models = {TRAINED: subject.analog}
        if subject.untrained is not None:
            models[UNTRAINED] = subject.untrained
    else:
        models = {AS_IT_IS: on_tiles(subject.analog, subject.static, subject.batches)}
    found = {}
    for name, model in models.items():
        say(f"  {name}: {subject.measurement.chips} programmings, each let drift for a year")
        found[name] = ageing(model, subject.text, subject.measurement, nonideality=subject.nonideality)
    return found


def cost(subject: Subject) -> ChipCost:
    """Of the published 64-core chip's tiles, and of the published arrays with this model's hardware."""
    model = subject.analog
    layers = dict(static_layers(model)) or plan(model, subject.static).layers
    head = any(
        layer.digital is model.get_output_embeddings() or layer is model.get_output_embeddings()
        for layer in layers.values()
    )
    # Embeddings are looked up, not multiplied: they are not counted.
    sizes = [(layer.in_features, layer.out_features) for layer in layers.values() if not layer.is_embedding]
    shape = ModelShape.from_config(model.config, on_arrays=[layer.layer for _, layer in gain_cell_layers(model)])
    return chip_cost(shape, hardware_of(model), layers=sizes, head_on_tiles=head)
