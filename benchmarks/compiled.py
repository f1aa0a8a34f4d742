"""`python -m benchmarks.compiled`: what becomes of the Triton kernels for a GPU that is not here: registers and stack
of a thread, shared memory of a program, and the instructions of each loop. Nothing is launched.

The tools are those that come with Triton. A loop's number counts what stands between its first instruction and the jump
back, the loops inside of it included.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.host import SHARED_KIB, Nowhere

SHAPE = (1, 12, 1024, 64)
"""`[B, H, T, D]`, in bfloat16."""


def main(arguments: list[str] | None = None) -> int:
    """Compile, and say line by line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__)
    parser.add_argument("--arch", type=int, choices=SHARED_KIB, default=90)
    parser.add_argument("--only", default="", help="machines of benchmarks.kernels whose name holds these words")
    options = parser.parse_args(arguments)
    made = _watched(options.arch)
    from benchmarks.kernels import attention, machines  # behind what they are to be compiled for

    for name, hardware in machines():
        if options.only in name:
            qkv = [torch.zeros(SHAPE, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
            made.clear()
            out = attention(qkv, replace(hardware, backend="triton"))
            torch.autograd.grad(out, qkv, torch.zeros_like(out))
            for kernel in made:
                sys.stdout.write(f"sm_{options.arch}, {name}: {_about(kernel)}\n")
                sys.stdout.flush()
    return 0


def compile_for(there: Nowhere) -> None:
    """Kernels are compiled for this GPU from now on, and launched by it, also where they are given tensors of the
    CPU."""
    from triton.runtime import driver

    from aimc.ops.triton import check, kernels, plan, statistics, writes

    driver.set_active(there)
    assert kernels and statistics and writes  # made for a GPU now, whatever the environment says later
    check.interpreted = lambda: True  # tensors of the CPU are taken
    plan.shared_bytes = lambda device: 1024 * SHARED_KIB[there.arch]  # type: ignore[assignment]


def _watched(arch: int) -> list[Any]:
    """Where each kernel is noted that Triton compiles from now on, for a GPU that is not there."""
    from triton.compiler import compiler

    compile_for(Nowhere(arch))
    made: list[Any] = []
    right = compiler.CompiledKernel.__init__

    def noted(self: Any, *arguments: Any, **keywords: Any) -> None:
        right(self, *arguments, **keywords)
        made.append(self)

    compiler.CompiledKernel.__init__ = noted
    return made


def _about(kernel: Any) -> str:
    import triton.backends.nvidia as tools

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        folder = Path(str(tools.__file__ or tools.__path__[0]))
        folder = (folder if folder.is_dir() else folder.parent) / "bin"
        used, code = (
            subprocess.run([folder / tool[0], *tool[1:], file.name], capture_output=True, text=True, check=True).stdout
            for tool in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", used)
    assert found is not None, used
    about = kernel.metadata
    return (
        f"{kernel.name}, {about.num_warps} warps, {about.num_stages} stages: {found[1]} registers, {found[2]} B stack,"
        f" {about.shared} B shared, loops {_loops(code.splitlines())}"
    )


def _loops(lines: list[str]) -> list[int]:
    """Instructions of the loops, longest first."""
    before, at, found = 0, {}, []
    for line in lines:
        if label := re.match(r"(\.L_\S+):", line.strip()):
            at[label[1]] = before
        elif re.search(r"/\*[0-9a-f]{4,}\*/", line):
            before += 1
            jump = re.search(r"BRA.*`\((\.L_\S+)\)", line)
            if jump and jump[1] in at and before - at[jump[1]] > 1:
                found.append(before - at[jump[1]])
    return sorted(found, reverse=True)


if __name__ == "__main__":
    raise SystemExit(main())
