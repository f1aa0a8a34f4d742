"""Gain-cell attention on a GPU: checks, grids and launches of the Triton kernels.

One program per query block walks the sub-tiles that its queries see, so nothing of size T×T exists and no block outside
the window is touched. The backward pass computes everything again from pulses and stored voltages, noise included (it
is counter-based), so that nothing but the inputs has to be kept.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aimc.hardware import Converter, Hardware
from aimc.ops.effects.cell import leaking_cell
from aimc.ops.effects.converters import inl_curvature

if TYPE_CHECKING:
    from aimc.ops.triton.cell import Machine, Spec

ROWS = (16, 32, 64, 128)
"""Sub-tile sizes that are a block: a power of two, and no smaller than the smallest tensor-core product."""
MIN_HEAD_SIZE, MAX_HEAD_SIZE = 16, 128
MAX_QUERY_ROWS = 32
"""Query rows per program. With 64 the compiler spills many kilobytes per thread (float32 operands, read noise) or runs
out of shared memory (float32 on anything smaller than an H100)."""
MAX_TOKENS = 2**31 // MAX_HEAD_SIZE
"""Positions inside one head are counted in 32 bits."""


@dataclass(slots=True, kw_only=True)
class CellErrors:
    """Frozen errors of one layer's arrays, float32, already multiplied by their standard deviation; None: none.

    Cells and columns are indexed by slot = position mod window.
    """

    key_gain: Tensor | None = None
    """Relative gain error of the key cells, `[H_kv, W, D]`."""
    key_offset_v: Tensor | None = None
    """Shift of the key cells' rest in volt, `[H_kv, W, D]`."""
    value_gain: Tensor | None = None
    """Relative gain error of the value cells, `[H_kv, W, D]`."""
    value_offset_v: Tensor | None = None
    """Shift of the value cells' rest in volt, `[H_kv, W, D]`."""
    column_gain_qk: Tensor | None = None
    """Relative gain error of the charge-to-pulse circuits, `[H_kv, W]`."""
    column_offset_qk: Tensor | None = None
    """Offset of the charge-to-pulse circuits as a fraction of `array.saturation_qk`, `[H_kv, W]`."""
    column_gain_av: Tensor | None = None
    """Relative gain error of the counters, `[H_kv, W // R, D]`."""
    column_offset_av: Tensor | None = None
    """Offset of the counters as a fraction of `array.saturation_av`, `[H_kv, W // R, D]`."""


def check_triton(
    query_shape: tuple[int, ...] | torch.Size, dtype: torch.dtype, device: torch.device, hardware: Hardware
) -> str | None:
    """Whether the Triton kernels can run this: None, or one sentence naming what they cannot do and what to do instead.

    Args:
        query_shape: `[B, H, T, D]`.
        dtype: dtype of the query.
        device: where it lives.
        hardware: the machine.
    """
    head_size, rows, instead = query_shape[-1], hardware.array.rows, "use backend='blocked' or 'eager'"
    lacking = _lacking(hardware)
    if lacking:
        return f"the triton backend does not have {lacking}; {instead}"
    if importlib.util.find_spec("triton") is None:
        return f"the triton backend needs the package triton, which is not installed; install it, or {instead}"
    if device.type != "cuda" and not _interpreted():
        return (
            f"the triton backend needs a CUDA device, but query is on {device}; move the tensors to a GPU, or {instead}"
        )
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return (
            f"the triton backend computes in float32, which {dtype} does not fit in; convert the query with .float(),"
            f" or {instead}"
        )
    if not MIN_HEAD_SIZE <= head_size <= MAX_HEAD_SIZE:
        return (
            f"the triton backend holds head sizes from {MIN_HEAD_SIZE} to {MAX_HEAD_SIZE} in registers, not"
            f" {head_size}; {instead}"
        )
    if rows not in ROWS:
        sizes = ", ".join(map(str, ROWS))
        return (
            f"the triton backend walks the keys in sub-tiles of array.rows in {sizes}, not {rows}; change array.rows,"
            f" or {instead}"
        )
    if hardware.noise.tau_spread and hardware.leakage.decay_per_token:
        return (
            "the triton backend lets all cells leak alike, and noise.tau_spread gives each a rate of its own;"
            f" {instead}, or set it to 0"
        )
    if query_shape[-2] > MAX_TOKENS:
        return (
            f"the triton backend counts positions in 32 bits, and {query_shape[-2]} tokens are too many; split the"
            f" sequence, or {instead}"
        )
    return None


