"""What non-idealities cost: perplexity under one at a time and under all, and against their scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Unpack

from torch import Tensor
from transformers import PreTrainedModel

from aimc.evaluate.measurement import Measurement, MeasurementFields, measurement_of
from aimc.evaluate.perplexity import Perplexity, perplexity
from aimc.hardware import Noise
from aimc.models.ranks import ALONE, Ranks


def nonideality_sweep(
    model: PreTrainedModel,
    tokens: Tensor,
    nonideality: Noise,
    measurement: Measurement | None = None,
    *,
    on_result: Callable[[str, Perplexity], None] | None = None,
    ranks: Ranks = ALONE,
    **fields: Unpack[MeasurementFields],
) -> dict[str, Perplexity]:
    """Perplexity clean, under each non-ideality alone, and under all together.

    Whatever is random beside the gain cells (static tiles) is drawn in every row.

    Args:
        model: converted.
        tokens: int64 `[N]`.
        nonideality: the sizes of the non-idealities.
        measurement: as for :func:`aimc.perplexity`; None: four chips.
        on_result: called after each row.
        ranks: processes that share the chips; each must call this.
        fields: of the measurement, in place of its own.

    Returns:
        Rows by name: `clean`, the active fields of `nonideality`, and `all`; without an active field `clean` alone.
    """
    measurement = measurement_of(measurement, fields, default=Measurement(chips=4))
    cases = {"clean": Noise()} | {name: nonideality.only(name) for name in nonideality.active()}
    if nonideality.active():
        cases["all"] = nonideality
    rows = {}
    for name, noise in cases.items():
        rows[name] = perplexity(model, tokens, measurement, nonideality=noise, ranks=ranks)
        if on_result is not None:
            on_result(name, rows[name])
    return rows


def rescue(
    models: Mapping[str, PreTrainedModel],
    tokens: Tensor,
    nonideality: Noise,
    scales: Sequence[float] = (0.0, 0.5, 1.0, 2.0, 3.0),
    measurement: Measurement | None = None,
    *,
    on_result: Callable[[str, float, Perplexity], None] | None = None,
    **fields: Unpack[MeasurementFields],
) -> dict[str, dict[float, Perplexity]]:
    """Perplexity of several models against the scale of all non-idealities: what training against them bought.

    All models meet the same chips. Chips that training under noise drew have numbers from 2^32 on, so that those
    measured here were not trained on.

    Args:
        models: converted, by name.
        tokens: int64 `[N]`.
        nonideality: of scale 1.
        scales: factors on every field of it.
        measurement: as for :func:`aimc.perplexity`; None: four chips.
        on_result: called after each point.
        fields: of the measurement, in place of its own.

    Returns:
        Perplexity by scale, by the model's name.
    """
    measurement = measurement_of(measurement, fields, default=Measurement(chips=4))
    curves: dict[str, dict[float, Perplexity]] = {}
    for name, model in models.items():
        curves[name] = {}
        for scale in scales:
            point = perplexity(model, tokens, measurement, nonideality=nonideality.scaled(scale))
            curves[name][scale] = point
            if on_result is not None:
                on_result(name, scale, point)
    return curves
