"""What a process does with memory that it has freed."""

from __future__ import annotations

import ctypes
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's options (malloc.h)."""


@cache
def keep_freed_memory() -> None:
    """Keep freed memory for what is allocated next, where the C library is glibc. By itself it gives tensors of some
    megabytes back to the kernel at once, which clears every page anew when the next one is made: a sixth of a training
    step on a CPU. The most that a process holds at once grows somewhat."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
