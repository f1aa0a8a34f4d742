"""Where the time of a model's calls goes, by class of operator, host and device apart; and how much memory they hold.

One profile of a few calls is read event by event. An event's own time is its duration less that of the events inside
it, so that on the host the classes, with the time between operators, add up to the duration of the call; that duration
is also taken with a clock of its own, and the two are compared. On a device the classes are sums over kernels, each
counted to the operator that launched it, and what is left of the device's time is idle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from aimc.evaluate.characterise.operators import (
    CLASSES,
    CONVOLUTION,
    HOST,
    MIXER,
    PRODUCT,
    SCAN,
    UNCLASSIFIED,
    is_fft,
    is_product,
    operator_class,
)
from aimc.evaluate.characterise.scopes import FORWARD, PREFIX, marked
from aimc.evaluate.quiet import no_gc, silent_stderr

_MEMORY = "[memory]"


@dataclass(slots=True, kw_only=True)
class CallProfile:
    """One call of the whole model."""

    host_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CLASSES, 0.0))
    """Class to the host's own time in its operators, second."""
    device_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CLASSES, 0.0))
    """Class to the time of its kernels, second; all zero where the host is the device."""
    elapsed_s: float = 0.0
    """Second that the call took on the host, by a clock beside the profile. It is longer than without a profile."""
    device_elapsed_s: float = 0.0
    """Second from the start of the first kernel to the end of the last."""
    peak_bytes: int = 0
    """Most memory held at once beyond what was held before the profile; host only."""
    n_events: int = 0
    """Events of the host inside the call."""
    unknown: dict[str, float] = field(default_factory=dict)
    """Operators without a class to their time on the host, second."""

    @property
    def host_total_s(self) -> float:
        """Sum of the host's classes, second."""
        return sum(self.host_s.values())

    @property
    def device_total_s(self) -> float:
        """Sum of the device's classes, second: the time that it was busy, if its kernels follow one another."""
        return sum(self.device_s.values())

    @property
    def unclassified_share(self) -> float:
        """Of the host's time, and of the device's where there is one, whichever is the larger."""
        shares = [
            times[UNCLASSIFIED] / total
            for times, total in ((self.host_s, self.host_total_s), (self.device_s, self.device_total_s))
            if total
        ]
        return max(shares, default=0.0)

    @property
    def gap(self) -> float:
        """By how much the classes miss the duration of the call, as a share of it."""
        return abs(self.host_total_s / self.elapsed_s - 1) if self.elapsed_s else 0.0


@dataclass(slots=True)
class _Frame:
    """An event of the host whose end has not come."""

    end: int
    kind: _Kind
    call: int | None
    part: str | None
    inherited: str | None
    name: str
    inside_ns: int = 0
    duration: int = 0
    of_products: _Kind | None = None
    """Of a mixer: what its products turn out to be."""
    of_rest: _Kind | None = None
    has_fft: bool = False
    has_scan: bool = False


@dataclass(slots=True)
class _Kind:
    """A class that may be decided later."""

    name: str


def profiled(model: nn.Module, call: Callable[[], Any], *, device: str) -> list[CallProfile]:
    """The calls of `model` that `call` makes, in order.

    Args:
        model: called by `call`, any number of times.
        call: what is profiled, once.
        device: `cpu` or `cuda`.
    """
    seconds: dict[int, float] = {}
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with (
        no_gc(),
        silent_stderr(),
        marked(model, seconds.__setitem__),
        profile(activities=activities, profile_memory=device == "cpu") as profiler,
    ):
        result = call()
    del result
    kineto: Any = profiler.profiler  # the only place with single events and allocations
    calls = read(kineto.kineto_results.events())
    for number, elapsed_s in seconds.items():
        if number in calls:
            calls[number].elapsed_s = elapsed_s
    return [calls[number] for number in sorted(calls)]


def read(events: Iterable[Any]) -> dict[int, CallProfile]:
    """Number of a call of the model to its profile, from the profiler's single events."""
    host, kernels, memory = [], [], []
    for event in events:
        if event.name() == _MEMORY:
            memory.append((event.start_ns(), event.nbytes()))
        elif event.device_type() == DeviceType.CPU:
            # Only an operator is what kernels are linked to; a call of the runtime has numbers of another kind.
            number = 0 if event.linked_correlation_id() else event.correlation_id()
            host.append((event.start_ns(), -event.duration_ns(), event.name(), number, event))
        elif not event.name().startswith((FORWARD, PREFIX)):  # a device repeats the marks on a line of its own
            kernels.append(event)
    host.sort(key=lambda item: item[:2])
    reader = _Reader()
    thread = next((item[4].start_thread_id() for item in host if item[2].startswith(FORWARD)), None)
    for start, negative, name, correlation, event in host:
        if event.start_thread_id() == thread and not event.is_async():
            reader.add(start, -negative, name, correlation)
    reader.finish()
    for event in kernels:
        reader.add_kernel(event)
    _add_peaks(reader, memory)
    return dict(reader.calls)


