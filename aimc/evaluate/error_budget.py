"""Budget of error: what attention on gain cells costs, what weights on static tiles cost, and what both cost
together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Unpack

from torch import Tensor
from transformers import PreTrainedModel

from aimc.evaluate.ageing import ageing
from aimc.evaluate.measurement import Measurement, MeasurementFields, measurement_of
from aimc.evaluate.perplexity import Perplexity, perplexity
from aimc.hardware import Noise
from aimc.models.arrays import gain_cell_layers
from aimc.static.copies import on_tiles, static_of
from aimc.static.programming import DAY_S
from aimc.static.tiles import computing_digitally, has_static

ROWS = ("digital", "only attention analog", "only static weights analog", "both")
"""Rows of the budget, in order."""


def error_budget(
    digital: PreTrainedModel,
    analog: PreTrainedModel,
    tokens: Tensor,
    batches: Sequence[Tensor],
    measurement: Measurement | None = None,
    *,
    static: Any = "pcm",
    since_programming_s: float = DAY_S,
    nonideality: Noise | None = None,
    on_result: Callable[[str, Perplexity], None] | None = None,
    **fields: Unpack[MeasurementFields],
) -> dict[str, Perplexity]:
    """Held-out perplexity with no part analog, with each, and with both; no weight is changed, programmed tiles go back
    to their targets.

    Attention alone is the analog model with its linear layers computed digitally. Static weights alone are those of the
    digital model. A chip is a draw of the gain cells' non-idealities and one programming of the tiles, drifted with
    global compensation.

    Args:
        digital: the digital model.
        analog: attention on gain cells; with static tiles (trained for both), or without: then it is put on tiles as it
            is.
        tokens: int64 `[N]`.
        batches: token ids `[B, T]` each, to set the input ranges of tiles that no training has set.
        measurement: as for :func:`aimc.perplexity`; None: three chips.
        static: tiles for a model that has none, as in :func:`aimc.convert`; one that has some keeps them, and the
            digital model gets the same.
        since_programming_s: static clock, in second.
        nonideality: of the gain cells; None: the hardware's own.
        on_result: called after each row.
        fields: of the measurement, in place of its own.

    Returns:
        Rows by name, see :data:`ROWS`.

    Raises:
        ValueError: a digital model that is not, an analog one without gain cells, a negative time, no batches, or what
            :func:`aimc.perplexity` refuses.
    """
    if _has_gain_cells(digital) or has_static(digital):
        raise ValueError(
            "the first model is to be the digital one, and it is converted; give the model before its conversion"
        )
    if not _has_gain_cells(analog):
        raise ValueError("the second model has no attention on gain cells; call aimc.convert(model, hardware) first")
    if not (math.isfinite(since_programming_s) and since_programming_s >= 0):
        raise ValueError(
            f"since_programming_s={since_programming_s}: drift begins when programming ends; give 0 or more seconds"
        )
    if not batches:
        raise ValueError("batches is empty: nothing to measure input ranges on; give token ids [B, T]")
    measurement = measurement_of(measurement, fields, default=Measurement(chips=3))
    tiles = static_of(analog) if has_static(analog) else static

    def drifted(model: PreTrainedModel, noise: Noise | None = None) -> Perplexity:
        (aged,) = ageing(
            model, tokens, measurement, times_s=[since_programming_s], compensation=[True], nonideality=noise
        )
        return aged.perplexity

    def rows() -> Iterator[tuple[str, Perplexity]]:
        yield ROWS[0], perplexity(digital, tokens, measurement)
        with computing_digitally(analog) if has_static(analog) else nullcontext():
            yield ROWS[1], perplexity(analog, tokens, measurement, nonideality=nonideality)
        yield ROWS[2], drifted(on_tiles(digital, tiles, batches))
        whole = analog if has_static(analog) else on_tiles(analog, tiles, batches)
        yield ROWS[3], drifted(whole, nonideality)

    measured = {}
    for name, value in rows():
        measured[name] = value
        if on_result is not None:
            on_result(name, value)
    return measured


def _has_gain_cells(model: PreTrainedModel) -> bool:
    return any(True for _ in gain_cell_layers(model))
