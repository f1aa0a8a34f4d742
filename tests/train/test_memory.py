"""Freed memory stays with the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import resource
from train.memory import keep_freed_memory
if {kept}:
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    for size in (2**20, 2**22, 2**24):  # bytes
        b"1" * size, b"2" * size
work()
before = faults()
for _ in range(10):
    work()
print(faults() - before)
"""

AS_AT_FIRST = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}
"""glibc's threshold where it begins; by itself it rises after a round or two, or three."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of glibc")
def test_memory_is_not_fetched_anew_each_time() -> None:
    def page_faults(kept: bool) -> int:
        done = subprocess.run(
            [sys.executable, "-c", CODE.format(kept=kept)], capture_output=True, text=True, check=True, env=AS_AT_FIRST
        )
        return int(done.stdout)

    assert page_faults(kept=True) < 0.1 * page_faults(kept=False)
