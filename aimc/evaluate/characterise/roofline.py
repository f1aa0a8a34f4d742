"""The machine's roofline, measured: the rate of its matrix products, and of its memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from aimc.evaluate.quiet import no_gc

_SIDE = {"cpu": 768, "cuda": 8192}
_COPIED_BYTES = {"cpu": 128 * 2**20, "cuda": 2 * 2**30}
_REPETITIONS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """What this machine can do at most, as PyTorch reaches it with the threads and precision of the run."""

    flops_per_s: float
    """Of a large matrix product, two operations a multiply-accumulate."""
    bytes_per_s: float
    """Of a copy too large for the caches, reads and writes counted."""

    @property
    def ridge(self) -> float:
        """Operations a byte from which on products, not memory, are the limit."""
        return self.flops_per_s / self.bytes_per_s

    def roof(self, intensity: float) -> float:
        """Operations a second that are possible at so many operations a byte."""
        return min(self.flops_per_s, intensity * self.bytes_per_s)


def measure_roofline(device: str, dtype: torch.dtype) -> Roofline:
    """Measure both rates: the best of a few repetitions, in less than a second.

    Args:
        device: `cpu` or `cuda`.
        dtype: of the products.
    """
    side = _SIDE[device]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    values = torch.zeros(_COPIED_BYTES[device] // 4, device=device, dtype=torch.float32)
    target = torch.empty_like(values)
    with no_gc(), torch.inference_mode():
        product_s = _fastest(lambda: torch.mm(left, right), device)
        copy_s = _fastest(lambda: target.copy_(values), device)
    return Roofline(flops_per_s=2 * side**3 / product_s, bytes_per_s=2 * values.numel() * 4 / copy_s)


def _fastest(call: Callable[[], Any], device: str) -> float:
    call()
    times = []
    for _ in range(_REPETITIONS):
        finish(device)
        start = time.perf_counter()
        call()
        finish(device)
        times.append(time.perf_counter() - start)
    return min(times)


def finish(device: str) -> None:
    """Wait until a device has done what was asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()
