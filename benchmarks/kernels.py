"""`python -m benchmarks.kernels`: the Triton kernels on a GPU beside FlashAttention, a training step and decoding of a
GPT-2 small, as one script of less than four minutes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from aimc import gain_cell_attention, presets
from aimc.hardware import Hardware, Protection
from aimc.ops.effects.noise import Chip
from aimc.ops.scaling import Scaling
from benchmarks.gpu_models import decoding_rows, training_rows
from benchmarks.machine import provenance

ROUNDS = 5
SHAPE = (8, 12, 1024, 64)
"""`[B, H, T, D]` of the kernels' rows."""
LENGTHS = (1024, 4096, 16384, 32768)
"""Tokens of one text, all of them in the window."""
OFF = 0.05
"""Error of bfloat16 kernels against the eager operator in float32, relative to the norm of the outputs, that a row may
have: 8 significant bits, and codes that fall on the other side."""


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    section: str
    name: str
    measure: Callable[[], dict[str, float | str]]


def machines() -> Iterator[tuple[str, Hardware]]:
    """What is timed, what is asked most first."""
    cell = presets.gain_cell_cmos()
    softmax = presets.with_softmax(cell)
    yield "published cell", cell
    yield "typical noise", replace(cell, noise=presets.typical())
    yield "softmax", softmax
    yield "first 4 and newest 64 protected", replace(cell, protection=Protection(n_sink=4, n_recent=64))
    pretrained = presets.for_pretrained(cell, protection=Protection(n_sink=4, n_recent=64))
    pretrained.leakage.token_time_s = cell.leakage.token_time_s
    yield "for pretrained models: softmax, corrections, protected", pretrained
    yield "normaliser, signed queries", presets.gain_cell_normalised()
    yield "surrogate gradient", replace(cell, cell=replace(cell.cell, gradient="linear"))
    yield "softmax, typical noise", replace(softmax, noise=presets.typical())


