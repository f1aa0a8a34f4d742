"""Independent parts of one computation side by side, each on one thread.

PyTorch splits every single operation over its threads; parts that have nothing in common are better split once, and
small operations are not split at all.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(compute: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`compute` of each item, without gradients, on as many threads as PyTorch uses; in order."""
    n_threads = torch.get_num_threads()
    if min(n_threads, len(items)) < 2:
        return [compute(item) for item in items]
    inference = torch.is_inference_mode_enabled()

    def alone(item: Item) -> Result:
        torch.set_num_threads(1)  # of this thread
        with torch.inference_mode(inference), torch.no_grad():  # modes belong to a thread, too
            return compute(item)

    try:
        return list(pool(n_threads).map(alone, items))
    finally:
        torch.set_num_threads(n_threads)  # new threads begin with what was set last, in whichever


@functools.cache
def pool(n_threads: int) -> ThreadPoolExecutor:
    """Threads, kept from call to call."""
    return ThreadPoolExecutor(n_threads, "aimc")


os.register_at_fork(after_in_child=pool.cache_clear)  # threads do not live on in a child
