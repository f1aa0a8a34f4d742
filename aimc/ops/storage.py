"""What the fused backends share about keys and values in front of cells and of the digital memory, and the way back by
hand."""

from __future__ import annotations

from torch import Tensor

from aimc.hardware import Hardware
from aimc.ops.call import Call
from aimc.ops.conversion import converted, converter_gradient, scaler_gradient
from aimc.ops.effects.cell import powers_with_gradient, stored_gradient
from aimc.ops.effects.converters import storage_dac
from aimc.ops.effects.levels import line_of, storage_slope
from aimc.ops.effects.noise import ArrayId
from aimc.ops.effects.protection import ideal_charge, undivided
from aimc.ops.heads import Heads
from aimc.ops.scaling import Affine, scaled


def stored_u(heads: Heads, raw: Tensor, affine: Affine | None, array: ArrayId, tokens: Tensor) -> Tensor:
    """Voltages about rest that are written for keys or values `[B, H_kv, S, D]` of the tokens `[S]`, without a
    gradient."""
    converter, offset_v = heads.hardware.storage_dac, heads.cell.offset_v
    if converter.spacing == "equal_charge":
        volts = storage_dac(scaled(raw, affine), heads.hardware)
    elif heads.hardware.noise.write_v:
        volts = converted(raw, affine, converter)
    else:
        return converted(raw, affine, converter, less=offset_v)
    return heads.add_write_noise_(volts, array, tokens).sub_(offset_v)


def storage_gradient(
    of_voltage: Tensor, raw: Tensor, affine: Affine | None, hardware: Hardware
) -> tuple[Tensor, Tensor]:
    """From the gradient of stored voltages `[B, H_kv, S, D]` to those of what the model gave and of its scaler, through
    the storage DAC; see :func:`aimc.ops.conversion.converter_gradient`."""
    if hardware.storage_dac.spacing == "equal_charge":
        level = storage_dac(scaled(raw, affine), hardware, straight=True)
        slope = storage_slope(level, hardware.storage_dac, hardware.cell)
        of_voltage = of_voltage if slope is None else of_voltage * slope
    return converter_gradient(of_voltage, raw, affine, hardware.storage_dac)


class Remembered:
    """Tokens of a call as the digital memory holds them (:func:`aimc.ops.effects.protection.remember`).

    Args:
        call: all tokens.
        array: which of the two arrays the memory stands beside.
        tokens: positions `[M]`; None: all.
    """

    def __init__(self, call: Call, array: ArrayId, tokens: Tensor | None = None) -> None:
        self.hardware, self.dtype, scaling = call.heads.hardware, call.heads.dtype, call.scaling
        is_key = array == ArrayId.QK
        self.affine: Affine | None = scaling.key if is_key else scaling.value
        self.line: Affine | None = scaling.memory_key if is_key else scaling.memory_value
        raw, norm = (call.key, scaling.key_norm) if is_key else (call.value, scaling.value_norm)
        self.raw = raw if tokens is None else raw.index_select(2, tokens)
        """As the model has them, `[B, H_kv, M, D]`."""
        norm = norm if norm is None or tokens is None else norm[..., tokens]
        self.norm = None if norm is None else norm.to(self.dtype)
        """By what they were divided, `[B, H_kv, M]`; None: by one."""

    def charge(self) -> Tensor:
        """Per unit pulse in signal units, `[B, H_kv, M, D]`."""
        charge = ideal_charge(scaled(self.raw, self.affine), self.hardware, self.line)
        return undivided(charge, self.norm, self.hardware)

    def gradient(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """From the gradient of :meth:`charge` back through the line or the cell and its converter, and the scaler:
        `[B, H_kv, M, D]`, and `[2, H_kv]`."""
        hardware, cell = self.hardware, self.hardware.cell
        if hardware.has_softmax:
            slope = line_of(hardware)[1] if self.line is None else self.line.scale.to(self.dtype)[:, None, None]
            grad = grad if self.norm is None else grad * self.norm[..., None]
            return scaler_gradient(grad * slope, self.raw, self.affine)
        u = storage_dac(scaled(self.raw, self.affine), hardware, straight=True) - cell.offset_v
        of_u = stored_gradient(dict.fromkeys(powers_with_gradient(cell), grad), u, cell)
        return storage_gradient(of_u, self.raw, self.affine, hardware)
