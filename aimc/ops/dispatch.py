"""Which implementation of the operator computes."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from aimc.hardware import Hardware
from aimc.ops.blocked.interpolation import moments_needed

_log = logging.getLogger(__name__)


def choose_backend(query: Tensor, hardware: Hardware) -> str:
    """`eager`, `blocked` or `triton` for this call.

    `auto` takes the Triton kernels on a GPU where they can do the sizes and effects at hand, and the blocked operator
    everywhere else; it logs each choice with its reason once. The softmax activation, protected tokens, and retention
    that is spread and too short for :mod:`aimc.ops.blocked.interpolation` are eager in all cases.

    Raises:
        ValueError: a backend was asked for by name and cannot compute this.
    """
    backend = hardware.backend
    only_eager = _only_eager(hardware)
    if only_eager and backend in ("blocked", "triton"):
        raise ValueError(
            f"hardware.backend={backend!r}: the fused backends do not have {only_eager}; use backend='auto' or 'eager'"
        )
    if only_eager:
        return "eager"
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


def _only_eager(hardware: Hardware) -> str | None:
    """What of the hardware the fused backends do not have."""
    if hardware.activation != "hard_sigmoid":
        return f"activation={hardware.activation!r}"
    if hardware.protection.is_on:
        return "protected tokens (hardware.protection)"
    if hardware.noise.tau_spread and hardware.leakage.decay_per_token and moments_needed(hardware) is None:
        return (
            f"cells that each fade at a rate of their own (noise.tau_spread={hardware.noise.tau_spread:g}) as far"
            f" within the tokens of a sub-tile (leakage.tau_s, array.rows={hardware.array.rows})"
        )
    return None


def _triton_obstacle(query: Tensor, hardware: Hardware) -> str | None:
    """Why the Triton kernels cannot compute this; None: they can."""
    from aimc.ops.triton.launch import check_triton

    return check_triton(tuple(query.shape), query.dtype, query.device, hardware)


@functools.cache
def _say(backend: str, reason: str) -> None:
    _log.info("gain-cell attention: backend 'auto' uses '%s' (%s)", backend, reason)
