"""Gain-cell attention on a GPU: grids and launches of the Triton kernels.

One program per query block walks the sub-tiles that its queries see, so nothing of size T×T exists and no block outside
the window is touched. The backward pass computes the first array again from pulses and stored operands, noise included
(it is counter-based), once where what it finds of each pair of query and key has room until its end, or else twice; of
the second array a bit per counter is kept, whether it was inside its range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aimc.ops.triton.alignment import aligned
from aimc.ops.triton.inputs import Gradients, Inputs, Table
from aimc.ops.triton.operands import numbers
from aimc.ops.triton.plan import Plan
from aimc.ops.triton.residuals import Residuals
from aimc.ops.triton.spec import Columns, Kept, Machine, Memory, OfHeads, OfSoftmax, Pairs
from aimc.ops.triton.translation import span

NO_SOFTMAX = OfSoftmax(*(None,) * len(OfSoftmax._fields))
NO_MEMORY = Memory(None, None, None, None, None, 0)
NO_COLUMNS = Columns(None, None)


def triton_forward(inputs: Inputs, out_dtype: torch.dtype, *, keep: bool = False) -> tuple[Tensor, Residuals]:
    """Digital sum of the sub-tiles' counts, equal to the eager operator, `[B, T, H, D]` in units of
    `array.saturation_av`, before the output scaler; zero at padded positions. And what its gradient needs, with
    `keep`."""
    from aimc.ops.triton.kernels import forward_kernel
    from aimc.ops.triton.statistics import statistics_kernel

    plan, pulses = inputs.plan, inputs.operands.pulses
    batch, heads, tokens, size = pulses.shape
    out = torch.empty(batch, tokens, heads, size, dtype=out_dtype, device=pulses.device)
    residuals = Residuals.room(pulses, plan.hardware, keep=keep)
    if out.numel():
        machine = _machine(inputs, residuals)
        if inputs.softmax is not None:
            spec, how = plan.spec("statistics")
            plan.launch(statistics_kernel, (-(-tokens // spec.block), heads, batch), pulses, machine, spec, **how)
        spec, how = plan.spec("forward")
        grid = (-(-tokens // spec.block), heads, batch)
        args = pulses, machine, out, residuals.divisor, _kept(residuals), keep, spec
        plan.launch(forward_kernel, grid, *args, variant=(keep, out_dtype), **how)
    return out, residuals


def triton_backward(grad: Tensor, inputs: Inputs, out: Tensor, residuals: Residuals) -> Gradients:
    """Gradients of what the kernels were given from that of :func:`triton_forward`'s result, `[B, T, H, D]`, given with
    what it has kept.

    Straight-through in the counters inside their clip range. What `grad` holds at padded positions does not count.
    """
    from aimc.ops.triton.kernels import pulse_gradient_kernel, stored_gradient_kernel
    from aimc.ops.triton.memory import memory_gradient_kernel
    from aimc.ops.triton.pairs import pair_gradient_kernel

    (pulses, keys, _), memory, plan = inputs.operands, inputs.memory, inputs.plan
    batch, heads, tokens, _ = pulses.shape
    grad, scale = _scaled(grad, pulses.dtype)
    grad, d_sum = _undivided(grad, out, residuals, inputs)
    grad = aligned(grad.to(pulses.dtype).contiguous())

    def room(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=pulses.device)

    d_pulses = room(*pulses.shape)
    d_keys, d_values = (room(span(of.powers.graded), *keys.shape[1:]) for of in plan.cells.values())
    trains = inputs.threshold is not None or (inputs.softmax is not None and inputs.softmax.trained)
    by_query = room(*pulses.shape[:3]) if trains else None
    of_memory = None if memory is None else (room(*pulses.shape), room(*keys.shape[1:]), room(*keys.shape[1:]))
    if pulses.numel():
        spec, how = plan.spec("pulse_gradient")
        machine = _machine(inputs, residuals)
        kept, pairs = _kept(residuals), _pairs(pulses, plan)
        d_memory_pulses = None if of_memory is None else of_memory[0]
        grid = (-(-tokens // spec.block), heads, batch)
        args = (pulses, grad, d_sum, machine, kept)
        plan.launch(pulse_gradient_kernel, grid, *args, pairs, d_pulses, d_memory_pulses, by_query, spec, **how)
        n_blocks = -(-tokens // spec.rows)
        grid = (n_blocks, keys.shape[2], batch)
        if pairs is None:
            spec, how = plan.spec("stored_gradient")
            plan.launch(stored_gradient_kernel, grid, *args, d_keys, d_values, spec, **how)
        else:
            spec, how = plan.spec("pair_gradient")
            given, grid = (pulses, grad, machine, kept, pairs), (2 * n_blocks, *grid[1:])
            plan.launch(pair_gradient_kernel, grid, *given, d_keys, d_values, spec, **how)
        if of_memory is not None:
            spec, how = plan.spec("memory_gradient")
            plan.launch(memory_gradient_kernel, grid, grad, d_sum, machine, *of_memory[1:], spec, **how)
    found = Gradients(d_pulses, d_keys, d_values, by_query, of_memory)
    return found if scale is None else _times(found, scale)


def _undivided(grad: Tensor, out: Tensor, residuals: Residuals, inputs: Inputs) -> tuple[Tensor, Table]:
    """From the gradient of a quotient `[B, T, H, D]` to that of what was divided, and, times A_sat, to that of the sums
    that divided it `[B, H, T]`; None: nothing was divided."""
    sums = residuals.divisor
    if sums is None:
        return grad, None
    least: Tensor | float = inputs.plan.levels.least_sum
    if inputs.full_scale_of_sum is not None:
        least = (least * inputs.full_scale_of_sum[:, None]).clamp(min=inputs.plan.levels.least_pulses)
    grad, divisor = grad.float(), sums.clamp(min=least)
    of_sums = (grad * out).sum(dim=-1).transpose(1, 2) / -divisor
    of_sums = inputs.plan.levels.saturation_av * of_sums.masked_fill(sums < least, 0.0).contiguous()
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


def _pairs(pulses: Tensor, plan: Plan) -> Pairs | None:
    """Room for what the kernels of the backward pass leave to each other; None: it would be too much."""
    if not plan.keeps_pairs:
        return None
    return Pairs(*(torch.empty(plan.pair_shape, dtype=pulses.dtype, device=pulses.device) for _ in Pairs._fields))


def _kept(residuals: Residuals) -> Kept | None:
    return None if residuals.counts is None else Kept(residuals.counts, residuals.sums)


def _of_softmax(inputs: Inputs, residuals: Residuals) -> OfSoftmax:
    given = inputs.softmax
    if given is None:
        return NO_SOFTMAX
    return OfSoftmax(
        *given[:4],
        shares=None if given.retained is None else numbers(given.retained.shares, inputs.plan.device),
        resting=residuals.resting,
        largest=residuals.largest,
        total=residuals.divisor,
        longest=residuals.longest,
    )


def _memory(inputs: Inputs) -> Memory:
    protected = inputs.memory
    if protected is None:
        return NO_MEMORY
    sink = protected.sink
    return Memory(
        *protected[:3],
        None if sink is None else _flags(sink),
        None if sink is None else _behind_last(sink),
        inputs.plan.hardware.protection.n_recent,
    )


def _columns(gain: Table, offset: Table) -> Columns:
    if gain is None and offset is None:
        return NO_COLUMNS
    return Columns(*(None if x is None else aligned(x.contiguous()) for x in (gain, offset)))


def _flags(x: Tensor) -> Tensor:
    return aligned(x.contiguous().view(torch.uint8))


def _machine(inputs: Inputs, residuals: Residuals) -> Machine:
    plan, padding = inputs.plan, inputs.key_padding
    _, keys, values = inputs.operands
    return Machine(
        key_operands=keys,
        value_operands=values,
        columns_qk=_columns(*inputs.columns[0]),
        columns_av=_columns(*inputs.columns[1]),
        columns_of_sum=_columns(*inputs.columns[2]),
        of_heads=OfHeads(inputs.full_scale_av, inputs.full_scale_of_sum, inputs.threshold),
        of_softmax=_of_softmax(inputs, residuals),
        memory=_memory(inputs),
        padding=None if padding is None else _flags(padding),
        draws=inputs.draws,
        layer=inputs.layer,
        n_batch=plan.n_batch,
        n_tokens=plan.n_tokens,
        n_heads=plan.n_heads,
        n_kv_heads=plan.n_kv_heads,
        n_kept=plan.n_kept,
        n_places=plan.n_places,
        levels=plan.levels,
    )


def _scaled(grad: Tensor, operand_dtype: torch.dtype) -> tuple[Tensor, Table]:
    """Gradients of a mean loss are far below what float16 can hold, so they are brought to 1 and the results back."""
    if operand_dtype != torch.float16:
        return grad, None
    grad = grad.float()
    scale = grad.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    return grad / scale, scale
