"""Whether a point fits: its time and memory are forecast from the shorter lengths before anything is run.

Through what was measured goes a + b·T + c·T² with no negative part; a forecast is never below growth in proportion to
the length, so that what looks constant while a chunk or a padding hides the growth is not taken for free.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

_USABLE = 0.8
"""Share of what is free now that a point may take where no limit is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Of one point; what needs more is not run."""

    seconds: float
    """Of one run of the point, second: first token and the tokens behind it."""
    memory_bytes: float
    """Held at once beyond the weights."""
    max_events: float = 1.5e6
    """Operators of a run that is profiled or counted; a profile keeps each."""

    def refusal(self, needs_s: float, needs_bytes: float) -> str | None:
        """Why a point is not run; None: it fits."""
        wants = []
        if needs_bytes > self.memory_bytes:
            wants.append(f"{needs_bytes / 1e9:.3g} GB")
        if needs_s > self.seconds:
            wants.append(f"{needs_s:.3g} s")
        return f"not run (needs {' / '.join(wants)})" if wants else None


def free_bytes(device: str) -> float:
    """Memory in byte that a point may take of what is free now."""
    if device == "cuda":
        return _USABLE * torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        free = min(free, max(int(text) - used, 0))
    return _USABLE * free


def forecast(measured: Mapping[int, float], length: int, *, power: int = 2) -> float:
    """What a length will take, from what shorter ones took.

    Args:
        measured: length to second, byte or count; empty: nothing is known.
        length: that is asked about.
        power: of the length, that it may grow by at most; what one length says is taken to grow so.

    Returns:
        0 where nothing is known.
    """
    known = {at: value for at, value in measured.items() if at <= length}
    if not known:
        return 0.0
    longest = max(known)
    least = known[longest] * length / longest
    if len(known) == 1:
        return known[longest] * (length / longest) ** power
    at = np.array(sorted(known), dtype=float)
    values = np.array([known[int(x)] for x in at])
    terms = np.stack([at**n for n in range(power + 1)], axis=1)
    scale = terms.max(axis=0)
    weights = 1 / np.maximum(values, 1e-30)  # relative errors, so that the long lengths do not drown the short ones
    found, _ = nnls(terms / scale * weights[:, None], values * weights)
    return max(least, float(np.array([float(length) ** n for n in range(power + 1)]) / scale @ found))


def ladder(lengths: list[int], *, step: int = 4) -> list[int]:
    """The lengths, with others between them wherever one is more than `step` times the one before; two shorter ones go
    ahead, so that even the first is forecast."""
    wanted = sorted(set(lengths))
    rungs = [first for n in (step**2, step) if (first := wanted[0] // n) >= 8]
    for length in wanted:
        while rungs and length > step * rungs[-1]:
            rungs.append(step * rungs[-1])
        if not rungs or length > rungs[-1]:
            rungs.append(length)
    return rungs
