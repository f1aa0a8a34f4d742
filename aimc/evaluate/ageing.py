"""Perplexity of a model on static tiles as time passes since they were programmed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from aimc.evaluate.perplexity import Perplexity, perplexity
from aimc.hardware import Noise
from aimc.models.hook import is_digital
from aimc.static.programming import TIMES_S, drift, program, unprogram, without_compensation
from aimc.static.tiles import require_static


@dataclass(slots=True, kw_only=True)
class Aged:
    """Perplexity of a programmed model as time passes."""

    since_programming_s: float
    """Static clock, in second."""
    compensated: bool
    """Whether the tiles' outputs were scaled by what a global drift compensation measured."""
    perplexity: Perplexity
    """Over programmings, each on a chip of its own."""


def retention(
    model: PreTrainedModel,
    tokens: Tensor,
    *,
    times_s: Mapping[str, float] | Sequence[float] = TIMES_S,
    programmings: int = 3,
    nonideality: Noise | None = None,
    compensation: Sequence[bool] = (True, False),
    seed: int = 0,
    on_result: Callable[[Aged], None] | None = None,
    **rule: Any,
) -> list[Aged]:
    """Perplexity after each time since programming, with and without global drift compensation.

    One programming is one chip: its static tiles are written once and then drift, its gain cells are drawn with the
        same seed. With and
    without compensation are measured on the same conductances. Afterwards the tiles hold their targets again, also if
    they were programmed before.

    Args:
        model: with static tiles; its attention digital or on gain cells.
        tokens: int64 `[N]`.
        times_s: static clock, in second.
        programmings: how many.
        nonideality: of the gain cells, in place of the hardware's own; None: the hardware's own.
        compensation: whether to compensate; each is measured.
        seed: of the first programming and chip.
        on_result: called after each time and kind.
        rule: `context`, `stride`, `batch_size` of :func:`aimc.perplexity`.

    Raises:
        ValueError: no static tiles, no programming, or what :func:`aimc.perplexity` refuses.
    """
    require_static(model)
    if programmings < 1:
        raise ValueError(f"programmings={programmings}: at least one is needed; give 3 or more for an error bar")
    times = list(times_s.values()) if isinstance(times_s, Mapping) else list(times_s)
    noise = None if is_digital(model) else nonideality
    measured: dict[tuple[float, bool], list[Perplexity]] = {
        (time, with_it): [] for time in times for with_it in compensation
    }
    was_training = model.training
    model.eval()
    try:
        for chip in range(seed, seed + programmings):
            program(model, seed=chip)
            for time in times:
                drift(model, time, seed=chip)
                for with_it in compensation:
                    with nullcontext() if with_it else without_compensation(model):
                        measured[time, with_it].append(perplexity(model, tokens, nonideality=noise, seed=chip, **rule))
                    done = measured[time, with_it]
                    if on_result is not None and len(done) == programmings:
                        on_result(Aged(since_programming_s=time, compensated=with_it, perplexity=pooled(done)))
    finally:
        unprogram(model)
        model.train(was_training)
    return [
        Aged(since_programming_s=time, compensated=w, perplexity=pooled(done)) for (time, w), done in measured.items()
    ]


def pooled(chips: Sequence[Perplexity]) -> Perplexity:
    """One perplexity over chips that were measured one by one."""
    values = [value for chip in chips for value in chip.per_chip]
    first = chips[0]
    return Perplexity(
        mean=statistics.fmean(values),
        std=statistics.stdev(values) if len(values) > 1 else 0.0,
        per_chip=values,
        n_tokens=first.n_tokens,
        context=first.context,
        stride=first.stride,
    )
