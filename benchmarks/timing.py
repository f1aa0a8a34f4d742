"""Wall-clock time of several contenders, measured in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from aimc.evaluate.quiet import no_gc

MIN_REPETITIONS, MAX_REPETITIONS = 3, 100
QUICK_SHARE = 0.25
"""Of the time for a point: contenders that take less, once each, are called once before they are timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Medians and spread of one point."""

    repetitions: int
    """How often each contender was timed."""
    median_s: dict[str, float]
    """Contender to median, second."""
    iqr_s: dict[str, float]
    """Contender to interquartile range, second."""


def time_in_turn(contenders: Mapping[str, Callable[[], Any]], *, seconds: float, device: str) -> Times:
    """Time the contenders alternately, so that a machine that slows down or speeds up does so for all of them alike.

    The first call of something quick is mostly set-up, so it does not count. Of what takes seconds, and has been
    checked before, it does: set-up weighs little there.

    Args:
        contenders: name to what is timed.
        seconds: aim for the whole, second.
        device: `cpu` or `cuda`; on `cuda` the clock stops when the device has finished.
    """

    def one_round() -> dict[str, float]:
        return {name: _seconds(call, device) for name, call in contenders.items()}

    with no_gc():
        rounds = [one_round()]
        if sum(rounds[0].values()) < QUICK_SHARE * seconds:
            rounds = [one_round()]
        n = int(seconds / max(sum(rounds[0].values()), 1e-9))
        n = max(MIN_REPETITIONS, min(MAX_REPETITIONS, n))
        while len(rounds) < n:
            rounds.append(one_round())
    samples = {name: [times[name] for times in rounds] for name in contenders}
    quartiles = {name: statistics.quantiles(times, n=4, method="inclusive") for name, times in samples.items()}
    return Times(
        repetitions=n,
        median_s={name: statistics.median(times) for name, times in samples.items()},
        iqr_s={name: q[2] - q[0] for name, q in quartiles.items()},
    )


def _seconds(call: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    if device == "cuda":
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - start
    del result  # freeing it belongs to no contender
    return elapsed
