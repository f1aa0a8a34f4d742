"""Work in processes beside each other, none of which costs the others their results: a process that dies fails its own
task and is replaced, and a signal to end reaches all of them, so that what trains saves where it is."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any

Task = tuple[Any, ...]


def side_by_side(
    work: Callable[..., Any], tasks: Sequence[Task], jobs: int, may_begin: Callable[[], bool] = lambda: True
) -> Generator[tuple[Task, Future[Any]], None, None]:
    """Each task with its finished future, as they finish. To be closed (`contextlib.closing`): what runs then is asked
    to end.

    Args:
        work: is called with a task's parts, in another process.
        tasks: in the order in which they are begun.
        jobs: processes; each has one task after another.
        may_begin: False: no further task is begun; those that run are waited for.
    """
    waiting, running = deque(tasks), dict[Future[Any], tuple[ProcessPoolExecutor, Task]]()
    idle = [_worker() for _ in range(min(jobs, len(waiting)))]
    try:
        while True:
            while idle and waiting and may_begin():
                worker, task = idle.pop(0), waiting.popleft()
                running[worker.submit(work, *task)] = worker, task
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                worker, task = running.pop(future)
                if isinstance(future.exception(), BrokenExecutor):
                    worker.shutdown(wait=False)
                    worker = _worker()
                idle.append(worker)
                yield task, future
    finally:
        if running:
            for child in active_children():
                child.terminate()
        for worker in [*idle, *(worker for worker, _ in running.values())]:
            worker.shutdown(cancel_futures=True)


def _worker() -> ProcessPoolExecutor:
    """One process, begun with its first task; spawned, for a forked one could not use a GPU. Ctrl-C, which a terminal
    sends to all, is its parent's to pass on: a second signal would end it before it has saved."""
    ignoring = (signal.SIGINT, signal.SIG_IGN)
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=signal.signal, initargs=ignoring)


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM leaves the block as Ctrl-C does, by `SystemExit`; a second one is what it was before."""

    def end(signum: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, before)
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
