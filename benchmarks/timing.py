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


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Medians and spread of one point."""

    repetitions: int
    """How often each contender ran after its warm-up."""
    median_s: dict[str, float]
    """Contender to median, second."""
    iqr_s: dict[str, float]
    """Contender to interquartile range, second."""


def time_in_turn(contenders: Mapping[str, Callable[[], Any]], *, seconds: float, device: str) -> Times:
    """Time the contenders alternately, so that a machine that slows down or speeds up does so for all of them alike.

    Each runs before, to compile and fill caches and to learn how many repetitions fit into the budget.

    Args:
        contenders: name to what is timed.
        seconds: aim for the whole, second.
        device: `cpu` or `cuda`; on `cuda` the clock stops when the device has finished.
    """
    with no_gc():
        once = sum(_seconds(call, device) for call in contenders.values())
        if once < seconds / 4:  # the first call of something quick is mostly set-up: ask again
            once = sum(_seconds(call, device) for call in contenders.values())
        n = max(MIN_REPETITIONS, min(MAX_REPETITIONS, int(seconds / max(once, 1e-9)) - 2))
        samples: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(n):
            for name, call in contenders.items():
                samples[name].append(_seconds(call, device))
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
