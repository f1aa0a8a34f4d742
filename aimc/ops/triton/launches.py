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
    """Depth of the pipeline of loads: each holds the operands of both arrays in shared memory."""


def _launches(forward: Launch, pulse_gradient: Launch, stored_gradient: Launch) -> dict[str, Launch]:
    return {
        "statistics": forward,
        "forward": forward,
        "pulse_gradient": pulse_gradient,
        "stored_gradient": stored_gradient,
        "pair_gradient": Launch(64, 4, 2),  # not yet tried
        "memory_gradient": stored_gradient,
    }


HALF_LAUNCHES = _launches(Launch(64, 4, 2), Launch(64, 4, 1), Launch(64, 4, 1))
"""With two-byte operands; the fastest of five to six tried on an H200, as are those with a softmax."""
SOFTMAX_LAUNCHES = _launches(Launch(64, 4, 2), Launch(64, 4, 1), Launch(32, 8, 1))
"""The same with a softmax."""
NOISY_LAUNCHES = _launches(Launch(64, 4, 1), Launch(64, 4, 1), Launch(32, 8, 1))
"""The same with read noise; the forward kernel's, as it now is, was compiled but not yet tried."""
FULL_LAUNCHES = _launches(Launch(32, 8, 1), Launch(32, 8, 1), Launch(16, 8, 1))
"""With float32 operands."""
PIPELINE_BYTES = 150_000
"""Shared memory of a program with which loads are pipelined."""


def launches_for(dtype: torch.dtype, *, is_noisy: bool, has_softmax: bool) -> dict[str, Launch]:
    """By the name of the kernel, for operands of a dtype, with read noise, with a softmax."""
    if dtype == torch.float32:
        return FULL_LAUNCHES
    return NOISY_LAUNCHES if is_noisy else SOFTMAX_LAUNCHES if has_softmax else HALF_LAUNCHES


@functools.cache
def has_room(device: torch.device) -> bool:
    """Whether a program may have the shared memory that a pipeline of loads takes: on a data centre's card, not on a
    consumer's, where it has 99 KiB."""
    if device.type != "cuda":
        return True
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0) >= PIPELINE_BYTES
