"""The Triton kernels as an engine of :mod:`aimc.ops.fused`: what is written to the arrays is prepared here, in
PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aimc.ops.call import Call
from aimc.ops.eager import stored_v
from aimc.ops.effects.converters import dac
from aimc.ops.effects.noise import ArrayId
from aimc.ops.heads import Heads
from aimc.ops.scaling import converter_gradient, scaled
from aimc.ops.triton.launch import CellErrors, triton_backward, triton_forward


def forward(call: Call) -> Tensor:
    """Digital sums `[B, T, H, D]` in the dtype of the query."""
    out = triton_forward(*_prepared(call), **_options(call))
    return out.to(call.query.dtype).transpose(1, 2).contiguous()


def backward(call: Call, grad: Tensor) -> list[Tensor]:
    """Gradients of query, key and value in their dtypes, then of their scalers `[2, H]`, of a score gain and of a
    threshold `[H]` (zero: there is none), from that of the sums `[B, H, T, D]`."""
    hardware = call.heads.hardware
    grads = triton_backward(grad.to(call.heads.dtype).contiguous(), *_prepared(call), **_options(call))
    inputs = (call.query, call.key, call.value)
    dacs = (hardware.input_dac, hardware.storage_dac, hardware.storage_dac)
    both = [converter_gradient(*args) for args in zip(grads, inputs, call.scaling.affines, dacs, strict=True)]
    of_inputs = [of_input.to(x.dtype) for (of_input, _), x in zip(both, inputs, strict=True)]
    absent = [both[0][1].new_zeros(call.heads.n_heads) for _ in range(2)]
    return [*of_inputs, *(of_scaler for _, of_scaler in both), *absent]


def _prepared(call: Call) -> tuple[Tensor, Tensor, Tensor, Any, CellErrors]:
    """Pulses `[B, H, T, D]`, voltages `[B, H_kv, T, D]` about the leak target of both arrays, hardware and chip."""
    heads = call.heads
    tokens = torch.arange(heads.n_tokens, device=heads.device)
    pulses = dac(scaled(call.query, call.scaling.query), heads.hardware.input_dac)
    key_v = stored_v(heads, scaled(call.key, call.scaling.key), ArrayId.QK, tokens)
    value_v = stored_v(heads, scaled(call.value, call.scaling.value), ArrayId.AV, tokens)
    key_u, value_u = key_v - heads.cell.offset_v, value_v - heads.cell.offset_v
    return pulses.contiguous(), key_u.contiguous(), value_u.contiguous(), heads.hardware, _errors(heads)


def _options(call: Call) -> dict[str, Any]:
    heads = call.heads
    dtype = call.query.dtype
    return {"key_padding": call.key_padding, "seed": heads.seed, "layer": heads.layer, "operand_dtype": dtype}


def _errors(heads: Heads) -> CellErrors:
    """The chip's tables, per slot and per K/V head."""
    sizes = heads.hardware.array
    slots = torch.arange(sizes.window, device=heads.device)
    key_gain, key_offset_v = heads.mismatch(ArrayId.QK, slots)
    value_gain, value_offset_v = heads.mismatch(ArrayId.AV, slots)
    column_gain_qk, column_offset_qk = heads.column_tables_qk(slots)
    column_gain_av, column_offset_av = heads.column_tables_av(torch.arange(sizes.n_tiles, device=heads.device))
    return CellErrors(
        key_gain=key_gain,
        key_offset_v=key_offset_v,
        value_gain=value_gain,
        value_offset_v=value_offset_v,
        column_gain_qk=column_gain_qk,
        column_offset_qk=column_offset_qk,
        column_gain_av=column_gain_av,
        column_offset_av=column_offset_av,
    )
