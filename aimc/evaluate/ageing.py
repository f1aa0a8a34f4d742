"""Perplexity of a model on static tiles as time passes since they were programmed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Unpack

from torch import Tensor
from transformers import PreTrainedModel

from aimc.evaluate.measurement import Measurement, MeasurementFields, measurement_of
from aimc.evaluate.perplexity import Perplexity, over_chips, perplexity
from aimc.hardware import Noise
from aimc.models.arrays import gain_cell_layers
from aimc.models.modes import evaluating
from aimc.static.programming import TIMES_S, drift, program, unprogram, without_compensation
from aimc.static.tiles import require_static


@dataclass(slots=True, kw_only=True)
class AgedPerplexity:
    """Perplexity of a programmed model as time passes."""

    since_programming_s: float
    """Static clock, in second."""
    compensated: bool
    """Whether the tiles' outputs were scaled by what a global drift compensation measured."""
    perplexity: Perplexity
    """Over programmings, each on a chip of its own."""


def ageing(
    model: PreTrainedModel,
    tokens: Tensor,
    measurement: Measurement | None = None,
    *,
    times_s: Mapping[str, float] | Sequence[float] = TIMES_S,
    nonideality: Noise | None = None,
    compensation: Sequence[bool] = (True, False),
    on_result: Callable[[AgedPerplexity], None] | None = None,
    programmings: int | None = None,
    **fields: Unpack[MeasurementFields],
) -> list[AgedPerplexity]:
    """Perplexity after each time since programming, with and without global drift compensation.

    One chip is one programming: its static tiles are written once and then drift, its gain cells are drawn with the
    same seed. With and without compensation are measured on the same conductances. Afterwards the tiles hold their
    targets again, also if they were programmed before.

    Args:
        model: with static tiles; its attention digital or on gain cells.
        tokens: int64 `[N]`.
        measurement: as for :func:`aimc.perplexity`; None: three chips.
        times_s: static clock, in second.
        nonideality: of the gain cells, in place of the hardware's own; None: the hardware's own.
        compensation: whether to compensate; each is measured.
        on_result: called after each time and kind.
        programmings: former name of `chips`.
        fields: of the measurement, in place of its own.

    Raises:
        ValueError: no static tiles, no time or kind of compensation or one twice, or what :func:`aimc.perplexity`
            refuses.
    """
    require_static(model)
    if programmings is not None:
        warnings.warn("ageing(programmings=…) is called chips now", DeprecationWarning, stacklevel=2)
        fields["chips"] = programmings
    measurement = measurement_of(measurement, fields, default=Measurement(chips=3))
    times = _times(times_s)
    kinds = _kinds(compensation)
    noise = nonideality if any(True for _ in gain_cell_layers(model)) else None
    measured: dict[tuple[float, bool], list[Perplexity]] = {(time, kind): [] for time in times for kind in kinds}
    try:
        with evaluating(model):
            for chip in range(measurement.seed, measurement.seed + measurement.chips):
                of_chip = replace(measurement, chips=1, seed=chip)
                program(model, seed=chip)
                for time in times:
                    drift(model, time, seed=chip)
                    for kind in kinds:
                        done = measured[time, kind]
                        with nullcontext() if kind else without_compensation(model):
                            done.append(perplexity(model, tokens, of_chip, nonideality=noise))
                        if on_result is not None and len(done) == measurement.chips:
                            on_result(_aged(time, kind, done))
    finally:
        unprogram(model)
    return [_aged(time, kind, done) for (time, kind), done in measured.items()]


def _times(times_s: Mapping[str, float] | Sequence[float]) -> list[float]:
    times = list(times_s.values()) if isinstance(times_s, Mapping) else list(times_s)
    if not times or len(set(times)) < len(times):
        raise ValueError(f"times_s={times}: give at least one time since programming, in second, and each once")
    for time in times:
        if not (math.isfinite(time) and time >= 0):
            raise ValueError(f"times_s has {time}: drift begins when programming ends; give 0 or more seconds")
    return times


def _kinds(compensation: Sequence[bool]) -> list[bool]:
    kinds = [compensation] if isinstance(compensation, bool) else list(compensation)
    if not kinds or len(set(kinds)) < len(kinds) or not all(isinstance(kind, bool) for kind in kinds):
        raise ValueError(
            f"compensation={compensation!r}: say which kinds are measured, each once; give [True], [False], or both"
        )
    return kinds


def _aged(time: float, kind: bool, chips: Sequence[Perplexity]) -> AgedPerplexity:
    """One result over chips that were measured one by one."""
    first = chips[0]
    values = [value for chip in chips for value in chip.per_chip]
    pooled = over_chips(values, n_tokens=first.n_tokens, context=first.context, stride=first.stride)
    return AgedPerplexity(since_programming_s=time, compensated=kind, perplexity=pooled)
