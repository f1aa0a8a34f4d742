"""Programming static tiles and letting them drift.

Two clocks run in a whole chip and never meet. Gain cells leak over the tokens of a text: microseconds, in
`hardware.leakage.token_time_s`. Static tiles drift from the day that they were programmed: seconds to years, here
always `since_programming_s`. A text is so short beside the second that tiles stand still while it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from aimc.static.tiles import require_static, seeded, temporarily

SECOND_S, HOUR_S, DAY_S, MONTH_S, YEAR_S = 1.0, 3600.0, 86400.0, 30 * 86400.0, 365 * 86400.0
TIMES_S: dict[str, float] = {
    "1 second": SECOND_S,
    "1 hour": HOUR_S,
    "1 day": DAY_S,
    "1 month": MONTH_S,
    "1 year": YEAR_S,
}
"""Times since programming that are looked at, in second; a month has 30 days."""


def program(model: PreTrainedModel, *, seed: int) -> None:
    """Write the weights to the tiles, with the programming noise of their configurations; they stay until
    :func:`unprogram`.

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
    """Let programmed tiles drift to a time since programming; going back in time is allowed, each cell keeps its own
    drift exponent.

    Args:
        model: with programmed static tiles.
        since_programming_s: static clock, in second.
        seed: of the 1/f noise at that moment.

    Raises:
        ValueError: no static tiles, tiles that are not programmed, or a negative time.
    """
    layers = require_static(model)
    if since_programming_s < 0:
        raise ValueError(
            f"since_programming_s={since_programming_s}: drift begins when programming ends; give 0 or more seconds"
        )
    if not all(layer.programmed for layer in layers):
        raise ValueError(
            "the tiles hold their targets, which do not drift; call aimc.static.program(model, seed=…) first"
        )
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
    with temporarily(
        [tile.rpu_config for layer in require_static(model) for tile in layer.tiles], "drift_compensation", None
    ):
        yield
