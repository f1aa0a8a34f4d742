"""What is compiled where numba is there: what PyTorch would compute in many passes and calls, one after another.

Everything here is also written in PyTorch where it is called, and equal to that up to the last digits.
"""

from __future__ import annotations

import functools
import os
from types import ModuleType

import torch
from torch import Tensor

SWITCH = "AIMC_COMPILED"
"""Environment variable; 0 switches everything here off."""


def kernels_for(x: Tensor) -> ModuleType | None:
    """The compiled functions if there are any for this tensor: float32 on a CPU, outside `torch.compile`."""
    fitting = x.dtype == torch.float32 and x.device.type == "cpu" and not torch.compiler.is_compiling()
    return kernels() if fitting else None


@functools.cache
def kernels() -> ModuleType | None:
    """The compiled functions; None: numba or threadpoolctl is not installed (`pip install aimc[fast]`), or it is
    switched off."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        import threadpoolctl  # noqa: F401  # without it the first product would fail, in place of nothing being compiled

        from aimc.ops.compiled.once import one_process_at_a_time

        with one_process_at_a_time():
            from aimc.ops.compiled import functions
    except (ImportError, RuntimeError):  # also a numba that does not know this numpy, or finds no folder for its cache
        return None
    return functions