def _lacking(hardware: Hardware) -> str | None:
    """What of the hardware the kernels leave out; None: nothing."""
    if hardware.has_softmax:
        return f"activation={hardware.activation!r}"
    if hardware.normaliser.is_on:
        return "the normaliser column (hardware.normaliser)"
    if hardware.threshold:
        return "a threshold per head (hardware.threshold)"
    if hardware.protection.is_on:
        return "protected tokens (hardware.protection)"
    if hardware.array.full_scales != "global":
        return f"array.full_scales={hardware.array.full_scales!r}"
    for name in ("input_dac", "storage_dac", "readout"):
        spacing = getattr(hardware, name).spacing
        if spacing != "uniform":
            return f"{name}.spacing={spacing!r}"
    return None


def triton_forward(
    pulses: Tensor,
    key_u: Tensor,
    value_u: Tensor,
    hardware: Hardware,
    errors: CellErrors,
    *,
    key_padding: Tensor | None,
    seed: Tensor,
    layer: int,
    operand_dtype: torch.dtype,
) -> Tensor:
    """Digital sum of the sub-tiles' counts, equal to the eager operator.

    Args:
        pulses: quantised pulse widths, float32 `[B, H, T, D]`, fractions of the longest pulse in [0, 1].
        key_u: voltage written, about the leak target, in volt, write noise included, float32 `[B, H_kv, T, D]`; H is a
            multiple of H_kv.
        value_u: as `key_u`.
        hardware: cell, leakage, array, readout and the standard deviations of the read noise.
        errors: the chip's frozen errors.
        key_padding: bool `[B, T]`, True where a token is padding; None: none is.
        seed: int64 without dimensions, key of the read noise.
        layer: index of the layer, key of the read noise.
        operand_dtype: float32, bfloat16 or float16: dtype of the factors of the matrix products. Everything else is
            float32.

    Returns:
        float32 `[B, H, T, D]` in units of `array.saturation_av`, before the output scaler; zero at padded positions.
    """
    from aimc.ops.triton.kernels import forward_kernel

    pulses, machine, spec = _prepare(pulses, key_u, value_u, hardware, errors, key_padding, seed, layer, operand_dtype)
    batch, heads, tokens, _ = pulses.shape
    out = torch.empty_like(pulses)
    if out.numel():
        with _on_device_of(pulses):
            forward_kernel[(-(-tokens // spec.block), heads, batch)](pulses, machine, out, spec, **_launch(spec))
    return out


def triton_backward(
    grad_out: Tensor,
    pulses: Tensor,
    key_u: Tensor,
    value_u: Tensor,
    hardware: Hardware,
    errors: CellErrors,
    *,
    key_padding: Tensor | None,
    seed: Tensor,
    layer: int,
    operand_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by pulses, stored keys and stored values, from the gradient of :func:`triton_forward`'s result.

    Straight-through in the counter inside its clip range. With `cell.gradient == "linear"` the stored voltages receive
    the gradient of `surrogate_slope·r·u` alone, the pulses the exact one.

    Args:
        grad_out: float32 `[B, H, T, D]`; what it holds at padded positions does not count.
        pulses, key_u, value_u, hardware, errors, key_padding, seed, layer, operand_dtype: as in :func:`triton_forward`.

    Returns:
        float32 `[B, H, T, D]`, `[B, H_kv, T, D]`, `[B, H_kv, T, D]`: per unit pulse, per volt, per volt.
    """
    from aimc.ops.triton.kernels import pulse_gradient_kernel, stored_gradient_kernel

    pulses, machine, spec = _prepare(pulses, key_u, value_u, hardware, errors, key_padding, seed, layer, operand_dtype)
    batch, heads, tokens, _ = pulses.shape
    d_pulses, d_key, d_value = (
        torch.empty_like(pulses),
        torch.empty_like(machine.key_cells.u),
        torch.empty_like(machine.value_cells.u),
    )
    if not d_pulses.numel():
        return d_pulses, d_key, d_value
    grad_out, scale = _scaled(grad_out.contiguous(), operand_dtype)
    with _on_device_of(pulses):
        launch = _launch(spec)
        pulse_gradient_kernel[(-(-tokens // spec.block), heads, batch)](
            pulses, grad_out, machine, d_pulses, spec, **launch
        )
        grid = (-(-tokens // spec.rows), key_u.shape[1], batch)
        stored_gradient_kernel[grid](pulses, grad_out, machine, d_key, d_value, spec, **launch)
    return (d_pulses, d_key, d_value) if scale is None else (d_pulses * scale, d_key * scale, d_value * scale)


def _prepare(
    pulses: Tensor,
    key_u: Tensor,
    value_u: Tensor,
    hardware: Hardware,
    errors: CellErrors,
    key_padding: Tensor | None,
    seed: Tensor,
    layer: int,
    operand_dtype: torch.dtype,
) -> tuple[Tensor, Machine, Spec]:
    """What the kernels are given: contiguous tensors and what they are compiled for."""
    from aimc.ops.triton.cell import Cells, Columns, Levels, Machine

    reason = check_triton(pulses.shape, pulses.dtype, pulses.device, hardware)
    if reason is not None:
        raise ValueError(reason)
    machine = Machine(
        key_cells=Cells(key_u.contiguous(), _dense(errors.key_gain), _dense(errors.key_offset_v)),
        value_cells=Cells(value_u.contiguous(), _dense(errors.value_gain), _dense(errors.value_offset_v)),
        columns_qk=Columns(_dense(errors.column_gain_qk), _dense(errors.column_offset_qk)),
        columns_av=Columns(_dense(errors.column_gain_av), _dense(errors.column_offset_av)),
        padding=None if key_padding is None else key_padding.contiguous().view(torch.uint8),
        seed=seed,
        layer=layer,
        n_tokens=pulses.shape[2],
        n_heads=pulses.shape[1],
        n_kv_heads=key_u.shape[1],
        levels=Levels(
            decay_per_token=hardware.leakage.decay_per_token,
            saturation_qk=hardware.array.saturation_qk,
            saturation_av=hardware.array.saturation_av,
            read_noise_qk=hardware.noise.read_qk,
            read_noise_av=hardware.noise.read_av,
            surrogate_slope=hardware.cell.surrogate_slope,
        ),
    )
    shifted = errors.key_offset_v is not None or errors.value_offset_v is not None
    return pulses.contiguous(), machine, _spec(hardware, pulses.shape[3], shifted, operand_dtype)


def _spec(hardware: Hardware, head_size: int, shifted: bool, operand_dtype: torch.dtype) -> Spec:
    """What the kernels are compiled for; `shifted`: some cell's rest is off, which mixes the powers of its voltage."""
    import triton.language as tl

    from aimc.ops.triton.cell import Spec

    c, converter = leaking_cell(hardware).coefficients, hardware.readout
    powers = range(len(c))
    steps, zero, clip_levels = _codes(converter)
    dtype = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[operand_dtype]
    return Spec(
        rows=hardware.array.rows,
        tiles=hardware.array.n_tiles,
        block=min(hardware.array.rows, MAX_QUERY_ROWS),
        head_size=head_size,
        padded_size=max(16, 1 << (head_size - 1).bit_length()),
        taylor=tuple(tuple(c[i] * comb(i, j) if i >= j else 0.0 for i in powers) for j in powers),
        present=tuple(any(c[j:]) if shifted else c[j] != 0 for j in powers),
        leaky=hardware.leakage.decay_per_token > 0,
        linear_gradient=hardware.cell.gradient == "linear",
        steps=steps,
        zero=zero,
        v_min=converter.v_min,
        v_max=converter.v_max,
        inl_curvature=inl_curvature(converter),
        clip_levels=clip_levels,
        read_noise_qk=hardware.noise.read_qk > 0,
        read_noise_av=hardware.noise.read_av > 0,
        operand_dtype=dtype,
        dot_dtype=tl.float32 if dtype == tl.bfloat16 and _interpreted() else dtype,
        precision="ieee",  # tensor cores would cut float32 to 10 bits
    )


def _codes(converter: Converter) -> tuple[float, float, bool]:
    """Codes per unit (0: no levels), value of code 0, and whether levels are clipped:
    :func:`aimc.ops.effects.converters.quantize` in numbers."""
    n = converter.n_levels
    if n is None:
        return 0.0, 0.0, False
    if converter.coding == "sign_magnitude":
        return (n // 2 - 1) / converter.v_max, 0.0, True
    steps = (n - 1) / (converter.v_max - converter.v_min)
    return (steps, 0.0, False) if converter.coding == "rounded" else (steps, converter.v_min, True)


def _scaled(grad_out: Tensor, operand_dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Gradients of a mean loss are far below what float16 can hold, so they are brought to 1 and the results back."""
    if operand_dtype != torch.float16:
        return grad_out, None
    scale = grad_out.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    return grad_out / scale, scale


def _launch(spec: Spec) -> dict[str, int]:
    """More warps where a program holds larger blocks in registers; no pipelining, which multiplies the shared
    memory."""
    return {"num_warps": 8 if max(spec.rows, spec.padded_size) > 32 else 4, "num_stages": 1}


def _dense(table: Tensor | None) -> Tensor | None:
    return None if table is None else table.contiguous()


def _on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU: what Triton itself reads when the kernels are imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
