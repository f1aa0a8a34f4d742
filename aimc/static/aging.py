"""Programming static tiles and letting them drift, and what the model's perplexity makes of it.

Two clocks run in a whole chip and never meet. Gain cells leak over the tokens of a text: microseconds, in `hardware.leakage.token_time_s`.
Static tiles drift from the day that they were programmed: seconds to years, here always `since_programming_s`. A text is so short beside
the second that tiles stand still while it is read.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from aimc.config import Noise
from aimc.evaluate import Perplexity, perplexity
from aimc.hf import is_digital
from aimc.static.tiles import require_static, seeded, temporarily

SECOND_S, HOUR_S, DAY_S, MONTH_S, YEAR_S = 1.0, 3600.0, 86400.0, 30 * 86400.0, 365 * 86400.0
TIMES_S: dict[str, float] = {"1 second": SECOND_S, "1 hour": HOUR_S, "1 day": DAY_S, "1 month": MONTH_S, "1 year": YEAR_S}
"""Times since programming that are looked at, in second; a month has 30 days."""


@dataclass(slots=True, kw_only=True)
class Aged:
    """Perplexity of a programmed model as time passes."""

    since_programming_s: float
    """Static clock, in second."""
    compensated: bool
    """Whether the tiles' outputs were scaled by what a global drift compensation measured."""
    perplexity: Perplexity
    """Over programmings, each on a chip of its own."""


def program(model: PreTrainedModel, *, seed: int) -> None:
    """Write the weights to the tiles, with the programming noise of their configurations; they stay until :func:`unprogram`.

    Args:
        model: with static tiles, in evaluation.
        seed: of this programming; the same seed writes the same conductances.

    Raises:
        ValueError: no static tiles.
        RuntimeError: the model is in training.
    """
    layers = require_static(model)
    with seeded(seed, "programming"):
        for layer in layers:
            layer.program_analog_weights()


def drift(model: PreTrainedModel, since_programming_s: float, *, seed: int = 0) -> None:
    """Let programmed tiles drift to a time since programming; going back in time is allowed, each cell keeps its own drift exponent.

    Args:
        model: with programmed static tiles.
        since_programming_s: static clock, in second.
        seed: of the 1/f noise at that moment.

    Raises:
        ValueError: no static tiles, tiles that are not programmed, or a negative time.
    """
    layers = require_static(model)
    if since_programming_s < 0:
        raise ValueError(f"since_programming_s={since_programming_s}: drift begins when programming ends; give 0 or more seconds")
    if not all(layer.programmed for layer in layers):
        raise ValueError("the tiles hold their targets, which do not drift; call aimc.static.program(model, seed=…) first")
    with seeded(seed, "drift"):
        for layer in layers:
            layer.drift_analog_weights(since_programming_s)


def unprogram(model: PreTrainedModel) -> None:
    """Back to the targets, for training or saving.

    Raises:
        ValueError: no static tiles.
    """
    for layer in require_static(model):
        layer.unprogram()


@contextmanager
def without_compensation(model: PreTrainedModel) -> Iterator[None]:
    """Tiles whose outputs are not scaled by what drift compensation measured."""
    with temporarily([tile.rpu_config for layer in require_static(model) for tile in layer.tiles], "drift_compensation", None):
        yield


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

    One programming is one chip: its static tiles are written once and then drift, its gain cells are drawn with the same seed. With and
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
    measured: dict[tuple[float, bool], list[Perplexity]] = {(time, with_it): [] for time in times for with_it in compensation}
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
    return [Aged(since_programming_s=time, compensated=w, perplexity=pooled(done)) for (time, w), done in measured.items()]


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
