"""Which implementation of the operator computes."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from aimc.config import Hardware

_log = logging.getLogger(__name__)


def choose_backend(query: Tensor, hardware: Hardware) -> str:
    """`eager`, `blocked` or `triton` for this call.

    `auto` takes the Triton kernels on a GPU where they can do the sizes at hand, and the blocked operator everywhere else; it logs each
    choice with its reason once.

    Raises:
        ValueError: `triton` was asked for by name and cannot compute this.
    """
    backend = hardware.backend
    if backend == "triton":
        obstacle = _triton_obstacle(query, hardware)
        if obstacle:
            raise ValueError(f"hardware.backend='triton': {obstacle}")
    if backend != "auto":
        return backend
    if query.device.type == "cpu":
        backend, reason = "blocked", "on a CPU it is the fastest exact implementation"
    else:
        obstacle = _triton_obstacle(query, hardware)
        backend, reason = ("blocked", obstacle) if obstacle else ("triton", f"fused kernels for {query.device.type}")
    if not torch.compiler.is_compiling():
        _say(backend, reason)
    return backend


def _triton_obstacle(query: Tensor, hardware: Hardware) -> str | None:
    """Why the Triton kernels cannot compute this; None: they can."""
    from aimc.ops.attention_triton import check_triton

    return check_triton(tuple(query.shape), query.dtype, query.device, hardware)


@functools.cache
def _say(backend: str, reason: str) -> None:
    _log.info("gain-cell attention: backend 'auto' uses '%s' (%s)", backend, reason)
