"""What the Triton kernels can compute; importable where Triton is not installed."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

from aimc.hardware import Hardware
from aimc.ops.triton.spread import MOST, orders_needed

ROWS = (16, 32, 64, 128)
"""Sub-tile sizes that are a block: a power of two, and no smaller than the smallest tensor-core product."""
MIN_HEAD_SIZE, MAX_HEAD_SIZE = 16, 128
MAX_TOKENS = 2**31 // MAX_HEAD_SIZE
"""Positions inside one head are counted in 32 bits."""
MOST_DECAY = 9.0
"""Exponent by which the fastest power of a voltage may fall within a sub-tile: operands are kept relative to the
beginning of their block, and float16 ends at e^11."""


def check_triton(
    query_shape: tuple[int, ...] | torch.Size, dtype: torch.dtype, device: torch.device, hardware: Hardware
) -> str | None:
    """Whether the Triton kernels can run this: None, or one sentence naming what they cannot do and what to do instead.

    Args:
        query_shape: `[B, H, T, D]`.
        dtype: dtype of the query.
        device: where it lives.
        hardware: the machine.
    """
    head_size, rows, instead = query_shape[-1], hardware.array.rows, "use backend='blocked' or 'eager'"
    lacking = _lacking(hardware)
    if lacking:
        return f"the triton backend does not have {lacking}; {instead}"
    if not _is_installed():
        return f"the triton backend needs the package triton, which is not installed; install it, or {instead}"
    if device.type != "cuda" and not interpreted():
        return (
            f"the triton backend needs a CUDA device, but query is on {device}; move the tensors to a GPU, or {instead}"
        )
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return (
            f"the triton backend computes in float32, which {dtype} does not fit in; convert the query with .float(),"
            f" or {instead}"
        )
    if not MIN_HEAD_SIZE <= head_size <= MAX_HEAD_SIZE:
        return (
            f"the triton backend holds head sizes from {MIN_HEAD_SIZE} to {MAX_HEAD_SIZE} in registers, not"
            f" {head_size}; {instead}"
        )
    if rows not in ROWS:
        sizes = ", ".join(map(str, ROWS))
        return (
            f"the triton backend walks the keys in sub-tiles of array.rows in {sizes}, not {rows}; change array.rows,"
            f" or {instead}"
        )
    orders = orders_needed(hardware, query_shape[-2], dtype)
    if orders is None:
        return (
            f"the triton backend reads cells that leak apart by at most {MOST} orders in time, and with"
            f" noise.tau_spread={hardware.noise.tau_spread:g} and leakage.tau_s={hardware.leakage.tau_s:g} the fastest"
            f" of them lose too much while a query sees them; {instead}"
        )
    if orders and hardware.leakage.compensate:
        return f"the triton backend does not have leakage.compensate together with noise.tau_spread; {instead}"
    if not orders and (len(hardware.cell.coefficients) - 1) * hardware.leakage.decay_per_token * rows > MOST_DECAY:
        return (
            f"the triton backend keeps what is left of a voltage relative to its sub-tile, and with leakage.tau_s="
            f"{hardware.leakage.tau_s:g} nothing is left within array.rows={rows} tokens; {instead}"
        )
    if query_shape[-2] > MAX_TOKENS:
        return (
            f"the triton backend counts positions in 32 bits, and {query_shape[-2]} tokens are too many; split the"
            f" sequence, or {instead}"
        )
    return None


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _lacking(hardware: Hardware) -> str | None:
    """What of the hardware the kernels leave out; None: nothing."""
    if hardware.activation == "pruned_softmax":
        return f"activation={hardware.activation!r}, which selects among all scores of a query"
    in_use = {"input_dac": hardware.input_dac, "readout": hardware.readout}
    if hardware.has_softmax:
        in_use |= {"score_adc": hardware.score_adc, "probability_dac": hardware.probability_dac}
    if hardware.normaliser.is_on:
        in_use["normaliser.counter"] = hardware.normaliser.counter
    for name, converter in in_use.items():
        if converter.spacing != "uniform":
            return f"{name}.spacing={converter.spacing!r}"
    return None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU: what Triton itself reads when the kernels are imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
