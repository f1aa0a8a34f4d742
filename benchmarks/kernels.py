"""`python -m benchmarks.kernels`: the Triton kernels on a GPU, one by one, beside FlashAttention."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from aimc import gain_cell_attention, presets
from aimc.hardware import Hardware
from aimc.ops.effects.noise import Chip
from benchmarks.machine import provenance

ROUNDS = 5


def machines() -> Iterator[tuple[str, Hardware]]:
    """What is timed: the published cell, with its surrogate gradient, with noise, with a normaliser."""
    cell = presets.gain_cell_cmos()
    cell.backend = "triton"
    yield "published cell", cell
    yield "surrogate gradient", replace(cell, cell=replace(cell.cell, gradient="linear"))
    yield "typical noise", replace(cell, noise=presets.typical())
    yield "normaliser, signed queries", replace(presets.gain_cell_normalised(), backend="triton")


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--shape", type=int, nargs=4, default=(8, 12, 1024, 64), metavar=("B", "H", "T", "D"))
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("benchmarks.kernels times GPU kernels, and there is no CUDA device here\n")
        return 1
    generator = torch.Generator().manual_seed(0)
    q = torch.rand(*options.shape, generator=generator)
    k, v = (0.45 + 0.2 * torch.randn(*options.shape, generator=generator) for _ in "kv")
    qkv = [x.to("cuda", torch.bfloat16).requires_grad_() for x in (q, k, v)]
    table = Table("", "forward, ms", "forward + backward, ms", "on the GPU, ms", "of that")
    for name, operator in _contenders(qkv):
        table.add_row(name, *_times(operator, qkv))
    console = Console()
    console.print(
        f"{provenance('cuda')['device']}, torch {torch.__version__}, bfloat16, [B, H, T, D] = {options.shape}"
    )
    console.print(table)
    return 0


def _contenders(qkv: list[Tensor]) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    yield "FlashAttention", lambda: F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
    for name, hardware in machines():
        yield name, lambda h=hardware: gain_cell_attention(qkv[0], qkv[1], qkv[2], h, chip=Chip(seed=1))  # type: ignore[misc]


def _times(operator: Callable[[], Tensor], qkv: list[Tensor]) -> tuple[str, str, str, str]:
    from triton.testing import do_bench

    upstream = torch.randn_like(qkv[0])

    def both() -> None:
        torch.autograd.grad(operator(), qkv, upstream)

    with torch.no_grad():
        forward = do_bench(operator, return_mode="median")
    kernels = _kernels(both)
    longest = ", ".join(f"{name} {ms:.2f}" for name, ms in kernels[:4])
    total = sum(ms for _, ms in kernels)
    return f"{forward:.2f}", f"{do_bench(both, return_mode='median'):.2f}", f"{total:.2f}", longest


def _kernels(run: Callable[[], None]) -> list[tuple[str, float]]:
    """Kernels and their milliseconds a run, longest first."""
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as events:
        for _ in range(ROUNDS):
            run()
        torch.cuda.synchronize()
    on_gpu = [e for e in events.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    return sorted(((e.key[:30], e.device_time_total / 1000 / ROUNDS) for e in on_gpu), key=lambda x: -x[1])


if __name__ == "__main__":
    sys.exit(main())
