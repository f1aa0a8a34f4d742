"""Many points, each measured once: what is cached is read, the rest is computed, on several processes where there are;
a point that fails is noted and the others go on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import torch

from aimc.evaluate.study.bench import Bench
from aimc.evaluate.study.draws import Cache, Draw, Measured, bytes_of_draw, measured
from aimc.evaluate.study.points import Point, key_of

Opener = Callable[[], Bench]
"""Makes the bench in another process; it has to be picklable."""
PROBE_TOKENS = 1024
"""Text that a pass is timed on."""


@dataclass(slots=True)
class Failure:
    """A point that could not be measured."""

    label: str
    reason: str


@dataclass(slots=True)
class Runner:
    """Measures points.

    Args:
        bench: where this process measures.
        cache: where draws are kept; None: nowhere.
        workers: processes that measure; 1: this one.
        opener: makes the bench in each of several processes.
        on_draw: called with the number of draws just gained and whether they were measured (or read).
        recompute: measure also what is cached.
    """

    bench: Bench
    cache: Cache | None = None
    workers: int = 1
    opener: Opener | None = None
    on_draw: Callable[[int, bool], None] | None = None
    recompute: bool = False
    failures: list[Failure] = field(default_factory=list)
    n_measured: int = 0
    """Draws that were computed in this run."""
    n_read: int = 0
    """Draws that an earlier run had computed."""
    _known: dict[str, Draw] = field(default_factory=dict)
    _pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def run(self, points: Sequence[Point], chips: int | None = None) -> list[Measured | None]:
        """Measure points, in any order.

        Args:
            points: several may have the same content; that is measured once.
            chips: how many of the bench's chips; None: all.

        Returns:
            One for each point, in their order; None for one that failed, see `failures`.
        """
        numbers = self.bench.chips[:chips]
        wanted = [self._keys(point, numbers) for point in points]
        missing: dict[str, tuple[Point, list[tuple[int, str]]]] = {}
        taken: set[str] = set()
        for point, keys in zip(points, wanted, strict=True):
            absent = [(chip, key) for chip, key in keys.items() if key not in taken and not self._read(key)]
            taken |= {key for _, key in absent}
            # What is put on a machine by training or matching is put there once, for all chips.
            groups = [absent] if point.moved or point.trained else [[one] for one in absent]
            missing |= {group[0][1]: (point, group) for group in groups if group}
        if missing:
            self._measure(list(missing.values()))
        found: list[Measured | None] = []
        for keys in wanted:
            draws = [self._known.get(key) for key in keys.values()]
            whole = [draw for draw in draws if draw is not None]
            found.append(measured(list(keys), whole) if len(whole) == len(draws) else None)
        return found

    def missing(self, points: Sequence[Point], chips: int | None = None) -> int:
        """Draws of some points that are not there yet."""
        numbers = self.bench.chips[:chips]
        keys = {key for point in points for key in self._keys(point, numbers).values()}
        return sum(not self._read(key, count=False) for key in keys)

    def _keys(self, point: Point, numbers: Sequence[int]) -> dict[int, str]:
        subject = self.bench.subject(point)
        differing = numbers if self.bench.is_random(point.hardware) else numbers[:1]
        return {chip: key_of(subject, point, chip) for chip in differing}

    def _read(self, key: str, *, count: bool = True) -> bool:
        if key in self._known:
            return True
        draw = None if self.cache is None or self.recompute else self.cache.get(key)
        if draw is None:
            return False
        if count:
            self._known[key] = draw
            self.n_read += 1
            self._told(1, False)
        return True

    def _take(self, key: str, draw: Draw) -> None:
        self._known[key] = draw
        if self.cache is not None:
            self.cache.put(key, draw)
        self.n_measured += 1
        self._told(1, True)

    def _told(self, n: int, is_new: bool) -> None:
        if self.on_draw is not None:
            self.on_draw(n, is_new)

    def _measure(self, tasks: list[tuple[Point, list[tuple[int, str]]]]) -> None:
        if self.workers <= 1 or self.opener is None:
            for point, group in tasks:
                keys = dict(group)
                try:
                    for chip, draw in self.bench.draw(point, list(keys)):
                        self._take(keys[chip], draw)
                except Exception as error:  # whatever a point does, the others are measured
                    self._note(point, group, error)
            return
        pool = self._opened()
        queue = iter(tasks)
        running: dict[Future[list[tuple[int, Draw]]], tuple[Point, list[tuple[int, str]]]] = {}
        while True:
            # No more than are at work: after an interruption nothing of a long queue is still begun.
            for point, group in _next(queue, self.workers + 1 - len(running)):
                running[pool.submit(_draw, point, [chip for chip, _ in group])] = (point, group)
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                point, group = running.pop(future)
                try:
                    for chip, draw in future.result():
                        self._take(dict(group)[chip], draw)
                except BrokenProcessPool:
                    raise
                except Exception as error:
                    self._note(point, group, error)

    def _note(self, point: Point, group: Sequence[tuple[int, str]], error: Exception) -> None:
        chips = ", ".join(str(chip) for chip, _ in group)
        self.failures.append(Failure(f"{point.label} (chip {chips})", " ".join(str(error).split()) or repr(error)))

    def _opened(self) -> ProcessPoolExecutor:
        if self._pool is None:
            threads = max(1, (os.cpu_count() or 1) // self.workers)
            # spawn: a fork of a process in which threads compute may hang
            context = multiprocessing.get_context("spawn")
            begin = partial(_open, self.opener, threads)
            self._pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=begin)
        return self._pool


def _next(queue: Iterator[tuple[Point, list[tuple[int, str]]]], n: int) -> list[tuple[Point, list[tuple[int, str]]]]:
    return [task for _, task in zip(range(n), queue, strict=False)]


_BENCH: Bench | None = None
"""Of a process of the pool."""


def _open(opener: Opener | None, threads: int) -> None:
    global _BENCH
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the first process says what is kept
    torch.set_num_threads(threads)
    with suppress(RuntimeError):
        torch.set_num_interop_threads(1)
    _BENCH = None if opener is None else opener()


def _draw(point: Point, chips: list[int]) -> list[tuple[int, Draw]]:
    assert _BENCH is not None  # opened above
    return list(_BENCH.draw(point, chips))


@dataclass(slots=True)
class Estimate:
    """What a study will take, before it starts."""

    n_draws: int
    """Passes over the text at most, those that are cached not counted."""
    n_cached: int
    seconds: float
    """On all processes together, at most."""
    n_bytes: int
    """On disk, at most."""

    def __str__(self) -> str:
        cached = f", {self.n_cached:,} more are there already" if self.n_cached else ""
        size = f"{self.n_bytes / 1e6:,.1f} MB"
        return (
            f"at most {self.n_draws:,} passes over the text{cached}: about {duration(self.seconds)} and {size} of disk"
        )


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def seconds_of_pass(bench: Bench, point: Point) -> float:
    """How long a pass over the whole text takes in this process: timed on its start, the shorter of two times."""
    n_tokens = len(bench.tokens)
    short = Bench(bench.model, bench.tokens[: min(n_tokens, max(PROBE_TOKENS, 2 * bench.context))], bench.measurement)
    timed = Point(hardware=point.hardware)
    times = []
    for _ in range(2):  # the first also compiles and makes tables of the chip; other work may slow either
        started = time.perf_counter()
        list(short.draw(timed, bench.chips[:1]))
        times.append(time.perf_counter() - started)
    return min(times) * n_tokens / len(short.tokens)


def estimate(runner: Runner, n_draws: int, n_cached: int, seconds_a_pass: float) -> Estimate:
    """Time and disk of so many passes."""
    bench = runner.bench
    size = bytes_of_draw(len(bench.tokens), bench.stretch)
    return Estimate(n_draws, n_cached, n_draws * seconds_a_pass / runner.workers, n_draws * size)
