"""Energy of a call, from the machine's own counters; where there are none, nothing is guessed.

CPU: RAPL's package counters, which Linux shows under `/sys/class/powercap`, mostly to root alone. They count the whole
package, other processes included. NVIDIA GPU: NVML's counter of the whole board, by `pynvml`, if that is installed
(`pip install nvidia-ml-py`). Neither is corrected for the power that the machine draws when idle; that is measured as
well, and written beside it.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
MIN_SECONDS = 1.0
"""Shortest time over which a counter is read: NVML's advances about every 100 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """A running counter of energy."""

    name: str
    read: Callable[[], dict[str, float]]
    """Counter to joule since some moment."""
    wraps_at: Mapping[str, float]
    """Counter to the joule at which it starts again from 0; none of those that do not."""

    def between(self, before: Mapping[str, float], after: Mapping[str, float]) -> float:
        """Joule between two readings, each counter having wrapped at most once."""
        total = 0.0
        for name, value in after.items():
            change = value - before[name]
            total += change if change >= 0 else change + self.wraps_at[name]
        return total


def find_meter(device: str) -> tuple[Meter | None, str]:
    """The counter of this device, and what it is or why there is none.

    Args:
        device: `cpu` or `cuda`.
    """
    meter = _nvml() if device == "cuda" else _rapl()
    return (None, f"not measured: {meter}") if isinstance(meter, str) else (meter, meter.name)


def energy_per_call(call: Callable[[], Any], meter: Meter, *, seconds: float, device: str) -> float:
    """Joule of one call, the machine's idle power included: the mean over as many calls as `seconds` hold, at least
    :data:`MIN_SECONDS`."""
    _finish(device)
    before, start, n = meter.read(), time.perf_counter(), 0
    while time.perf_counter() - start < max(seconds, MIN_SECONDS):
        call()
        _finish(device)
        n += 1
    return meter.between(before, meter.read()) / n


def idle_power(meter: Meter, *, seconds: float) -> float:
    """Watt drawn while this process does nothing."""
    before, start = meter.read(), time.perf_counter()
    time.sleep(max(seconds, MIN_SECONDS))
    return meter.between(before, meter.read()) / (time.perf_counter() - start)


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _rapl() -> Meter | str:
    packages = [folder for folder in sorted(POWERCAP.glob("*-rapl:*")) if _is_package(folder)]
    if not packages:
        return f"no RAPL counter under {POWERCAP}"
    try:
        wraps_at = {folder.name: _joules(folder / "max_energy_range_uj") for folder in packages}
        for folder in packages:
            _joules(folder / "energy_uj")
    except OSError as error:
        return f"RAPL cannot be read ({error.strerror}: {error.filename}); it is open to root"
    return Meter(
        name="RAPL, whole package", read=lambda: {f.name: _joules(f / "energy_uj") for f in packages}, wraps_at=wraps_at
    )


def _is_package(folder: Path) -> bool:
    """Not a part of one (its cores, its memory), nor the platform, which counts the packages again."""
    try:
        return (folder / "name").read_text().startswith("package")
    except OSError:
        return False


def _joules(path: Path) -> float:
    return int(path.read_text()) * 1e-6


def _nvml() -> Meter | str:
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return "pynvml is not installed (pip install nvidia-ml-py)"
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        return f"NVML: {error}"
    return Meter(
        name="NVML, whole board",
        read=lambda: {"board": nvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1e-3},
        wraps_at={},
    )
