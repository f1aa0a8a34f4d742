"""Gain-cell attention on a GPU: grids and launches of the Triton kernels.

One program per query block walks the sub-tiles that its queries see, so nothing of size T×T exists and no block outside
the window is touched. The backward pass computes everything again from pulses and stored operands, noise included (it
is counter-based), so that nothing but the inputs has to be kept.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from aimc.hardware import Hardware
from aimc.ops.triton.check import interpreted
from aimc.ops.triton.operands import Powers, counter, padded, span, stack

if TYPE_CHECKING:
    from aimc.ops.triton.spec import Kept, Machine, Spec

Table = Tensor | None


class Launch(NamedTuple):
    """How a kernel is launched."""

    block: int
    """Query rows of a program, at most; a program never holds more than a sub-tile."""
    warps: int
    stages: int
    """Depth of the pipeline of loads: each holds the operands of both arrays in shared memory."""


HALF_LAUNCHES = {"forward": Launch(64, 4, 2), "pulse_gradient": Launch(64, 4, 1), "stored_gradient": Launch(64, 8, 1)}
"""With two-byte operands; tried on an H200."""
NOISY_LAUNCHES = {"forward": Launch(64, 4, 1), "pulse_gradient": Launch(64, 4, 1), "stored_gradient": Launch(32, 8, 1)}
"""The same with read noise, whose generator needs registers."""
FULL_LAUNCHES = {"forward": Launch(32, 8, 1), "pulse_gradient": Launch(32, 8, 1), "stored_gradient": Launch(16, 8, 1)}
"""With float32 operands."""
PIPELINE_BYTES = 150_000
"""Shared memory of a program with which loads are pipelined."""


class Inputs(NamedTuple):
    """What the kernels compute with, all on one device."""

    pulses: Tensor
    """Pulse widths over S_sat, `[B, H, T, D]` in the dtype of the products."""
    keys: Tensor
    """Operands of the first array, `[P, B, H_kv, T, D]`, likewise (:func:`aimc.ops.triton.operands.operands_of`)."""
    values: Tensor
    key_powers: Powers
    value_powers: Powers
    columns_qk: tuple[Table, Table]
    """Gain and offset of the charge-to-pulse circuits, float32 `[H_kv, W]`; None: none."""
    columns_av: tuple[Table, Table]
    """Of the counters, `[H_kv, J, D]`."""
    columns_of_sum: tuple[Table, Table]
    """Of the normaliser columns' counters, `[H_kv, J, 1]`."""
    full_scale_av: Tensor
    """Signal units that fill a counter, float32 `[H]`."""
    threshold: Table
    """θ of the charge-to-pulse circuits, float32 `[H]`; None: none."""
    key_padding: Table
    """Bool `[B, T]`, True where a token is padding; None: none is."""
    draws: Tensor
    """int64 `[2]`: seed of the read noise, and number of the first sequence."""
    layer: int
    hardware: Hardware


class Gradients(NamedTuple):
    """Of what the kernels were given, float32."""

    pulses: Tensor
    """`[B, H, T, D]`."""
    keys: Tensor
    """Of the graded operands, `[P, B, H_kv, T, D]`."""
    values: Tensor
    threshold: Table
    """`[H]`; None: there is none."""


def triton_forward(inputs: Inputs, out_dtype: torch.dtype) -> Tensor:
    """Digital sum of the sub-tiles' counts, equal to the eager operator, `[B, T, H, D]` in units of
    `array.saturation_av`, before the output scaler; zero at padded positions."""
    return _forward(inputs, out_dtype, keep=False)[0]


