"""The door of the operator: gain-cell attention as everything else calls it, and which implementation computes it.

Equations: docs/physics.md. Their plain form: :mod:`aimc.ops.eager`, the truth that every other form is held to.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from aimc.hardware import Hardware
from aimc.ops.blocked.interpolation import nodes_needed
from aimc.ops.blocked.whole import kernels_of
from aimc.ops.call import Call
from aimc.ops.checks import check_attention
from aimc.ops.eager import Details, TileRead, details_of, eager_attention
from aimc.ops.effects.noise import Chip, brought, draw_seed
from aimc.ops.fused import fused_attention
from aimc.ops.heads import Heads
from aimc.ops.scaling import Scaling

__all__ = ["Details", "attend", "choose_backend", "gain_cell_attention"]

_log = logging.getLogger(__name__)

MOST_KEPT = 2**22
"""Pairs of query and key for which `auto` lets the eager operator keep its matrices from the forward to the backward
pass, some 100 MB a layer; the blocked operator computes again, which costs half as much again where it is not
compiled."""
MOST_KEPT_OF_COMPILED = 2**17
"""The same where it is: only a call's own cost is in favour of the eager operator, some milliseconds."""


def gain_cell_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hardware: Hardware,
    *,
    scaling: Scaling | None = None,
    key_padding: Tensor | None = None,
    chip: Chip | None = None,
    generator: torch.Generator | None = None,
    draws: Tensor | None = None,
    details: bool = False,
) -> Tensor | tuple[Tensor, Details]:
    """Attention of two gain-cell arrays per head, all positions at once, equal to the token-by-token ring buffer.

    Token s is in slot `s mod W`, sub-tile `slot // R`; query t sees keys `t−W < s <= t`. A sub-tile takes part from the
    token that first writes to it; before that it is not read and adds neither offset nor noise. Padding tokens keep
    their slot (the machine has written something there) but get no pulse. The equations are in docs/physics.md.

    Args:
        query: `[B, H, T, D]`, through its scaler, as pulse fractions (clipped to the input DAC's range).
        key: `[B, H_kv, T, D]`, through its scaler, in volt (clipped to the storage DAC's range). H is a multiple of
            H_kv; query head h reads K/V head `h // (H / H_kv)`.
        value: as `key`.
        hardware: cells, converters, arrays, leakage and noise; its `backend` chooses the implementation, all of which
            agree.
        scaling: the scalers of query, key and value, if they are still to be applied (fused with the converters); then
            the three are given as the model has them.
        key_padding: bool `[B, T]`, True where a token is padding; None: none is.
        chip: which chip and layer, needed for mismatch, column errors and spread of retention; its layer also keys the
            noise.
        generator: source of the one seed of this call's write and read noise; None: torch's global one. Untouched
            without noise.
        draws: whose noise it is, in place of the `generator`'s next: int64 `[2]`, the seed and the number of the first
            sequence, see :func:`aimc.ops.effects.noise.draws_of`. None: the generator's, sequences numbered from zero.
        details: also return :class:`Details`; computed by the eager operator, whatever `hardware.backend` says.

    Returns:
        `[B, H, T, D]` in the dtype of `query`: the digital sum of the sub-tiles in units of `array.saturation_av`,
        before the output scaler; zero at padded positions. Computed in float32 (float64 for float64 queries), whatever
        autocast says; the Triton kernels multiply in the dtype of `query`, and sum in float32.

    Raises:
        TypeError, ValueError: see :func:`aimc.ops.checks.check_attention` and, of a backend that is named,
            :func:`choose_backend`.
        aimc.hardware.ConfigError: `leakage.token_time_s` is None, which only a model can fill in.
    """
    check_attention(query, key, value, hardware, key_padding, chip, scaling)
    if draws is not None and draws.shape != (2,):
        raise ValueError(
            f"draws has shape {tuple(draws.shape)}: it is a seed and the number of the first sequence, see"
            " aimc.ops.effects.noise.draws_of"
        )
    seed, first = _noise_of(hardware, generator, draws, query.device)
    heads = Heads(query, key, hardware, chip, seed, first_sequence=first)
    call = Call(query, key, value, scaling or Scaling(None, None, None), key_padding, heads)
    if not details:
        return attend(call)
    out, reads = _eager(call)
    return out, details_of(reads, out, call.heads.full_scale_qk(call.scaling))