class _Reader:
    """Own times from the nesting of events, in the order of their starts, longer ones first."""

    def __init__(self) -> None:
        self.calls: dict[int, CallProfile] = defaultdict(CallProfile)
        self.spans: dict[int, tuple[int, int]] = {}
        self._open: list[_Frame] = []
        self._own: list[tuple[_Kind, int, int, str]] = []
        self._launched: dict[int, tuple[_Kind, int]] = {}
        self._device_spans: dict[int, tuple[int, int]] = {}

    def add(self, start: int, duration: int, name: str, correlation: int) -> None:
        """One event of the host."""
        while self._open and self._open[-1].end <= start:
            self._close()
        outer = self._open[-1] if self._open else None
        frame = self._frame(outer, start + duration, name)
        frame.duration = duration
        if outer is not None:
            outer.inside_ns += duration
        if frame.call is not None:
            self.calls[frame.call].n_events += 1
            if correlation:
                self._launched[correlation] = (frame.kind, frame.call)
        if name.startswith(FORWARD) and frame.call is not None:
            self.spans[frame.call] = (start, start + duration)
        self._open.append(frame)

    def _frame(self, outer: _Frame | None, end: int, name: str) -> _Frame:
        call = outer.call if outer else None
        part = outer.part if outer else None
        if name.startswith(FORWARD):
            return _Frame(end, _Kind(HOST), int(name.removeprefix(FORWARD)), None, None, name)
        if name.startswith(PREFIX):
            part = name.removeprefix(PREFIX)
            if part == SCAN:
                for frame in self._open:
                    frame.has_scan = frame.has_scan or frame.of_rest is not None
            frame = _Frame(end, _Kind(HOST), call, part, None, name)
            if part == MIXER:
                frame.of_products, frame.of_rest = _Kind(SCAN), _Kind(SCAN)
            return frame
        if is_fft(name):
            for frame in self._open:
                frame.has_fft = frame.has_fft or frame.of_rest is not None
        inherited = outer.inherited if outer else None
        found = operator_class(name, part, inherited)
        if found == MIXER:
            mixer = next(frame for frame in reversed(self._open) if frame.of_rest is not None)
            kind = mixer.of_products if is_product(name) else mixer.of_rest
            if outer is not None and outer.inherited == MIXER:
                kind = outer.kind
            assert kind is not None
            return _Frame(end, kind, call, part, found, name)
        return _Frame(end, _Kind(found), call, part, found, name)

    def _close(self) -> None:
        frame = self._open.pop()
        if frame.of_rest is not None and frame.of_products is not None:
            frame.of_rest.name = CONVOLUTION if frame.has_fft and not frame.has_scan else SCAN
            frame.of_products.name = PRODUCT if frame.has_scan else frame.of_rest.name
        if frame.call is not None:
            self._own.append((frame.kind, frame.call, frame.duration - frame.inside_ns, frame.name))

    def finish(self) -> None:
        """Close what is open, and give each class its time."""
        while self._open:
            self._close()
        for kind, call, nanoseconds, name in self._own:
            self.calls[call].host_s[kind.name] += nanoseconds * 1e-9
            if kind.name == UNCLASSIFIED:
                unknown = self.calls[call].unknown
                unknown[name] = unknown.get(name, 0.0) + nanoseconds * 1e-9

    def add_kernel(self, event: Any) -> None:
        """One kernel or copy of a device, by the operator that launched it."""
        launched = self._launched.get(event.linked_correlation_id())
        if launched is None:
            return
        kind, call = launched
        start, duration = event.start_ns(), event.duration_ns()
        name = UNCLASSIFIED if kind.name == HOST else kind.name
        self.calls[call].device_s[name] += duration * 1e-9
        first, last = self._device_spans.get(call, (start, start))
        self._device_spans[call] = (min(first, start), max(last, start + duration))
        first, last = self._device_spans[call]
        self.calls[call].device_elapsed_s = (last - first) * 1e-9


def _add_peaks(reader: _Reader, memory: list[tuple[int, int]]) -> None:
    """The most that is held while each call runs."""
    held, spans = 0, sorted((span, number) for number, span in reader.spans.items())
    at = 0
    for moment, change in sorted(memory):
        while at < len(spans) and moment > spans[at][0][1]:
            at += 1
        held += change
        if at < len(spans) and moment >= spans[at][0][0]:
            call = reader.calls[spans[at][1]]
            call.peak_bytes = max(call.peak_bytes, held)
