"""One model at one length, as it was measured or as to why it was not: a row of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aimc.evaluate.characterise.operators import CLASSES
from aimc.evaluate.characterise.profiling import CallProfile


@dataclass(slots=True, kw_only=True)
class Phase:
    """The forward pass over the prompt, or that of one token behind it."""

    flops: float | None = None
    """Floating-point operations; None: not counted, see `Point.left_out`."""
    bytes_moved: float | None = None
    """Byte that unfused operators move."""
    host_s: dict[str, float] = field(default_factory=dict)
    """Class of operator to the host's own time, second, while profiled."""
    device_s: dict[str, float] = field(default_factory=dict)
    """Class of operator to the device's time, second; empty where the host is the device."""
    profiled_s: float | None = None
    """Length of the call by another clock, second; the host's classes add up to it."""
    device_elapsed_s: float | None = None
    """Second from the device's first kernel to its last; what the classes leave of it, it was idle."""
    unclassified: float | None = None
    """Share of operators without a class."""
    unknown: list[str] = field(default_factory=list)
    """Their names."""

    @property
    def intensity(self) -> float | None:
        """Operations a byte."""
        return self.flops / self.bytes_moved if self.flops is not None and self.bytes_moved else None

    def shares(self) -> dict[str, float]:
        """Class to its share of the device's time, or of the host's where there is no device."""
        times = self.device_s if any(self.device_s.values()) else self.host_s
        total = sum(times.values())
        return {name: times[name] / total for name in CLASSES if times.get(name)} if total else {}

    def take(self, call: CallProfile) -> None:
        """Where the time of a profiled call went."""
        self.host_s, self.device_s = dict(call.host_s), dict(call.device_s)
        self.profiled_s, self.device_elapsed_s = call.elapsed_s, call.device_elapsed_s
        self.unclassified, self.unknown = call.unclassified_share, sorted(call.unknown)


@dataclass(slots=True, kw_only=True)
class Point:
    """One row. Everything but its first fields is None where it was not measured."""

    model: str
    weights: str
    """`random` or `checkpoint`."""
    length: int
    """Tokens of the prompt."""
    batch: int = 1
    not_run: str | None = None
    """Why it was not run, and what it would need; None: it was."""
    left_out: str | None = None
    """What was left out of a point that was run."""
    repetitions: int = 0
    first_token_s: float | None = None
    """Time to first token, second: prompt in, one token out; the fastest repetition."""
    token_s: float | None = None
    """Time per output token behind it, second; the median of the fastest repetition."""
    weights_bytes: int | None = None
    activations_bytes: int | None = None
    """Of the peak, what is neither weights nor cache."""
    kv_bytes: int | None = None
    """Keys and values behind the prompt, of all layers that have them."""
    state_bytes: int | None = None
    """Recurrent and convolution states."""
    first_token_j: float | None = None
    """Energy of the prompt and its first token, joule, by a counter of the machine, idle power included."""
    token_j: float | None = None
    """Energy of one token behind it."""
    energy_source: str = ""
    """Which counter, or why there is none."""
    n_read_weights: int | None = None
    """Weights that one token reads."""
    prompt: Phase = field(default_factory=Phase)
    token: Phase = field(default_factory=Phase)

    @property
    def peak_bytes(self) -> int | None:
        """Peak of memory in byte, weights included."""
        parts = (self.weights_bytes, self.activations_bytes, self.kv_bytes, self.state_bytes)
        return sum(part for part in parts if part is not None) if self.activations_bytes is not None else None

    @property
    def cache_bytes(self) -> int | None:
        """Keys, values and states, byte."""
        return None if self.kv_bytes is None else self.kv_bytes + (self.state_bytes or 0)

    @property
    def tokens_per_s(self) -> float | None:
        """Output tokens a second, of the whole batch."""
        return self.batch / self.token_s if self.token_s else None

    @property
    def prompt_tokens_per_s(self) -> float | None:
        """Tokens of the prompt a second, of the whole batch."""
        return self.batch * self.length / self.first_token_s if self.first_token_s else None

    def flat(self) -> dict[str, Any]:
        """A row of a CSV."""
        names: tuple[str, ...] = (
            "model",
            "weights",
            "length",
            "batch",
            "repetitions",
            "first_token_s",
            "token_s",
            "tokens_per_s",
        )
        names += ("prompt_tokens_per_s", "weights_bytes", "activations_bytes", "kv_bytes", "state_bytes", "peak_bytes")
        names += ("first_token_j", "token_j", "energy_source", "n_read_weights", "not_run", "left_out")
        row = {name: getattr(self, name) for name in names}
        for label, phase in (("prompt", self.prompt), ("token", self.token)):
            row |= {f"{label}_flops": phase.flops, f"{label}_bytes_moved": phase.bytes_moved}
            row |= {f"{label}_intensity": phase.intensity, f"{label}_profiled_s": phase.profiled_s}
            for place, times in (("host", phase.host_s), ("device", phase.device_s)):
                row |= {f"{label}_{place}_s: {name}": times.get(name) for name in CLASSES}
        return row


def series(points: list[Point], name: str) -> dict[str, dict[int, float]]:
    """Model to length to one quantity of the points that have it, above zero."""
    found: dict[str, dict[int, float]] = {}
    for point in points:
        value = getattr(point, name)
        if value:
            found.setdefault(point.model, {})[point.length] = float(value)
    return found


def from_record(record: Mapping[str, Any]) -> Point:
    """A point from what `dataclasses.asdict` wrote of it."""
    phases = {name: Phase(**record[name]) for name in ("prompt", "token")}
    return Point(**{**record, **phases})
