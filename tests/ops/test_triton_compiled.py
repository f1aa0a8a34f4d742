"""The kernels as they are compiled for a GPU are the eager operator: their tests once more, on what Triton made of it.

`make kernels` runs all of them so; some are here.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CHOSEN = {
    80: "same_noise or every_noise and all or normaliser and full or (published_sizes and (noise or protected))",
    90: "published_sizes and not pretrained or sub_tile_sizes and 64-64",
}
"""Tests, by compute capability times ten: of what differs most from the interpreter's, among all options."""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize("arch", CHOSEN)
def test_tests_of_the_kernels_pass_as_they_are_compiled(arch: int) -> None:
    words = [sys.executable, "-m", "pytest", "-p", "tests.ptx.driver", "-n", "0", "-m", "slow or not slow"]
    environment = {**os.environ, "AIMC_ARCH": str(arch), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*words, "tests/ops/test_triton.py", "-k", CHOSEN[arch]],
        **{"cwd": REPOSITORY, "env": environment, "capture_output": True, "text": True},
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed is not None and int(passed[1]) >= 7, done.stdout[-3000:] + done.stderr