def _noise_of(
    hardware: Hardware, generator: torch.Generator | None, draws: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Seed and number of the first sequence, int64 without dimensions."""
    first = torch.zeros((), dtype=torch.int64, device=device)
    if not hardware.noise.is_fresh():
        return first, first
    if draws is None:
        return draw_seed(generator, device), first
    given = brought(draws, device)
    return given[0], given[1]


def attend(call: Call) -> Tensor:
    """The operator on arguments that are checked, with the seed of its noise in `call.heads`."""
    backend = choose_backend(call.query, call.heads.hardware)
    if not call.query.numel() and backend != "triton":  # no text, or no token: nothing, of which all gradients are zero
        return call.query + 0.0 * sum(x.sum() for x in (call.key, call.value, *call.scaling.trained))
    return _eager(call)[0] if backend == "eager" else fused_attention(call, engine=backend)


def _eager(call: Call) -> tuple[Tensor, list[TileRead]]:
    with torch.autocast(call.query.device.type, enabled=False):
        differentiated = call.differentiated
        if differentiated is call or not torch.is_grad_enabled():
            out, reads = eager_attention(call)
        else:
            with torch.no_grad():
                out, reads = eager_attention(call)
            clean, _ = eager_attention(differentiated)
            out = out + (clean - clean.detach())  # its value, and the gradient of the clean one
    return out.to(call.query.dtype), reads


def choose_backend(query: Tensor, hardware: Hardware) -> str:
    """`eager`, `blocked` or `triton` for this call.

    `auto` takes the Triton kernels on a GPU where they can do the sizes and effects at hand, and the blocked operator
    everywhere else, but for short texts on a CPU whose queries have gradients, without a softmax; it logs each choice
    with its reason once. Comparators with hysteresis, and retention that is spread and too short for
    :mod:`aimc.ops.blocked.interpolation`, are eager in all cases.

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
        if query.requires_grad and torch.is_grad_enabled() and not hardware.has_softmax and _is_short(query, hardware):
            backend, reason = "eager", "for short texts with gradients on a CPU it is the fastest"
    else:
        obstacle = _triton_obstacle(query, hardware)
        backend, reason = ("blocked", obstacle) if obstacle else ("triton", f"fused kernels for {query.device.type}")
    if not torch.compiler.is_compiling():
        _say(backend, reason)
    return backend


def _is_short(query: Tensor, hardware: Hardware) -> bool:
    n_batch, n_heads, n_tokens, _ = query.shape
    most, dtype = MOST_KEPT, torch.promote_types(query.dtype, torch.float32)
    if not torch.compiler.is_compiling() and kernels_of(hardware, dtype, query.device) is not None:
        most = MOST_KEPT_OF_COMPILED
    return n_batch * n_heads * n_tokens**2 <= most


def _only_eager(hardware: Hardware) -> str | None:
    """What of the hardware the fused backends do not have."""
    if hardware.activation == "pruned_softmax" and hardware.pruning.remembers:
        return f"comparators that remember (pruning.hysteresis={hardware.pruning.hysteresis:g})"
    if hardware.leaks_apart and nodes_needed(hardware) is None:
        return (
            f"cells that each fade at a rate of their own (noise.tau_spread={hardware.noise.tau_spread:g}) as far"
            f" within the tokens of a sub-tile (leakage.tau_s, array.rows={hardware.array.rows})"
        )
    return None


def _triton_obstacle(query: Tensor, hardware: Hardware) -> str | None:
    """Why the Triton kernels cannot compute this; None: they can."""
    from aimc.ops.triton.check import check_triton

    return check_triton(tuple(query.shape), query.dtype, query.device, hardware)


@functools.cache
def _say(backend: str, reason: str) -> None:
    _log.info("gain-cell attention: backend 'auto' uses '%s' (%s)", backend, reason)
