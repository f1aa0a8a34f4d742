"""What a process does with memory that it has freed."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's options (malloc.h)."""
MOST_ON_HEAP, MOST_UNUSED = 2**25, 2**30
"""Bytes of one tensor that are taken from memory the process has, the most that any glibc allows; and bytes at its end
that it may hold unused."""


def keep_freed_memory() -> None:
    """Keep freed memory for what is allocated next, where the C library is glibc. By itself it gives tensors of some
    megabytes back to the kernel at once, which clears every page anew when the next one is made: up to a sixth of a
    training step on a CPU."""
    if os.name != "posix":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # The second without the first would leave every tensor to the kernel.
    if mallopt is not None and mallopt(M_MMAP_THRESHOLD, MOST_ON_HEAP):
        mallopt(M_TRIM_THRESHOLD, MOST_UNUSED)
