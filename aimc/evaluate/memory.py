"""Peak memory of one call, and memory that an object holds.

On a CPU: the sum over time of what torch's allocator hands out and takes back, from the profiler's memory events. It is
exact and the same at every run. The other way, how far the high-water mark of a fresh process (`VmHWM`) rises, also
depends on page reuse and on which pages of a buffer were touched. The two agree where that matters little (forward and
backward, T=1024: 70.7 against 72.8 MiB for gain cells, 17.0 against 17.3 MiB for digital attention; T=8192: 157 against
136 MiB and 122 against 120 MiB). What the events miss is scratch inside the matrix library. On a GPU:
`torch.cuda.max_memory_allocated`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from aimc.evaluate.quiet import no_gc, silent_stderr


def peak_bytes(call: Callable[[], Any], *, device: str) -> int:
    """Most memory in byte held at once beyond what is held before the call: its inputs do not count, its results do.

    Args:
        call: what is measured; it must not free what was allocated before it (gradients, for example), which would
            count as negative.
        device: `cpu` or `cuda`.
    """
    if device == "cuda":
        return _peak_bytes_cuda(call)
    with (
        no_gc(),
        silent_stderr(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler,
    ):
        result = call()
    del result
    kineto: Any = profiler.profiler  # the only place where single allocations, not sums per operator, are kept
    changes = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def held_bytes(owner: object) -> int:
    """Memory in byte of all tensors that can be reached from an object, each storage once; models and their parts do
    not belong to it."""
    elsewhere = (type, ModuleType, FunctionType, MethodType, BuiltinFunctionType, nn.Module)
    storages: dict[int, int] = {}
    seen, to_see = {id(owner)}, [owner]
    while to_see:
        found = to_see.pop()
        if isinstance(found, Tensor):
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        for part in gc.get_referents(found):
            if id(part) not in seen and not isinstance(part, elsewhere):
                seen.add(id(part))
                to_see.append(part)
    return sum(storages.values())


def _peak_bytes_cuda(call: Callable[[], Any]) -> int:
    call()  # a first call may leave workspaces behind that stay for good
    with no_gc():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    del result
    return peak
