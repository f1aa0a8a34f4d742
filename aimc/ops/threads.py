"""Independent parts of one computation side by side, each on one thread.

PyTorch splits every single operation over its threads; parts that have nothing in common are better split once, and
small operations are not split at all. Where PyTorch's threads are those of OpenMP they are taken for it: between two
operations they do not sleep but wait in a loop for some milliseconds, and other threads would share their cores with
them.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PROCESS = os.getpid()
"""In its forked children OpenMP would wait for ever for threads that did not come along, as PyTorch does in a child
that imports this first."""


def side_by_side(compute: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`compute` of each item, without gradients, on as many threads as PyTorch uses, begun in order; in order."""
    n_threads = torch.get_num_threads()
    if min(n_threads, len(items)) < 2:
        return [compute(item) for item in items]
    inference = torch.is_inference_mode_enabled()

    def alone(item: Item) -> Result:
        torch.set_num_threads(1)  # of this thread
        with torch.inference_mode(inference), torch.no_grad():  # modes belong to a thread, too
            return compute(item)

    try:
        run = _openmp() if os.getpid() == _PROCESS else None
        return list(_pool(n_threads).map(alone, items)) if run is None else _by_openmp(run, n_threads, alone, items)
    finally:
        torch.set_num_threads(n_threads)  # new threads begin with what was set last, in whichever


def _by_openmp(
    run: Callable[..., None], n_threads: int, compute: Callable[[Item], Result], items: Sequence[Item]
) -> list[Result]:
    """`compute` of each item on the threads of OpenMP, of which this one is the first."""
    results: dict[int, Result] = {}
    errors: list[BaseException] = []
    arrived: set[int] = set()
    left = iter(range(len(items)))  # Python's lock gives each number to one thread

    def take(_: Any) -> None:
        try:
            arrived.add(threading.get_ident())
            for number in left:
                results[number] = compute(items[number])
                if errors:
                    return
        except BaseException as error:  # which must not go through what is not Python
            errors.append(error)

    run(_BODY(take), None, n_threads, 0)  # with fewer, OpenMP would end the others, and make them again for PyTorch
    if not errors and threading.get_ident() not in arrived:
        raise KeyboardInterrupt  # came on the way into `take`, where ctypes only prints what a signal raises
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(items))]


@functools.cache
def _openmp() -> Callable[..., None] | None:
    """What opens a parallel region of PyTorch's OpenMP library, by the name that GCC and Clang give it; None: the
    library is another one, or there is none."""
    if "parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        run = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    run.argtypes, run.restype = (_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return run  # type: ignore[no-any-return]


@functools.cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    """Threads, kept from call to call."""
    return ThreadPoolExecutor(n_threads, "aimc")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not live on in a child
