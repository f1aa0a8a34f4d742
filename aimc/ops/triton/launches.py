"""How the kernels are launched: where nothing else is said, the fastest of what was tried on a GPU."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch


class Launch(NamedTuple):
    """How a kernel is launched."""

    block: int
    """Query rows of a program, at most; a program never holds more than a sub-tile."""
    warps: int
    stages: int
    """Depth of the pipeline of loads: each holds what a block is read from in shared memory, mostly operands of both
    arrays."""


def _launches(forward: Launch, pulse_gradient: Launch, stored_gradient: Launch, pairs: Launch) -> dict[str, Launch]:
    return {
        "statistics": forward,
        "forward": forward,
        "pulse_gradient": pulse_gradient,
        "stored_gradient": stored_gradient,
        "pair_gradient": pairs,
        "memory_gradient": stored_gradient,
    }


PAIRS = Launch(64, 4, 2)
"""Of what was kept; compiled, but not yet tried."""
HALF_LAUNCHES = _launches(Launch(64, 4, 2), Launch(64, 4, 1), Launch(64, 4, 1), PAIRS)
"""With two-byte operands; the fastest of five to six tried on an H200, as are those with a softmax."""
SOFTMAX_LAUNCHES = _launches(Launch(64, 4, 2), Launch(64, 4, 1), Launch(32, 8, 1), PAIRS)
"""The same with a softmax."""
NOISY_LAUNCHES = _launches(Launch(64, 4, 1), Launch(64, 4, 1), Launch(32, 8, 1), PAIRS)
"""The same with read noise; the forward kernel's was compiled but not yet tried, either."""
FULL_LAUNCHES = _launches(Launch(32, 8, 1), Launch(32, 8, 1), Launch(16, 8, 1), Launch(32, 8, 1))
"""With float32 operands."""
LARGE = 64 * 64
"""Numbers of a block's operand beyond which the registers of more warps are needed."""
SPARE_BYTES = 24 * 1024
"""Of a program's shared memory that pipelined loads leave to the rest of it."""


def launches_for(dtype: torch.dtype, *, is_noisy: bool, has_softmax: bool, is_large: bool = False) -> dict[str, Launch]:
    """By the name of the kernel, for operands of a dtype, with read noise, with a softmax, of more than :data:`LARGE`
    numbers."""
    if dtype == torch.float32:
        return FULL_LAUNCHES
    found = NOISY_LAUNCHES if is_noisy else SOFTMAX_LAUNCHES if has_softmax else HALF_LAUNCHES
    if not is_large:
        return found
    return {
        name: how._replace(warps=8) if name == "pair_gradient" or (is_noisy and name == "forward") else how
        for name, how in found.items()
    }


@functools.cache
def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may have: 227 KiB on an H100, 163 on an A100, 99 on a consumer's card."""
    if device.type != "cuda":
        return 227 * 1024
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 48 * 1024)
