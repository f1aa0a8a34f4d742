"""`python -m benchmarks.host`: what Python does around the Triton kernels of a layer, for which a GPU waits.

No GPU is needed: the kernels are compiled for one and launched into nothing. So Triton's own launcher is left out, and
what it takes to hand a launch to a GPU; on the other hand PyTorch's few operations in between are computed here, on a
short text. `--base COMMIT` measures that commit as well, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROUNDS, CALLS = 40, 20
"""Of which the fastest counts, as others share the machine, and calls in each."""
TURNS = 2
"""Of this tree and the other."""
SHAPE = (1, 12, 8, 64)
"""`[B, H, T, D]`: a short text of GPT-2 small's heads."""


SHARED_KIB = {80: 163, 89: 99, 90: 227}
"""Shared memory of a program, by compute capability times ten."""


class Nowhere:
    """Triton's driver for a GPU that is not there: by its compute capability times ten, a Hopper if nothing is said."""

    def __init__(self, arch: int = 90) -> None:
        self.arch, self.utils = arch, self
        self.launcher_cls = lambda source, metadata: lambda *arguments: None

    def get_current_device(self) -> int:
        """The first."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return 0

    def get_current_target(self) -> object:
        """What is compiled for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        """What Triton checks a kernel against."""
        return {"max_shared_mem": 1024 * SHARED_KIB[self.arch]}

    def load_binary(self, *about: object) -> tuple[int, int, int, int, int]:
        """Module, function, registers, spills, most threads."""
        return 0, 0, 0, 0, 1024

    def unload_module(self, module: int) -> None:
        """There is none."""


def microseconds() -> dict[str, dict[str, float]]:
    """By machine, of a forward pass that keeps what a backward pass needs, and of both."""
    import torch
    from triton.runtime import driver

    from aimc import gain_cell_attention, presets
    from aimc.ops.effects.noise import Chip
    from aimc.ops.scaling import Affine, Scaling
    from aimc.ops.triton import check, engine

    torch.set_num_threads(1)
    torch.autograd.set_multithreading_enabled(False)
    driver.set_active(Nowhere())
    assert engine  # imported before the next line, or its kernels would multiply as an interpreter can
    check.interpreted = lambda: True  # tensors of the CPU are taken
    cell = presets.gain_cell_cmos()
    machines = {
        "published cell": cell,
        "typical noise": replace(cell, noise=presets.typical()),
        "softmax": presets.with_softmax(cell),
        "normaliser, signed queries": presets.gain_cell_normalised(),
    }
    q, k, v = (torch.rand(SHAPE, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    heads = SHAPE[1]
    scalers = [Affine(torch.ones(heads, requires_grad=True), torch.zeros(heads, requires_grad=True)) for _ in range(3)]
    scaling = Scaling(query=scalers[0], key=scalers[1], value=scalers[2])
    upstream, generator = torch.ones_like(q), torch.Generator().manual_seed(0)
    found = {}
    for name, hardware in machines.items():
        hardware = replace(hardware, backend="triton")

        def forward(hardware=hardware) -> torch.Tensor:  # type: ignore[no-untyped-def]
            at = {"chip": Chip(seed=0, layer=3), "generator": generator}
            return gain_cell_attention(q, k, v, hardware, scaling=scaling, **at)

        def both(forward: Callable[[], torch.Tensor] = forward) -> None:
            torch.autograd.grad(forward(), [q, k, v, *(x for scaler in scalers for x in scaler)], upstream)

        found[name] = {"forward": _each(forward), "forward + backward": _each(both)}
    return found


def _each(call: Callable[[], object]) -> float:
    for _ in range(CALLS):
        call()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append(1e6 * (time.perf_counter() - start) / CALLS)
    return min(times)


def _of_tree(tree: Path) -> dict[str, dict[str, float]]:
    """Of the package there, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--once"]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{tree}: not measured\n{done.stderr}")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.add_argument("--base", metavar="COMMIT", help="also of that commit, in turn")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.once:
        sys.stdout.write(json.dumps(microseconds()))
        return
    from rich.console import Console
    from rich.table import Table

    from benchmarks.commits import CommitError, scratch_clone
    from benchmarks.machine import REPOSITORY

    names = ["this tree", *([words.base] if words.base else [])]
    table = Table(title="host, microseconds a layer")
    table.add_column("machine")
    table.add_column("pass")
    if words.base:
        try:
            with scratch_clone(words.base) as other:
                turns = [[_of_tree(REPOSITORY), _of_tree(other)] for _ in range(TURNS)]
        except CommitError as error:
            sys.exit(f"--base: {error}")
    else:
        turns = [[_of_tree(REPOSITORY)]]
    for name in names:
        table.add_column(name, justify="right")
    if words.base:
        table.add_column("ratio", justify="right")
    for machine, passes in turns[0][0].items():
        for what in passes:
            best = [min(turn[i][machine][what] for turn in turns) for i in range(len(names))]
            ratio = [f"{best[0] / best[1]:.2f}"] if words.base else []
            table.add_row(machine, what, *(f"{x:.0f}" for x in best), *ratio)
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
