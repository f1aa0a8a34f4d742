"""What a compiler makes of the kernels, without a GPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from benchmarks.compiled import _loops


def test_loops_are_counted_with_those_inside_of_them() -> None:
    code = """
.L_x_1:
        /*0000*/ MOV R1, R2 ;
.L_x_2:
        /*0010*/ FADD R1, R1, R2 ;
        /*0020*/ @P0 BRA `(.L_x_2) ;
        /*0030*/ @P1 BRA `(.L_x_3) ;
        /*0040*/ BRA `(.L_x_1) ;
.L_x_3:
        /*0050*/ BRA `(.L_x_3) ;
"""
    assert _loops(code.splitlines()) == [5, 2]  # the last one waits for ever behind the end


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_every_kernel_is_told_of() -> None:
    command = [sys.executable, "-m", "benchmarks.compiled", "--only", "published"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    kernels = [line.split(": ")[1].split(",")[0] for line in told]
    assert kernels == [
        *("write_kernel", "forward_kernel", "pulse_gradient_kernel", "pair_gradient_kernel", "gradient_at_converters")
    ]
    assert all("registers" in line and "loops [" in line for line in told)
