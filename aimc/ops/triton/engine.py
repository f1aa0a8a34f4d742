"""The Triton kernels as an engine of :mod:`aimc.ops.fused`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from aimc.ops.call import Call
from aimc.ops.effects.noise import ArrayId
from aimc.ops.triton.check import check_triton
from aimc.ops.triton.launch import Inputs, triton_backward, triton_forward
from aimc.ops.triton.operands import Cells, Given, numbers, operands_of, pulse_gradient, pulses_of, stored_gradient


def forward(call: Call) -> Tensor:
    """Digital sums `[B, T, H, D]` in the dtype of the query."""
    with _on_device_of(call.query):
        return triton_forward(_Prepared.of(call).inputs, call.query.dtype)


def backward(call: Call, grad: Tensor) -> list[Tensor]:
    """Gradients of query, key and value in their dtypes, then of their scalers `[2, H]`, of a score gain (zero: there
    is none) and of a threshold `[H]`, from that of the sums `[B, H, T, D]`."""
    with _on_device_of(call.query):
        query, full_scale, keys, values, inputs = _Prepared.of(call)
        grads = triton_backward(grad, inputs)
        both = [
            pulse_gradient(grads.pulses, query, full_scale),
            stored_gradient(grads.keys, keys),
            stored_gradient(grads.values, values),
        ]
    absent = full_scale.new_zeros(call.heads.n_heads)
    of_threshold = absent.clone() if grads.threshold is None else grads.threshold
    return [*(of_input for of_input, _ in both), *(of_scaler for _, of_scaler in both), absent, of_threshold]


class _Prepared(NamedTuple):
    """A call as the kernels take it."""

    query: Given
    full_scale_qk: Tensor
    """`[H]`."""
    keys: Cells
    values: Cells
    inputs: Inputs

    @classmethod
    def of(cls, call: Call) -> _Prepared:
        """Raises ValueError for what :func:`aimc.ops.triton.check.check_triton` names."""
        heads, scaling, dtype, hardware = call.heads, call.scaling, call.query.dtype, call.heads.hardware
        reason = check_triton(call.query.shape, dtype, heads.device, hardware)
        if reason is not None:
            raise ValueError(reason)
        full_scale_qk, full_scale_av = (
            x.flatten().contiguous() if isinstance(x, Tensor) else numbers((x,) * heads.n_heads, heads.device)
            for x in (heads.full_scale_qk(scaling), heads.full_scale_av(scaling))
        )
        draws = heads.draws
        query = Given(call.query, scaling.query, hardware.input_dac)
        keys = Cells(ArrayId.QK, Given(call.key, scaling.key, hardware.storage_dac), heads, draws)
        values = Cells(ArrayId.AV, Given(call.value, scaling.value, hardware.storage_dac), heads, draws)
        columns: list[tuple[Tensor | None, Tensor | None]] = [(None, None)] * 3
        if hardware.noise.column_gain or hardware.noise.column_offset:
            slots = torch.arange(hardware.array.window, device=heads.device)
            tiles = torch.arange(hardware.array.n_tiles, device=heads.device)
            of_second = heads.column_tables_av(tiles), heads.column_tables_of_sum(tiles)
            columns = [heads.column_tables_qk(slots), *of_second]
        threshold = scaling.pulse_threshold
        inputs = Inputs(
            pulses=pulses_of(query, full_scale_qk, dtype),
            keys=operands_of(keys, dtype),
            values=operands_of(values, dtype),
            key_powers=keys.powers,
            value_powers=values.powers,
            columns_qk=columns[0],
            columns_av=columns[1],
            columns_of_sum=columns[2],
            full_scale_av=full_scale_av,
            threshold=None if threshold is None else threshold.detach().float().contiguous(),
            key_padding=call.key_padding,
            draws=draws,
            layer=heads.layer,
            hardware=hardware,
        )
        return cls(query, full_scale_qk, keys, values, inputs)


def _on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
