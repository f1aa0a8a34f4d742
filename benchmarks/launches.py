"""`python -m benchmarks.launches`: which way of launching each Triton kernel is the fastest on this GPU.

The ways are compiled side by side, a process each, and then timed one after the other: milliseconds of each kernel in a
forward and a backward pass, and by how much output and gradients are off those of the kernels in float32. The fastest
go into :mod:`aimc.ops.triton.launches` by hand.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from aimc.hardware import Hardware
from aimc.ops.triton import launches, plan
from aimc.ops.triton.launches import Launch
from benchmarks.kernels import SHAPE, attention, inputs, kernels_of, machines

KINDS = "published cell", "typical noise", "softmax"
"""What is launched in ways of its own; names in :func:`benchmarks.kernels.machines`."""
WAYS = [Launch(*way) for way in itertools.product((64, 32), (4, 8), (1, 2, 3))]


def main(arguments: list[str] | None = None) -> int:
    """Compile, time, and say; 1 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launches", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="what would begin later is left out")
    parser.add_argument("--compile", nargs=2, metavar=("KIND", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("benchmarks.launches times GPU kernels, and there is no CUDA device here\n")
        return 1
    of_kind = dict(machines())
    if options.compile:
        kind, way = options.compile
        _pass(inputs(SHAPE), of_kind[kind], WAYS[int(way)])
        return 0
    start, seconds = time.monotonic(), 60 * options.minutes
    end = start + seconds
    _compile(start + seconds / 2)
    for kind in KINDS:
        found: dict[str, list[tuple[float, Launch]]] = defaultdict(list)
        *qkv, upstream = inputs(SHAPE)
        exact = _pass([*(x.detach().float().requires_grad_() for x in qkv), upstream.float()], of_kind[kind], WAYS[0])
        for way in WAYS:
            if time.monotonic() < end:
                _time(kind, of_kind[kind], way, exact, found)
        for kernel, ways in found.items():
            sys.stdout.write(f"{kind}: {kernel} {min(ways)[0]:.3f} ms by {tuple(min(ways)[1])}\n")
    return 0


def _compile(end: float) -> None:
    """All ways, so that they are there when they are timed."""

    def one(job: tuple[str, int]) -> None:
        if time.monotonic() < end:
            command = [sys.executable, "-m", "benchmarks.launches", "--compile", job[0], str(job[1])]
            subprocess.run(command, capture_output=True, check=False)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, [(kind, way) for way in range(len(WAYS)) for kind in KINDS]))


def _time(
    kind: str, hardware: Hardware, way: Launch, exact: list[Tensor], found: dict[str, list[tuple[float, Launch]]]
) -> None:
    given = inputs(SHAPE)
    try:
        got = _pass(given, hardware, way)
        kernels = [(name, ms) for name, ms in kernels_of(lambda: _pass(given, hardware, way)) if "at::" not in name]
    except Exception as error:  # too much shared memory, say: the next way may do
        sys.stdout.write(f"{kind} {tuple(way)}: {type(error).__name__}: {str(error).splitlines()[0]}\n")
        return
    off = max(((a.float() - b).norm() / b.norm()).item() for a, b in zip(got, exact, strict=True))
    said = ", ".join(f"{name} {ms:.3f}" for name, ms in kernels)
    sys.stdout.write(f"{kind} {tuple(way)}: {sum(ms for _, ms in kernels):.3f} ms, off by {off:.4f} | {said}\n")
    sys.stdout.flush()
    for name, ms in kernels:
        found[name].append((ms, way))


def _pass(given: list[Tensor], hardware: Hardware, way: Launch) -> list[Tensor]:
    """Output and gradients, all kernels launched in one way."""
    for ways in (launches.HALF_LAUNCHES, launches.SOFTMAX_LAUNCHES, launches.NOISY_LAUNCHES):
        if ways["forward"] != way:
            ways.update(dict.fromkeys(ways, way))
            plan.forget()
    *qkv, upstream = given
    out = attention(qkv, replace(hardware, backend="triton"))
    return [out.detach(), *torch.autograd.grad(out, qkv, upstream)]


if __name__ == "__main__":
    raise SystemExit(main())
