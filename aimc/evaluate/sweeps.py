"""What each non-ideality costs: perplexity under one at a time, and under all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

from torch import Tensor
from transformers import PreTrainedModel

from aimc.evaluate.measurement import Measurement, MeasurementFields, measurement_of
from aimc.evaluate.perplexity import Perplexity, perplexity
from aimc.hardware import Noise


def nonideality_sweep(
    model: PreTrainedModel,
    tokens: Tensor,
    nonideality: Noise,
    measurement: Measurement | None = None,
    *,
    on_result: Callable[[str, Perplexity], None] | None = None,
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
        fields: of the measurement, in place of its own.

    Returns:
        Rows by name: `clean`, the active fields of `nonideality`, and `all`.
    """
    measurement = measurement_of(measurement, fields, default=Measurement(chips=4))
    cases = {"clean": Noise()} | {name: nonideality.only(name) for name in nonideality.active()} | {"all": nonideality}
    rows = {}
    for name, noise in cases.items():
        rows[name] = perplexity(model, tokens, measurement, nonideality=noise)
        if on_result is not None:
            on_result(name, rows[name])
    return rows
