"""Calls in processes of their own, so many at once, each begun when those that it waits for are done; one that fails,
or takes its process along, costs no other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import FrameType
from typing import Any

from train.parent import end_with_parent

Key = tuple[str, int]
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PATIENCE_S = 60.0
"""Second for a step and a checkpoint, after which a process without a parent ends in any case."""
LOOK_S = 0.5
"""Seconds between two looks at the clock and at signals."""


@dataclass(frozen=True, slots=True)
class Task:
    """One call."""

    key: Key
    call: Callable[[], Any]
    """Goes to another process, and so does what it returns."""
    after: tuple[Key, ...] = ()
    """Tasks that must be done before it begins; those that are not among the tasks are."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task came to nothing."""

    why: str
    error: BaseException | None = None
    """What it raised, caused by the traceback of the other process; None: it was stopped, or never begun."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of all tasks."""

    failed: dict[Key, Failure]
    signal: int | None
    """That asked to end before all was done; 128 more is the exit status that a shell expects then."""


def side_by_side(
    tasks: Sequence[Task],
    jobs: int,
    on_done: Callable[[Key, Any], None],
    on_failed: Callable[[Key, Failure], None],
    minutes: float | None = None,
) -> Outcome:
    """Run all tasks; returns which of them came to nothing.

    Args:
        tasks: in the order in which they are begun, as far as they need not wait.
        jobs: processes; each goes on to the next task, so that what it loaded and compiled serves again.
        on_done: gets each result as it comes.
        on_failed: gets each failure as it comes.
        minutes: after which none is begun; None: no limit.

    A SIGTERM or Ctrl-C goes to the processes, which save what they can and end; none is begun after it. A second one is
    what it was before.
    """
    return _Runner(tasks, jobs, on_done, on_failed, minutes).run()


class _Runner:
    """The state of one call of :func:`side_by_side`."""

    def __init__(
        self,
        tasks: Sequence[Task],
        jobs: int,
        on_done: Callable[[Key, Any], None],
        on_failed: Callable[[Key, Failure], None],
        minutes: float | None,
    ) -> None:
        self.left, self.known, self.done = list(tasks), {task.key for task in tasks}, set[Key]()
        self.failed: dict[Key, Failure] = {}
        self.on_done, self.on_failed = on_done, on_failed
        self.ends = None if minutes is None else time.monotonic() + 60 * minutes
        self.idle = [_process() for _ in range(max(1, min(jobs, len(tasks))))]
        self.running: dict[Future[Any], tuple[Key, ProcessPoolExecutor]] = {}
        self.signal: int | None = None
        self.handlers: dict[signal.Signals, Any] = {}
        self.told_to_end = False

    def run(self) -> Outcome:
        # Whoever has a closing terminal ignored (nohup) goes on behind it.
        asked = [n for n in STOPPING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        self.handlers = {number: signal.signal(number, self._stop) for number in asked}
        try:
            while self._begin() or self.running:
                for future in wait(self.running, timeout=LOOK_S, return_when=FIRST_COMPLETED).done:
                    self._finish(future)
                if self.signal is not None:
                    self._tell_to_end()
        finally:
            self._give_signals_back()
            if self.running:  # the caller's functions failed, or a second signal came
                self._tell_to_end()
            for process in [*self.idle, *(process for _, process in self.running.values())]:
                process.shutdown(wait=False, cancel_futures=True)
        return Outcome(self.failed, self.signal)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Only a note: amid the start of a process, that one could not be told."""
        self.signal = number
        self._give_signals_back()

    def _give_signals_back(self) -> None:
        for number, old in self.handlers.items():
            signal.signal(number, old)

    def _tell_to_end(self) -> None:
        """All processes, once: a second signal would end what the first one has them save."""
        if not self.told_to_end:
            self.told_to_end = True
            for child in multiprocessing.active_children():
                child.terminate()

    def _begin(self) -> bool:
        """Give the idle processes what can be begun; returns whether something was."""
        while hopeless := [task for task in self.left if any(key in self.failed for key in task.after)]:
            for task in hopeless:
                self._fail(task.key, Failure("what it waits for failed"))
                self.left.remove(task)
        stopped = self.signal is not None
        if stopped or (self.ends is not None and time.monotonic() >= self.ends):
            for task in self.left:
                self._fail(task.key, Failure("stopped before it was begun" if stopped else "no time left to begin it"))
            self.left = []
        ready = [task for task in self.left if all(key in self.done or key not in self.known for key in task.after)]
        begun = ready[: len(self.idle)]
        for task in begun:
            process = self.idle.pop()
            self.left.remove(task)
            self.running[process.submit(task.call)] = (task.key, process)
        return bool(begun)

    def _finish(self, future: Future[Any]) -> None:
        key, process = self.running.pop(future)
        error = future.exception()
        if error is None:
            self.done.add(key)
            self.on_done(key, future.result())
        elif self.signal is not None:  # which is then why
            self._fail(key, Failure("stopped; what it finished stays"))
        elif isinstance(error, BrokenProcessPool):
            self._fail(key, Failure("its process died", error))
            process = _process()
        else:
            self._fail(key, Failure(f"{type(error).__name__}: {str(error).strip()}", error))
        self.idle.append(process)

    def _fail(self, key: Key, failure: Failure) -> None:
        self.failed[key] = failure
        self.on_failed(key, failure)


def _process() -> ProcessPoolExecutor:
    """One process, started when it gets something to do; a fresh interpreter, as CUDA does not survive a fork, and a
    group of its own, as a signal to ours would reach it a second time, and end what the first one has it save."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """In a new process."""
    os.setpgrp()
    end_with_parent(_save)


def _save() -> None:
    """Where the one that started this was killed: time for what can be saved."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_S)
