"""A whole token in one compiled call, in float32 on a CPU, where there is one for what the hardware has: all but write
and read noise, a softmax, protection, cells that leak apart, and converters whose levels are not even, or of what is
stored outside of the range. These go operation by operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from aimc.hardware import Converter, Hardware
from aimc.ops import compiled
from aimc.ops.call import Call
from aimc.ops.effects.converters import even_levels
from aimc.ops.effects.noise import ArrayId
from aimc.ops.effects.protection import has_memory
from aimc.ops.heads import Heads
from aimc.ops.ring import n_tiles_reached
from aimc.ops.scaling import Affine

if TYPE_CHECKING:
    from aimc.ops.decode.arrays import KVArrays


def fits(hardware: Hardware) -> bool:
    """Whether the compiled call computes what this hardware does."""
    converters = [hardware.input_dac, hardware.storage_dac, hardware.readout]
    converters += [hardware.normaliser.counter] if hardware.normaliser.is_on else []
    return (
        hardware.activation == "hard_sigmoid"
        and all(even_levels(converter) is not None for converter in converters)
        and hardware.storage_dac.coding == "unsigned"  # as codes are counted
        and not (hardware.noise.is_fresh() or hardware.leaks_apart or has_memory(hardware))
    )


def read_token(call: Call, arrays: KVArrays) -> Tensor | None:
    """Write the one token of a call, and read what it gets, `[B, H, 1, D]`; None: nothing was done, because the
    compiled call cannot do it or is not there."""
    heads, key_padding = call.heads, call.key_padding
    out = call.query.new_empty(heads.n_batch, heads.n_heads, 1, heads.head_size, dtype=heads.dtype)
    kernels = compiled.kernels_for(out) if arrays.fits_whole and arrays.like.dtype == heads.dtype else None
    if kernels is None:
        return None
    numbers = (x.detach().to(heads.dtype).reshape(-1, heads.head_size).contiguous().numpy() for x in call[:3])
    given = *numbers, _scalers(kernels, call), _circuits(kernels, arrays)
    slot = arrays.open_slot(key_padding)  # behind what may fail
    kernels.read_token(slot, *given, _held(kernels, heads, arrays), out.view(-1, heads.head_size).numpy())
    return out if key_padding is None else out.masked_fill_(key_padding[:, None, :, None], 0.0)


def _scalers(kernels: Any, call: Call) -> Any:
    heads, scaling = call.heads, call.scaling

    def of_heads(x: Tensor | None, unit: float, n_heads: int) -> np.ndarray:
        """A copy: numpy may not see a parameter's own memory, see `compiled/conversion.py`."""
        if x is None:
            return np.full(n_heads, unit, np.float32)
        return x.detach().to(heads.dtype, copy=True).numpy()

    def affine(x: Affine | None, n_heads: int) -> tuple[np.ndarray, np.ndarray]:
        scale, offset = (None, None) if x is None else x
        return of_heads(scale, 1.0, n_heads), of_heads(offset, 0.0, n_heads)

    array, n_heads = heads.hardware.array, heads.n_heads
    return kernels.Scalers(
        query=affine(scaling.query, n_heads),
        key=affine(scaling.key, heads.n_kv_heads),
        value=affine(scaling.value, heads.n_kv_heads),
        full_scale_qk=of_heads(scaling.full_scale_qk, 1.0, n_heads) * np.float32(array.saturation_qk),
        full_scale_av=of_heads(scaling.full_scale_av, 1.0, n_heads) * np.float32(array.saturation_av),
        full_scale_of_sum=of_heads(scaling.full_scale_of_sum, 1.0, n_heads)
        * np.float32(heads.hardware.normaliser.full_scale),
        thresholds=of_heads(scaling.pulse_threshold, 0.0, n_heads),
    )


def _held(kernels: Any, heads: Heads, arrays: KVArrays) -> Any:
    hardware = heads.hardware
    n_slots = n_tiles_reached(arrays.n_tokens, hardware.array) * hardware.array.rows
    ages = np.maximum(arrays.now - 1 - arrays.written_at.numpy()[:n_slots], 0.0)
    errors: list[Tensor | None] = [None] * 10
    if hardware.noise.is_frozen_in_chip():
        errors[:8] = (
            *heads.cell_errors(ArrayId.QK),
            *heads.cell_errors(ArrayId.AV),
            *arrays.columns_qk,
            *arrays.columns_av,
        )
        if hardware.normaliser.is_on:
            tiles = torch.arange(hardware.array.n_tiles, device=heads.device)
            errors[8:] = heads.column_tables_of_sum(tiles)
    keys, values = (arrays.cells[array].state.flatten(0, 1).numpy() for array in ArrayId)
    tables = (None if x is None else x.contiguous().numpy() for x in errors)
    return kernels.Held(keys, values, arrays.padding.numpy(), ages.astype(np.float32), *tables)


CIRCUITS: WeakKeyDictionary[KVArrays, Any] = WeakKeyDictionary()
"""What arrays have given to the compiled call already."""


def _circuits(kernels: Any, arrays: KVArrays) -> Any:
    if arrays not in CIRCUITS:
        CIRCUITS[arrays] = _circuits_of(kernels, arrays)
    return CIRCUITS[arrays]


def _circuits_of(kernels: Any, arrays: KVArrays) -> Any:
    hardware, cells, normaliser = arrays.hardware, arrays.cells[ArrayId.QK], arrays.hardware.normaliser

    def counter(converter: Converter) -> Any:
        levels = even_levels(converter)
        assert levels is not None  # `fits`
        return kernels.counter_of(*levels)

    return kernels.Circuits(
        input_dac=counter(hardware.input_dac),
        storage_dac=counter(hardware.storage_dac),
        is_code=cells.levels is not None,
        line=tuple(np.float32(x) for x in cells.line or (1.0, 0.0)),
        target_v=np.float32(arrays.cell.offset_v),
        decay_per_token=np.float32(hardware.leakage.decay_per_token),
        terms=tuple(np.float32(c) for c in arrays.cell.coefficients),
        readout=counter(hardware.readout),
        n_rows=hardware.array.rows,
        saturation_av=np.float32(hardware.array.saturation_av),
        is_normalised=normaliser.is_on,
        sum_counter=counter(normaliser.counter if normaliser.is_on else Converter()),
        least_share=np.float32(normaliser.least_share),
        least=np.float32(normaliser.least),
    )
