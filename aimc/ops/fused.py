"""The fused backends as one differentiable operator: inputs as the model has them in, digital sums out, nothing else
kept.

Saved for the backward pass are the inputs alone; pulses, stored voltages, charges and noise are computed again. As a
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


def fused_attention(call: Call, *, engine: str) -> Tensor:
    """:func:`aimc.ops.attention.gain_cell_attention` by one of the fused engines, `blocked` or `triton`; arguments are
    checked there."""
    affines = [None if affine is None else torch.stack(tuple(affine)) for affine in call.scaling.affines]  # [2, H] each
    chip, hardware, seed = (
        call.heads.chip,
        pack(call.heads.hardware),
        torch.as_tensor(call.heads.seed, device=call.query.device),
    )
    out = _forward(*call[:3], *affines, call.key_padding, seed, chip.seed, chip.layer, hardware, engine)  # [B, T, H, D]
    return out.transpose(1, 2)


@torch.library.custom_op("aimc::gain_cell_attention", mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_affine: Tensor | None,
    key_affine: Tensor | None,
    value_affine: Tensor | None,
    key_padding: Tensor | None,
    seed: Tensor,
    chip_seed: int,
    layer: int,
    hardware: list[float],
    engine: str,
) -> Tensor:
    call = _call(
        query, key, value, (query_affine, key_affine, value_affine), key_padding, seed, chip_seed, layer, hardware
    )
    with torch.autocast(query.device.type, enabled=False):
        return _engine(engine).forward(call)


@_forward.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    n_batch, n_heads, n_tokens, head_size = query.shape
    return query.new_empty(n_batch, n_tokens, n_heads, head_size)


@torch.library.custom_op("aimc::gain_cell_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_affine: Tensor | None,
    key_affine: Tensor | None,
    value_affine: Tensor | None,
    key_padding: Tensor | None,
    seed: Tensor,
    chip_seed: int,
    layer: int,
    hardware: list[float],
    engine: str,
) -> list[Tensor]:
    call = _call(
        query, key, value, (query_affine, key_affine, value_affine), key_padding, seed, chip_seed, layer, hardware
    )
    with torch.autocast(query.device.type, enabled=False):
        d_query, d_key, d_value, *of_scalers = _engine(engine).backward(call, grad.transpose(1, 2))
    # Laid out by token, [B, T, H, D] in memory, as the projections in front give and take them.
    return [*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (d_query, d_key, d_value)), *of_scalers]


@_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> list[Tensor]:
    inputs = [
        torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        for x in (query, key, value)
    ]
    dtype = torch.promote_types(query.dtype, torch.float32)
    return inputs + [x.new_empty(2, x.shape[1], dtype=dtype) for x in (query, key, value)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.chip_seed, ctx.layer, ctx.hardware, ctx.engine = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    grads = _backward(grad, *tensors, ctx.chip_seed, ctx.layer, ctx.hardware, ctx.engine)
    affines = [
        None if affine is None else g.to(affine.dtype) for g, affine in zip(grads[3:], tensors[3:6], strict=True)
    ]
    return *grads[:3], *affines, None, None, None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    affines: tuple[Tensor | None, ...],
    key_padding: Tensor | None,
    seed: Tensor,
    chip_seed: int,
    layer: int,
    hardware: list[float],
) -> Call:
    query_affine, key_affine, value_affine = (None if affine is None else Affine(*affine) for affine in affines)
    scaling = Scaling(query_affine, key_affine, value_affine)
    heads = Heads(query, key, unpack(hardware), Chip(seed=chip_seed, layer=layer), seed)
    return Call(query, key, value, scaling, key_padding, heads)


def _engine(name: str) -> Any:
    if name == "triton":
        from aimc.ops.triton import engine as triton_engine  # triton is imported only where it is used

        return triton_engine
    return blocked
