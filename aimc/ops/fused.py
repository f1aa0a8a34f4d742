"""The fused backends as one differentiable operator: inputs as the model has them in, digital sums out, next to nothing
else kept.

Saved for the backward pass are the inputs, by the Triton kernels a bit per counter and what divides, and by the blocked
operator the charges of small calls; pulses, stored voltages, noise and other charges are computed again. As a
registered operator it is opaque to `torch.compile`, which therefore neither unfolds nor reorders it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aimc.ops.blocked import engine as blocked
from aimc.ops.call import Call
from aimc.ops.effects.noise import Chip
from aimc.ops.heads import Heads
from aimc.ops.packing import pack, unpack
from aimc.ops.scaling import Affine, Scaling
from aimc.ops.triton.residuals import Residuals

_OF_HEADS = (
    *("score", "pulse_threshold", "memory_key", "memory_value", "full_scale_qk", "full_scale_av", "threshold"),
    *("query_norm", "key_norm", "value_norm"),
)
"""What of :class:`aimc.ops.scaling.Scaling` there is beside the scalers."""
_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? query_affine, Tensor? key_affine, Tensor? value_affine, "
    + "".join(f"Tensor? {name}, " for name in _OF_HEADS)
    + "Tensor? key_padding, Tensor draws, int chip_seed, int layer, float[] hardware, str engine, bool keep"
)
_N_TRAINED = 2
"""How many of them, from the first, have a gradient."""
_N_TENSORS = 3 + 3 + len(_OF_HEADS) + 2


def fused_attention(call: Call, *, engine: str) -> Tensor:
    """:func:`aimc.ops.attention.gain_cell_attention` by one of the fused engines, `blocked` or `triton`; arguments are
    checked there."""
    of_heads = [getattr(call.scaling, name) for name in _OF_HEADS]
    scaling = [torch.stack(tuple(x)) if isinstance(x, Affine) else x for x in (*call.scaling.affines, *of_heads)]
    draws, chip, hardware = call.heads.draws, call.heads.chip, pack(call.heads.hardware)
    inputs = (*call[:3], *scaling)
    keep = _wants_gradient(inputs) and call.differentiated is call and (engine == "triton" or blocked.keeps(call))
    out, _ = _forward(*inputs, call.key_padding, draws, chip.seed, chip.layer, hardware, engine, keep)  # [B, T, H, D]
    return out.transpose(1, 2)


def _wants_gradient(inputs: tuple[Tensor | None, ...]) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


@torch.library.custom_op("aimc::gain_cell_attention", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor[])")
def _forward(*inputs: Any) -> tuple[Tensor, list[Tensor]]:
    engine, keep = _engine(inputs[-2]), inputs[-1]
    with torch.autocast(inputs[0].device.type, enabled=False):
        call = _call(*inputs)
        return engine.forward_keeping(call) if keep else (engine.forward(call), [])


@_forward.register_fake
def _(query: Tensor, *rest: Any) -> tuple[Tensor, list[Tensor]]:
    n_batch, n_heads, n_tokens, head_size = query.shape
    hardware, _, keep = rest[-3:]
    kept = Residuals.room(query, unpack(hardware), keep=True).tensors if keep else []
    return query.new_empty(n_batch, n_tokens, n_heads, head_size), kept


@torch.library.custom_op(
    "aimc::gain_cell_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor? out, Tensor[] kept, {_INPUTS}) -> Tensor[]",
)
def _backward(grad: Tensor, out: Tensor | None, kept: list[Tensor], *inputs: Any) -> list[Tensor]:
    engine = _engine(inputs[-2])
    with torch.autocast(grad.device.type, enabled=False):
        call = _call(*inputs).differentiated
        given = (call, grad.transpose(1, 2)) if out is None else (call, grad.transpose(1, 2), (out, kept))
        d_query, d_key, d_value, *of_scalers = engine.backward(*given)
    # Laid out by token, [B, T, H, D] in memory, as the projections in front give and take them.
    return [*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (d_query, d_key, d_value)), *of_scalers]


@_backward.register_fake
def _(grad: Tensor, out: Tensor | None, kept: list[Tensor], query: Tensor, key: Tensor, value: Tensor, *_: Any):  # type: ignore[no-untyped-def]
    inputs = [
        torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        for x in (query, key, value)
    ]
    dtype = torch.promote_types(query.dtype, torch.float32)
    of_scalers = [x.new_empty(2, x.shape[1], dtype=dtype) for x in (query, key, value)]
    return [*inputs, *of_scalers, *(query.new_empty(query.shape[1], dtype=dtype) for _ in range(_N_TRAINED))]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    out, kept = output
    ctx.save_for_backward(*inputs[:_N_TENSORS], *((out, *kept) if kept else ()))
    ctx.plain = inputs[_N_TENSORS:]


def _autograd(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    out, *kept = tensors[_N_TENSORS:] or (None,)
    tensors = tensors[:_N_TENSORS]
    grads = _backward(grad, out, kept, *tensors, *ctx.plain)
    trained = tensors[3 : 6 + _N_TRAINED]
    of_scaling = [None if x is None else g.to(x.dtype) for g, x in zip(grads[3:], trained, strict=True)]
    without = [None] * (_N_TENSORS - 6 - _N_TRAINED + len(ctx.plain))
    return (*grads[:3], *of_scaling, *without)


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _call(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Call:
    query_affine, key_affine, value_affine = (x if x is None else Affine(*x) for x in rest[:3])
    of_heads = dict(zip(_OF_HEADS, rest[3 : 3 + len(_OF_HEADS)], strict=True))
    for name in ("memory_key", "memory_value"):
        of_heads[name] = None if of_heads[name] is None else Affine(*of_heads[name])
    key_padding, draws, chip_seed, layer, hardware, *_ = rest[3 + len(_OF_HEADS) :]
    chip = Chip(seed=chip_seed, layer=layer)
    heads = Heads(query, key, unpack(hardware), chip, draws[0], first_sequence=draws[1])
    return Call(query, key, value, Scaling(query_affine, key_affine, value_affine, **of_heads), key_padding, heads)


def _engine(name: str) -> Any:
    if name == "triton":
        from aimc.ops.triton import engine as triton_engine  # triton is imported only where it is used

        return triton_engine
    return blocked
