"""What is compiled where numba is there: passes over numbers that PyTorch would make one after another.

Everything here is also written in PyTorch where it is called, and equal to that up to the last digits.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

SWITCH = "AIMC_COMPILED"
"""Environment variable; 0 switches everything here off."""


@functools.cache
def kernels() -> ModuleType | None:
    """The compiled functions; None: numba is not installed (`pip install aimc[fast]`), or it is switched off."""
    return _module("normal")


@functools.cache
def cell_kernels() -> ModuleType | None:
    """Likewise, of cells that are read token by token."""
    return _module("cells")


def _module(name: str) -> ModuleType | None:
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        return importlib.import_module(f"aimc.ops.compiled.{name}")
    except ImportError:  # also a numba that does not know the numpy that is installed
        return None