def main(arguments: list[str] | None = None) -> int:
    """Measure row by row, and say each at once; 1 without a GPU, or where a row is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.7, help="rows that would begin later are left out")
    parser.add_argument("--only", default="", help="sections or rows whose name holds these words")
    parser.add_argument("--json", type=Path, help="where to write the rows, too")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("benchmarks.kernels times GPU kernels, and there is no CUDA device here\n")
        return 1
    start, found, about = time.monotonic(), [], provenance("cuda")
    _say(f"{about['device']}, torch {torch.__version__}, commit {about['commit'][:12]}, bfloat16; medians")
    rows = [row for row in _rows() if options.only in f"{row.section}: {row.name}"]
    for number, row in enumerate(rows):
        spent = time.monotonic() - start
        if spent > 60 * options.minutes:
            _say(f"left out after {spent:.0f} s: {', '.join(f'{r.section}: {r.name}' for r in rows[number:])}")
            break
        try:
            numbers = row.measure()
        except (RuntimeError, AssertionError) as error:  # one row must not cost the others
            numbers = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        found.append({"section": row.section, "name": row.name, **numbers})
        _say(f"{row.section}: {row.name} | " + ", ".join(f"{k} {_shown(v)}" for k, v in numbers.items()))
        if options.json:
            options.json.write_text(json.dumps({"machine": about, "rows": found}, indent=1), encoding="utf-8")
    return int(any("failed" in row for row in found))


def _rows() -> Iterator[Row]:
    """In the order of their worth: a run that is cut short has the first ones."""
    first, *others = list(machines())
    yield Row("kernels", "FlashAttention", partial(_kernel_row, None, SHAPE))
    for name, hardware in (first, *others[:4]):
        yield Row("kernels", name, partial(_kernel_row, hardware, SHAPE))
    yield from (Row("training step", *row) for row in training_rows())
    yield from (Row("decoding", *row) for row in decoding_rows())
    for T in LENGTHS:
        shape = (max(8192 // T, 1), 12, T, 64)
        yield Row(f"T={T}", "FlashAttention", partial(_kernel_row, None, shape))
        yield Row(f"T={T}", "published cell", partial(_kernel_row, _with_window(first[1], T), shape))
        yield Row(f"T={T}", "softmax", partial(_kernel_row, _with_window(others[1][1], T), shape))
    for name, hardware in others[4:]:
        yield Row("kernels", name, partial(_kernel_row, hardware, SHAPE))


def _with_window(hardware: Hardware, window: int) -> Hardware:
    return replace(hardware, array=replace(hardware.array, window=window))


def _kernel_row(hardware: Hardware | None, shape: tuple[int, ...]) -> dict[str, float | str]:
    """Milliseconds of the operator; None: FlashAttention."""
    from triton.testing import do_bench

    *qkv, upstream = inputs(shape)

    def operator() -> Tensor:
        if hardware is None:
            return F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
        return attention(qkv, replace(hardware, backend="triton"))

    def both() -> None:
        torch.autograd.grad(operator(), qkv, upstream)

    with torch.no_grad():
        forward = do_bench(operator, warmup=10, rep=50, return_mode="median")
    backward = do_bench(both, warmup=10, rep=50, return_mode="median")
    kernels = kernels_of(both)
    numbers: dict[str, float | str] = {
        "forward ms": forward,
        "forward + backward ms": backward,
        "on the GPU ms": sum(ms for _, ms in kernels),
        "of that": "; ".join(f"{name} {ms:.2f}" for name, ms in kernels[:5]),
    }
    if hardware is not None and shape[2] <= 1024:
        numbers["off by"] = _error(qkv, hardware)
    return numbers


def inputs(shape: tuple[int, ...]) -> list[Tensor]:
    """Query, key and value, and a gradient of the output, `[B, H, T, D]` in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    q = torch.rand(shape, generator=generator)
    k, v = (0.45 + 0.2 * torch.randn(shape, generator=generator) for _ in "kv")
    qkv = [x.to("cuda", torch.bfloat16).requires_grad_() for x in (q, k, v)]
    return [*qkv, torch.randn(shape, generator=generator).to("cuda", torch.bfloat16)]


def attention(qkv: list[Tensor], hardware: Hardware) -> Tensor:
    """With what the hardware's features ask for: norms of one."""
    scaling = Scaling(None, None, None)
    if hardware.has_softmax:
        scaling = scaling._replace(score=torch.full(qkv[0].shape[1:2], 0.01, device=qkv[0].device))
    if hardware.features.normalise_queries:
        of_query, of_key, of_value = (torch.ones(x.shape[:3], device=x.device) for x in qkv)
        scaling = scaling._replace(query_norm=of_query, key_norm=of_key, value_norm=of_value)
    draws = torch.tensor([1, 0], device=qkv[0].device)
    out = gain_cell_attention(qkv[0], qkv[1], qkv[2], hardware, scaling=scaling, chip=Chip(seed=1), draws=draws)
    assert isinstance(out, Tensor)
    return out


@torch.no_grad()
def _error(qkv: list[Tensor], hardware: Hardware) -> float:
    """Of the first text, against the eager operator."""
    one = [x[:1] for x in qkv]
    got = attention(one, replace(hardware, backend="triton")).float()
    expected = attention([x.float() for x in one], replace(hardware, backend="eager"))
    error = ((got - expected).norm() / expected.norm()).item()
    assert error < OFF, f"off by {error:.3f} of the eager operator"
    return error


def kernels_of(run: Callable[[], object]) -> list[tuple[str, float]]:
    """Kernels and their milliseconds a run, longest first."""
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as events:
        for _ in range(ROUNDS):
            run()
        torch.cuda.synchronize()
    on_gpu = [e for e in events.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    return sorted(((e.key[:30], e.device_time_total / 1000 / ROUNDS) for e in on_gpu), key=lambda x: -x[1])


def _shown(x: float | str) -> str:
    return x if isinstance(x, str) else f"{x:.3g}"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
