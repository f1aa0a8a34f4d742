"""Gain-cell attention on a GPU: grids and launches of the Triton kernels.

One program per query block walks the sub-tiles that its queries see, so nothing of size T×T exists and no block outside
the window is touched. The backward pass computes the first array again from pulses and stored operands, noise included
(it is counter-based); of the second array a bit per counter is kept, whether it was inside its range.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from aimc.ops.triton.check import interpreted
from aimc.ops.triton.inputs import Gradients, Inputs, Table
from aimc.ops.triton.operands import counter, numbers, padded, softmax_of, span, stack
from aimc.ops.triton.residuals import Residuals, n_bytes
from aimc.ops.triton.spread import half_length

if TYPE_CHECKING:
    from aimc.ops.triton.spec import Kept, Machine, OfSoftmax, Spec


class Launch(NamedTuple):
    """How a kernel is launched."""

    block: int
    """Query rows of a program, at most; a program never holds more than a sub-tile."""
    warps: int
    stages: int
    """Depth of the pipeline of loads: each holds the operands of both arrays in shared memory."""


def _launches(forward: Launch, pulse_gradient: Launch, stored_gradient: Launch) -> dict[str, Launch]:
    return {
        "statistics": forward,
        "forward": forward,
        "pulse_gradient": pulse_gradient,
        "stored_gradient": stored_gradient,
        "memory_gradient": stored_gradient,
    }


HALF_LAUNCHES = _launches(Launch(64, 4, 2), Launch(64, 4, 1), Launch(64, 4, 1))
"""With two-byte operands; the fastest of five to six tried on an H200, as are the next two."""
SOFTMAX_LAUNCHES = _launches(Launch(64, 4, 2), Launch(64, 4, 1), Launch(32, 8, 1))
"""The same with a softmax."""
NOISY_LAUNCHES = _launches(Launch(32, 4, 2), Launch(64, 4, 1), Launch(32, 8, 1))
"""The same with read noise, whose generator needs registers."""
FULL_LAUNCHES = _launches(Launch(32, 8, 1), Launch(32, 8, 1), Launch(16, 8, 1))
"""With float32 operands."""
LEAST_TOTAL = torch.finfo(torch.float32).tiny
"""Of all shares of a query, by which is divided."""
PIPELINE_BYTES = 150_000
"""Shared memory of a program with which loads are pipelined."""


def triton_forward(inputs: Inputs, out_dtype: torch.dtype, *, keep: bool = False) -> tuple[Tensor, Residuals]:
    """Digital sum of the sub-tiles' counts, equal to the eager operator, `[B, T, H, D]` in units of
    `array.saturation_av`, before the output scaler; zero at padded positions. And what its gradient needs, with
    `keep`."""
    from aimc.ops.triton.kernels import forward_kernel
    from aimc.ops.triton.statistics import statistics_kernel

    pulses = inputs.operands.pulses
    batch, heads, tokens, size = pulses.shape
    out = torch.empty(batch, tokens, heads, size, dtype=out_dtype, device=pulses.device)
    residuals = Residuals.room(pulses, inputs.hardware, keep=keep)
    if out.numel():
        machine = _machine(inputs, residuals)
        if inputs.softmax is not None:
            spec, how = _spec(inputs, "statistics")
            statistics_kernel[(-(-tokens // spec.block), heads, batch)](pulses, machine, spec, **how)
        spec, how = _spec(inputs, "forward")
        grid = (-(-tokens // spec.block), heads, batch)
        forward_kernel[grid](
            inputs.operands.pulses, machine, out, residuals.divisor, _kept(residuals), keep, spec, **how
        )
    return out, residuals


def triton_backward(grad: Tensor, inputs: Inputs, out: Tensor, residuals: Residuals) -> Gradients:
    """Gradients of what the kernels were given from that of :func:`triton_forward`'s result, `[B, T, H, D]`, given with
    what it has kept.

    Straight-through in the counters inside their clip range. What `grad` holds at padded positions does not count.
    """
    from aimc.ops.triton.kernels import pulse_gradient_kernel, stored_gradient_kernel
    from aimc.ops.triton.memory import memory_gradient_kernel

    (pulses, keys, _), memory = inputs.operands, inputs.memory
    batch, heads, tokens, _ = pulses.shape
    grad, scale = _scaled(grad, pulses.dtype)
    grad, d_sum = _undivided(grad, out, residuals, inputs)
    grad = grad.to(pulses.dtype).contiguous()

    def room(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=pulses.device)

    d_pulses = room(*pulses.shape)
    d_keys, d_values = (room(span(of.graded), *keys.shape[1:]) for of in (inputs.key_powers, inputs.value_powers))
    trains = inputs.threshold is not None or (inputs.softmax is not None and inputs.softmax.trained)
    by_query = room(*pulses.shape[:3]) if trains else None
    of_memory = None if memory is None else (room(*pulses.shape), room(*keys.shape[1:]), room(*keys.shape[1:]))
    if pulses.numel():
        spec, how = _spec(inputs, "pulse_gradient")
        machine = _machine(inputs, residuals)
        args = (pulses, grad, d_sum, machine, _kept(residuals))
        d_memory_pulses = None if of_memory is None else of_memory[0]
        grid = (-(-tokens // spec.block), heads, batch)
        pulse_gradient_kernel[grid](*args, d_pulses, d_memory_pulses, by_query, spec, **how)
        grid = (-(-tokens // spec.rows), keys.shape[2], batch)
        spec, how = _spec(inputs, "stored_gradient")
        stored_gradient_kernel[grid](*args, d_keys, d_values, spec, **how)
        if of_memory is not None:
            spec, how = _spec(inputs, "memory_gradient")
            memory_gradient_kernel[grid](grad, d_sum, machine, *of_memory[1:], spec, **how)
    found = Gradients(d_pulses, d_keys, d_values, by_query, of_memory)
    return found if scale is None else _times(found, scale)


def _undivided(grad: Tensor, out: Tensor, residuals: Residuals, inputs: Inputs) -> tuple[Tensor, Table]:
    """From the gradient of a quotient `[B, T, H, D]` to that of what was divided, and, times A_sat, to that of the sums
    that divided it `[B, H, T]`; None: nothing was divided."""
    sums = residuals.divisor
    if sums is None:
        return grad, None
    least = LEAST_TOTAL if inputs.softmax is not None else inputs.hardware.normaliser.least
    grad, divisor = grad.float(), sums.clamp(min=least)
    of_sums = (grad * out).sum(dim=-1).transpose(1, 2) / -divisor
    of_sums = inputs.hardware.array.saturation_av * of_sums.masked_fill(sums < least, 0.0).contiguous()
    if residuals.longest is not None:
        divisor = divisor / residuals.longest
    return grad / divisor.transpose(1, 2)[..., None], of_sums


def _times(grads: Gradients, scale: Tensor) -> Gradients:
    return Gradients(
        grads.pulses * scale,
        grads.keys * scale,
        grads.values * scale,
        None if grads.trained is None else grads.trained * scale,
        None if grads.memory is None else tuple(x * scale for x in grads.memory),  # type: ignore[arg-type]
    )


def _behind_last(sink: Tensor) -> Tensor:
    """One behind the last of the sinks `[B, T]`, int32 `[B]`."""
    behind = torch.arange(1, sink.shape[1] + 1, dtype=torch.int32, device=sink.device)
    return (sink * behind).amax(dim=1)


def _kept(residuals: Residuals) -> Kept | None:
    from aimc.ops.triton.spec import Kept

    return None if residuals.counts is None else Kept(residuals.counts, residuals.sums)


def _of_softmax(inputs: Inputs, residuals: Residuals) -> OfSoftmax:
    from aimc.ops.triton.spec import OfSoftmax

    given = inputs.softmax
    if given is None:
        return OfSoftmax(*(None,) * len(OfSoftmax._fields))
    return OfSoftmax(
        *given[:4],
        shares=None if given.retained is None else numbers(given.retained.shares, inputs.operands.pulses.device),
        resting=residuals.resting,
        largest=residuals.largest,
        total=residuals.divisor,
        longest=residuals.longest,
    )


def _machine(inputs: Inputs, residuals: Residuals) -> Machine:
    from aimc.ops.triton.spec import Columns, Levels, Machine, Memory, OfHeads

    hardware, padding, protected = inputs.hardware, inputs.key_padding, inputs.memory
    pulses, keys, values = inputs.operands
    memory = Memory(None, None, None, None, None, 0)
    if protected is not None:
        sink = protected.sink
        memory = Memory(
            *protected[:3],
            None if sink is None else sink.contiguous().view(torch.uint8),
            None if sink is None else _behind_last(sink),
            hardware.protection.n_recent,
        )
    of_qk, of_av, of_sum = (
        Columns(*(None if x is None else x.contiguous() for x in pair))
        for pair in (inputs.columns_qk, inputs.columns_av, inputs.columns_of_sum)
    )
    return Machine(
        key_operands=keys,
        value_operands=values,
        columns_qk=of_qk,
        columns_av=of_av,
        columns_of_sum=of_sum,
        of_heads=OfHeads(inputs.full_scale_av, inputs.threshold),
        of_softmax=_of_softmax(inputs, residuals),
        memory=memory,
        padding=None if padding is None else padding.contiguous().view(torch.uint8),
        draws=inputs.draws,
        layer=inputs.layer,
        n_batch=pulses.shape[0],
        n_tokens=pulses.shape[2],
        n_heads=pulses.shape[1],
        n_kv_heads=keys.shape[2],
        n_kept=n_bytes(pulses.shape[2], hardware),
        levels=Levels(
            decay_per_token=hardware.leakage.decay_per_token,
            half_length=half_length(hardware, pulses.shape[2]),
            saturation_av=hardware.array.saturation_av,
            read_noise_qk=hardware.noise.read_qk,
            read_noise_av=hardware.noise.read_av,
            full_scale_of_sum=hardware.normaliser.full_scale,
            least_sum=hardware.normaliser.least if inputs.softmax is None else LEAST_TOTAL,
        ),
    )


def _spec(inputs: Inputs, kernel: str) -> tuple[Spec, dict[str, int]]:
    """What a kernel is compiled for, and how it is launched."""
    import triton.language as tl

    hardware, pulses = inputs.hardware, inputs.operands.pulses
    head_size, dtype = pulses.shape[3], pulses.dtype
    of_tl = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]
    is_noisy = bool(hardware.noise.read_qk or hardware.noise.read_av)
    softmax = None
    if inputs.softmax is not None:
        softmax = softmax_of(hardware, inputs.softmax.retained, inputs.softmax.rest)
    how = _launches_for(dtype, is_noisy=is_noisy, has_softmax=softmax is not None)[kernel]
    keys, values, normaliser = inputs.key_powers, inputs.value_powers, hardware.normaliser
    spec = _same_spec(
        rows=hardware.array.rows,
        tiles=hardware.array.n_tiles,
        block=min(hardware.array.rows, how.block),
        head_size=head_size,
        padded_size=padded(head_size),
        spreads=hardware.leaks_apart,
        highest=max(0, *keys.present, *values.present, *keys.graded, *values.graded),
        keys=stack(keys.present),
        values=stack(values.present),
        key_constant=keys.constant,
        value_constant=values.constant,
        key_gradients=stack(keys.graded),
        value_gradients=stack(values.graded),
        readout=counter(hardware.readout),
        normaliser=counter(normaliser.counter) if normaliser.is_on else None,
        softmax=softmax,
        protects=inputs.memory is not None,
        read_noise_qk=hardware.noise.read_qk > 0,
        read_noise_av=hardware.noise.read_av > 0,
        operand_dtype=of_tl,
        dot_dtype=tl.float32 if dtype == torch.bfloat16 and interpreted() else of_tl,
        reloads=dtype == torch.float32,
        precision="tf32x3",  # three products of tensor cores, whose float32 has 10 bits, come close to its 23
    )
    return spec, {"num_warps": how.warps, "num_stages": how.stages if _has_room(pulses.device) else 1}


def _launches_for(dtype: torch.dtype, *, is_noisy: bool, has_softmax: bool) -> dict[str, Launch]:
    if dtype == torch.float32:
        return FULL_LAUNCHES
    return NOISY_LAUNCHES if is_noisy else SOFTMAX_LAUNCHES if has_softmax else HALF_LAUNCHES


@functools.lru_cache(maxsize=256)
def _same_spec(**of: Any) -> Spec:
    """One object for equal ones: by it Triton looks a kernel up."""
    from aimc.ops.triton.spec import Spec

    return Spec(**of)


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
