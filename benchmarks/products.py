"""The matrix products of the blocked operator and nothing else: what no cleverness between them can go below.

They are not derived but recorded: one forward pass is watched, run by run in PyTorch, and its products are kept with
the tensors they were given. So they stay the operator's own, whatever sizes its blocks have. Where a compiled call
computes the same, its products are smaller, and what they work on is in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aimc.hardware import Hardware
from aimc.ops.blocked import engine
from aimc.ops.call import Call
from aimc.ops.heads import Heads
from aimc.ops.scaling import Scaling

_ADDING = ("addmm", "addmm_", "baddbmm", "baddbmm_")
"""Products whose first argument is what they are added to."""
_PRODUCTS = ("mm", "bmm", *_ADDING)


@dataclass(slots=True)
class Products:
    """Of one forward pass, in order."""

    calls: list[Callable[[], Any]] = field(default_factory=list)
    multiply_adds: int = 0

    def run(self) -> None:
        """All of them, with the operands of the pass that was watched; their results are thrown away."""
        for call in self.calls:
            call()


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found = Products()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in _PRODUCTS:
            left, right = args[1:3] if name in _ADDING else args[:2]
            self.found.multiply_adds += left.numel() * right.shape[-1]
            self.found.calls.append(partial(func, *args, **kwargs))
        return func(*args, **kwargs)


@torch.no_grad()
def products_of(inputs: tuple[Tensor, Tensor, Tensor], hardware: Hardware) -> Products:
    """The products of one forward pass of :mod:`aimc.ops.blocked`.

    Args:
        inputs: query, key, value, each `[B, H, T, D]`.
        hardware: without noise.
    """
    query, key, value = inputs
    seed = torch.zeros((), dtype=torch.int64, device=query.device)
    call = Call(query, key, value, Scaling(None, None, None), None, Heads(query, key, hardware, None, seed))
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a watcher sees its own thread
    try:
        with patch.object(engine, "fitting_kernels", lambda call: None), _Recorder() as recorder:
            engine.forward(call)
    finally:
        torch.set_num_threads(n_threads)
    return recorder.found