def triton_backward(grad: Tensor, inputs: Inputs) -> Gradients:
    """Gradients of pulses, operands and threshold from that of :func:`triton_forward`'s result, `[B, H, T, D]`.

    Straight-through in the counters inside their clip range. What `grad` holds at padded positions does not count.
    """
    from aimc.ops.triton.kernels import pulse_gradient_kernel, stored_gradient_kernel

    pulses, keys, normaliser = inputs.pulses, inputs.keys, inputs.hardware.normaliser
    batch, heads, tokens, size = pulses.shape
    out, sums, kept = _forward(inputs, torch.float32, keep=True)
    grad, scale = _scaled(grad.transpose(1, 2), pulses.dtype)  # [B, T, H, D]
    d_sum = None
    if sums is not None:
        divisor = sums.clamp(min=normaliser.least)
        grad = grad.float()
        of_divisor = (grad * out).sum(dim=-1).transpose(1, 2) / -divisor
        d_sum = inputs.hardware.array.saturation_av * of_divisor.masked_fill(sums < normaliser.least, 0.0).contiguous()
        grad = grad / divisor.transpose(1, 2)[..., None]
    grad = grad.to(pulses.dtype).contiguous()
    shape = keys.shape[1:]
    d_pulses = torch.empty(pulses.shape, dtype=torch.float32, device=pulses.device)
    d_keys, d_values = (
        torch.empty(span(powers.graded), *shape, dtype=torch.float32, device=pulses.device)
        for powers in (inputs.key_powers, inputs.value_powers)
    )
    by_query = None if inputs.threshold is None else torch.empty_like(d_pulses[..., 0])
    if pulses.numel():
        spec, how = _spec(inputs, "pulse_gradient")
        args = (pulses, grad, d_sum, _machine(inputs), kept)
        grid = (-(-tokens // spec.block), heads, batch)
        pulse_gradient_kernel[grid](*args, d_pulses, by_query, spec, **how)
        spec, how = _spec(inputs, "stored_gradient")
        stored_gradient_kernel[(-(-tokens // spec.rows), shape[1], batch)](*args, d_keys, d_values, spec, **how)
    of_threshold = None if by_query is None else by_query.sum(dim=(0, 2))
    if scale is not None:
        d_pulses, d_keys, d_values = d_pulses * scale, d_keys * scale, d_values * scale
        of_threshold = None if of_threshold is None else of_threshold * scale
    return Gradients(d_pulses, d_keys, d_values, of_threshold)


def _forward(inputs: Inputs, dtype: torch.dtype, *, keep: bool) -> tuple[Tensor, Table, Kept | None]:
    """The digital sum; by what it was divided `[B, H, T]`, or None; and for the gradients which counters were inside
    their range."""
    from aimc.ops.triton.kernels import forward_kernel

    batch, heads, tokens, size = inputs.pulses.shape
    device = inputs.pulses.device
    out = torch.empty(batch, tokens, heads, size, dtype=dtype, device=device)
    has_sums = inputs.hardware.normaliser.is_on
    sums = torch.empty(batch, heads, tokens, dtype=torch.float32, device=device) if has_sums else None
    kept = _kept(inputs) if keep else None
    if out.numel():
        spec, how = _spec(inputs, "forward")
        grid = (-(-tokens // spec.block), heads, batch)
        forward_kernel[grid](inputs.pulses, _machine(inputs), out, sums, kept, keep, spec, **how)
    return out, sums, kept


def _kept(inputs: Inputs) -> Kept:
    from aimc.ops.triton.spec import Kept

    batch, heads, tokens, size = inputs.pulses.shape
    shape = batch, heads, tokens, _n_kept(inputs)
    counts = torch.empty(*shape, size, dtype=torch.uint8, device=inputs.pulses.device)
    return Kept(counts, torch.empty_like(counts[..., 0]) if inputs.hardware.normaliser.is_on else None)


def _n_kept(inputs: Inputs) -> int:
    return min(inputs.hardware.array.n_tiles, -(-inputs.pulses.shape[2] // inputs.hardware.array.rows))


def _machine(inputs: Inputs) -> Machine:
    from aimc.ops.triton.spec import Columns, Levels, Machine, OfHeads

    hardware, padding = inputs.hardware, inputs.key_padding
    of_qk, of_av, of_sum = (
        Columns(*(None if x is None else x.contiguous() for x in pair))
        for pair in (inputs.columns_qk, inputs.columns_av, inputs.columns_of_sum)
    )
    return Machine(
        key_operands=inputs.keys,
        value_operands=inputs.values,
        columns_qk=of_qk,
        columns_av=of_av,
        columns_of_sum=of_sum,
        of_heads=OfHeads(inputs.full_scale_av, inputs.threshold),
        padding=None if padding is None else padding.contiguous().view(torch.uint8),
        draws=inputs.draws,
        layer=inputs.layer,
        n_batch=inputs.pulses.shape[0],
        n_tokens=inputs.pulses.shape[2],
        n_heads=inputs.pulses.shape[1],
        n_kv_heads=inputs.keys.shape[2],
        n_kept=_n_kept(inputs),
        levels=Levels(
            decay_per_token=hardware.leakage.decay_per_token,
            saturation_av=hardware.array.saturation_av,
            read_noise_qk=hardware.noise.read_qk,
            read_noise_av=hardware.noise.read_av,
            full_scale_of_sum=hardware.normaliser.full_scale,
            least_sum=hardware.normaliser.least,
        ),
    )


def _spec(inputs: Inputs, kernel: str) -> tuple[Spec, dict[str, int]]:
    """What a kernel is compiled for, and how it is launched."""
    import triton.language as tl

    from aimc.ops.triton.spec import Spec

    hardware, head_size, dtype = inputs.hardware, inputs.pulses.shape[3], inputs.pulses.dtype
    of_tl = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]
    is_noisy = bool(hardware.noise.read_qk or hardware.noise.read_av)
    launches = FULL_LAUNCHES if dtype == torch.float32 else NOISY_LAUNCHES if is_noisy else HALF_LAUNCHES
    how = launches[kernel]
    keys, values, normaliser = inputs.key_powers, inputs.value_powers, hardware.normaliser
    spec = Spec(
        rows=hardware.array.rows,
        tiles=hardware.array.n_tiles,
        block=min(hardware.array.rows, how.block),
        head_size=head_size,
        padded_size=padded(head_size),
        highest=max(0, *keys.present, *values.present, *keys.graded, *values.graded),
        keys=stack(keys.present),
        values=stack(values.present),
        key_constant=keys.constant,
        value_constant=values.constant,
        key_gradients=stack(keys.graded),
        value_gradients=stack(values.graded),
        readout=counter(hardware.readout),
        normaliser=counter(normaliser.counter) if normaliser.is_on else None,
        read_noise_qk=hardware.noise.read_qk > 0,
        read_noise_av=hardware.noise.read_av > 0,
        operand_dtype=of_tl,
        dot_dtype=tl.float32 if dtype == torch.bfloat16 and interpreted() else of_tl,
        reloads=dtype == torch.float32,
        precision="tf32x3",  # three products of tensor cores, whose float32 has 10 bits, come close to its 23
    )
    return spec, {"num_warps": how.warps, "num_stages": how.stages if _has_room(inputs.pulses.device) else 1}


@functools.cache
def _has_room(device: torch.device) -> bool:
    """Whether a program may have the shared memory that a pipeline of loads takes: on a data centre's card, not on a
    consumer's, where it has 99 KiB."""
    if device.type != "cuda":
        return True
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0) >= PIPELINE_BYTES


def _scaled(grad: Tensor, operand_dtype: torch.dtype) -> tuple[Tensor, Table]:
    """Gradients of a mean loss are far below what float16 can hold, so they are brought to 1 and the results back."""
    if operand_dtype != torch.float16:
        return grad, None
    grad = grad.float()
    scale = grad.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    return grad / scale, scale
