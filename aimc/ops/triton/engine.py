"""The Triton kernels as an engine of :mod:`aimc.ops.fused`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from aimc.ops.call import Call
from aimc.ops.conversion import scaler_gradient
from aimc.ops.effects.activation import logit_gain
from aimc.ops.effects.converters import storage_dac
from aimc.ops.effects.noise import ArrayId
from aimc.ops.effects.protection import digital_pulses, sink_tokens
from aimc.ops.heads import Heads
from aimc.ops.scaling import scaled
from aimc.ops.storage import Remembered, storage_gradient
from aimc.ops.triton.alignment import aligned
from aimc.ops.triton.inputs import Inputs, Protected, Softmax
from aimc.ops.triton.launch import triton_backward, triton_forward
from aimc.ops.triton.operands import Before, Cells, Given, gradients_of_given, numbers, operands_of, plain
from aimc.ops.triton.plan import Plan
from aimc.ops.triton.residuals import Residuals
from aimc.ops.triton.translation import NO_CONVERTER, storage_converter

Gradient = tuple[Tensor, Tensor]
"""Of an input `[B, H, T, D]`, and of its scaler `[2, H]`."""


def forward(call: Call) -> Tensor:
    """Digital sums `[B, T, H, D]` in the dtype of the query."""
    with _on_device_of(call.query):
        return triton_forward(_prepared(call)[1], call.query.dtype)[0]


def forward_keeping(call: Call) -> tuple[Tensor, list[Tensor]]:
    """:func:`forward`, and what :func:`backward` then need not compute again."""
    with _on_device_of(call.query):
        out, residuals = triton_forward(_prepared(call)[1], call.query.dtype, keep=True)
    return out, residuals.tensors


def backward(call: Call, grad: Tensor, kept: tuple[Tensor, list[Tensor]] | None = None) -> list[Tensor]:
    """Gradients of query, key and value in their dtypes, then of their scalers `[2, H]`, of the score gain and of the
    threshold `[H]`, from that of the sums `[B, H, T, D]`; `kept` is what :func:`forward_keeping` gave for the same
    call."""
    with _on_device_of(call.query):
        before, inputs = _prepared(call)
        if kept is None:
            out, residuals = triton_forward(inputs, torch.float32, keep=True)
        else:
            out, residuals = kept[0], Residuals.of(kept[1], call.heads.hardware)
        grads = triton_backward(grad.transpose(1, 2), inputs, out, residuals)
        d_pulses, memory = grads.pulses, grads.memory
        if memory is not None and not call.heads.hardware.has_softmax:
            d_pulses = d_pulses + memory[0]  # behind the same clip
        of_query, of_key, of_value = gradients_of_given(before, (d_pulses, grads.keys, grads.values))
        both = [
            of_query,
            _before_storage(call, of_key, ArrayId.QK),
            _before_storage(call, of_value, ArrayId.AV),
        ]
        if memory is not None:
            beside = _back_through_memory(call, memory, before.full_scale)
            both = [(a + c.to(a.dtype), b + d) for (a, b), (c, d) in zip(both, beside, strict=True)]
    of_heads = _of_activation(call, grads.trained, before.full_scale)
    return [*(of_input for of_input, _ in both), *(of_scaler for _, of_scaler in both), *of_heads]


def _prepared(call: Call) -> tuple[Before, Inputs]:
    """A call as the kernels take it.

    Raises:
        ValueError: for what :func:`aimc.ops.triton.check.check_triton` names.
    """
    heads, scaling, hardware = call.heads, call.scaling, call.heads.hardware
    full_scale_qk, full_scale_av, of_sum = (_of_heads(x, heads) for x in heads.full_scales(scaling))
    draws = aligned(heads.draws)
    query, stored = Given(call.query, scaling.query), [_stored(call, array) for array in ArrayId]
    plan = Plan.of(call, [query.x, *(given.x for given in stored)])
    tables = heads.kernel_tables()
    keys, values = (
        Cells.of(array, given, heads, tables, plan, draws) for array, given in zip(ArrayId, stored, strict=True)
    )
    before = Before(plan, query, full_scale_qk, keys, values)
    inputs = Inputs(
        plan=plan,
        operands=operands_of(before),
        columns=tables.columns,
        full_scale_av=full_scale_av,
        full_scale_of_sum=of_sum if hardware.normaliser.is_on else None,
        threshold=None if hardware.has_softmax else _optional(scaling.pulse_threshold),
        softmax=_softmax(call) if hardware.has_softmax else None,
        memory=_protected(call, full_scale_qk) if hardware.protection.is_on else None,
        key_padding=call.key_padding,
        draws=draws,
        layer=heads.layer,
    )
    return before, inputs


def _softmax(call: Call) -> Softmax:
    heads, scaling = call.heads, call.scaling
    return Softmax(
        gain=_of_heads(logit_gain(heads, scaling._replace(query_norm=None)), heads),
        query_norm=_optional(scaling.query_norm),
        key_norm=_optional(scaling.key_norm),
        value_norm=_optional(scaling.value_norm),
        trained=scaling.score is not None,
        retained=heads.retained,
    )


def _protected(call: Call, full_scale: Tensor) -> Protected:
    heads, dtype = call.heads, call.query.dtype
    protection, padding = heads.hardware.protection, call.key_padding
    pulses = digital_pulses(scaled(call.query, call.scaling.query), heads.hardware) / full_scale[:, None, None]
    keys, values = (Remembered(call, array).charge().to(dtype).contiguous() for array in ArrayId)
    sink = None
    if protection.n_sink:
        if padding is None:
            padding = torch.zeros(heads.n_batch, heads.n_tokens, dtype=torch.bool, device=heads.device)
        sink = sink_tokens(padding, 0, protection)
    return Protected(pulses.to(dtype).contiguous(), keys, values, sink)


def _stored(call: Call, array: ArrayId) -> Given:
    """Keys or values in front of their converter; behind it where its levels lie elsewhere than on a line, which is
    left to PyTorch."""
    hardware, is_key = call.heads.hardware, array == ArrayId.QK
    raw, affine = (call.key, call.scaling.key) if is_key else (call.value, call.scaling.value)
    if storage_converter(hardware) is not NO_CONVERTER:
        return Given(raw, affine)
    return Given(storage_dac(scaled(raw, affine), hardware), None)


def _before_storage(call: Call, grads: Gradient, array: ArrayId) -> Gradient:
    """The gradients of what the kernels were given and of its scaler, where PyTorch has converted before them."""
    if storage_converter(call.heads.hardware) is not NO_CONVERTER:
        return grads
    of_given, _ = grads
    raw, affine = (call.key, call.scaling.key) if array == ArrayId.QK else (call.value, call.scaling.value)
    of_raw, of_scaler = storage_gradient(of_given, raw, affine, call.heads.hardware)
    return of_raw.to(raw.dtype), of_scaler


def _back_through_memory(call: Call, grads: tuple[Tensor, Tensor, Tensor], full_scale: Tensor) -> list[Gradient]:
    """Of query, key and value by way of the digital memory; with a hard sigmoid the query's is elsewhere."""
    of_pulses, *of_stored = grads
    of_query = torch.zeros_like(of_pulses), of_pulses.new_zeros(2, of_pulses.shape[1])
    if call.heads.hardware.has_softmax:
        of_query = scaler_gradient(of_pulses / full_scale[:, None, None], call.query, call.scaling.query)
    return [of_query, *(Remembered(call, array).gradient(x) for array, x in zip(ArrayId, of_stored, strict=True))]


def _of_activation(call: Call, by_query: Tensor | None, full_scale: Tensor) -> list[Tensor]:
    """Gradients of the score gain and of the threshold, `[H]`, from what there is by query, `[B, H, T]`."""
    absent = full_scale.new_zeros(call.heads.n_heads)
    if by_query is None:
        return [absent, absent.clone()]
    if not call.heads.hardware.has_softmax:
        return [absent, by_query.sum(dim=(0, 2))]
    norm = call.scaling.query_norm
    of_gain = (by_query if norm is None else by_query * norm.to(by_query.dtype)).sum(dim=(0, 2))
    return [of_gain * full_scale, absent]


def _of_heads(x: Tensor | float, heads: Heads) -> Tensor:
    """A number of each query head, `[H]`."""
    return plain(x.flatten()) if isinstance(x, Tensor) else numbers((x,) * heads.n_heads, heads.device)


def _optional(x: Tensor | None) -> Tensor | None:
    return None if x is None else plain(x)


def _on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
