"""In front of the two arrays and behind their gradients, in Triton: scaler, converter, write noise and cell of each
number, one pass over memory each way. Queries, keys and values share a launch, because a launch takes longer than its
work on all but long texts: a program's head is first one of the queries, then of the keys, then of the values.

A cell's decay at a read, `r_ts^j = e^(−jλ(t−s))`, is the product of one factor of the query, `e^(−jλ(t−s_0))`, and one
of the key, `e^(jλ(s−s_0))`, s_0 the first position of the key's block. The key's goes into the operand here; so the
kernels behind meet a plain matrix per power, in the dtype of their products.

No `from __future__ import annotations` here: Triton reads the annotations.
"""

import triton
import triton.language as tl

from aimc.ops.triton.noise import write_noise
from aimc.ops.triton.reads import converted

__all__ = ["gradient_at_converters", "write_kernel"]


@triton.jit
def _place(SPEC: tl.constexpr):
    """Positions `[T]`, features `[D]` and batch of a program per (block of tokens, head, batch)."""
    t = tl.program_id(0) * SPEC.block + tl.arange(0, SPEC.block)
    return t, tl.arange(0, SPEC.padded_size), tl.program_id(2)


@triton.jit
def _inside(t, features, source, SPEC: tl.constexpr):
    return (t < source.n_tokens)[:, None] & (features < SPEC.head_size)[None, :]


@triton.jit
def _given(source, t, features, head, batch, SPEC: tl.constexpr):
    """What the model gave, before and after its scaler, float32 `[T, D]`."""
    start = tl.cast(batch, tl.int64) * source.of_batch + tl.cast(head, tl.int64) * source.of_head
    offsets = tl.cast(t, tl.int64)[:, None] * source.of_token + features[None, :]
    x = tl.load(source.x + start + offsets, mask=_inside(t, features, source, SPEC), other=0.0).to(tl.float32)
    scaled = x
    if source.scale is not None:
        scaled = x * tl.load(source.scale + head) + tl.load(source.offset + head)
    return x, scaled


@triton.jit
def _at_converter(grad, x, scaled, source, sums, t, features, head, batch, SPEC: tl.constexpr):
    """Straight through the converter, inside its range, and through the scaler: the gradient of what was given `[T,
    D]`; what a program adds to those of the scaler's two numbers goes to `sums` `[2, B, all heads, blocks]`."""
    DAC: tl.constexpr = SPEC.dac
    inside = _inside(t, features, source, SPEC) & (scaled >= DAC.v_min) & (scaled <= DAC.v_max)
    grad = tl.where(inside, grad, 0.0)
    if source.scale is not None:
        n_blocks, n_programs = tl.num_programs(0), tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2)
        at = (batch * tl.num_programs(1) + tl.program_id(1)) * n_blocks + tl.program_id(0)
        tl.store(sums + at, _sum(grad * x))
        tl.store(sums + n_programs + at, _sum(grad))
        grad = grad * tl.load(source.scale + head)
    return grad


@triton.jit
def _sum(x):
    """Of all elements; see `row_sum` of the reads."""
    return tl.reduce(tl.reduce(x, 1, tl.standard._sum_combine), 0, tl.standard._sum_combine)


# --- Queries
# -----------------------------------------------------------------------------------------------------------------


@triton.jit
def _write_pulses(source, full_scale, pulses, head, SPEC: tl.constexpr):
    """Pulse widths over the full scale of the first array of each head `[H]`, contiguous `[B, H, T, D]`."""
    DAC: tl.constexpr = SPEC.dac
    t, features, batch = _place(SPEC)
    _, scaled = _given(source, t, features, head, batch, SPEC)
    width = converted(scaled, DAC, SPEC.fast) / tl.load(full_scale + head)
    at = (tl.cast(batch, tl.int64) * source.n_heads + head) * source.n_tokens * SPEC.head_size
    offsets = t[:, None] * SPEC.head_size + features[None, :]
    tl.store(pulses + at + offsets, width.to(pulses.dtype.element_ty), mask=_inside(t, features, source, SPEC))


@triton.jit
def _pulse_gradient(source, full_scale, d_pulses, d_given, sums, head, SPEC: tl.constexpr):
    """From the gradient of the pulses to that of the queries, `[B, T, H, D]`, and to what makes that of their
    scaler."""
    t, features, batch = _place(SPEC)
    x, scaled = _given(source, t, features, head, batch, SPEC)
    at = (tl.cast(batch, tl.int64) * source.n_heads + head) * source.n_tokens * SPEC.head_size
    offsets, inside = t[:, None] * SPEC.head_size + features[None, :], _inside(t, features, source, SPEC)
    grad = tl.load(d_pulses + at + offsets, mask=inside, other=0.0) / tl.load(full_scale + head)
    grad = _at_converter(grad, x, scaled, source, sums, t, features, head, batch, SPEC)
    _store_given(d_given, grad, t, features, head, batch, source, SPEC)


@triton.jit
def _store_given(d_given, grad, t, features, head, batch, source, SPEC: tl.constexpr):
    row = (tl.cast(batch, tl.int64) * source.n_tokens + t[:, None]) * source.n_heads + head
    inside = _inside(t, features, source, SPEC)
    tl.store(d_given + row * SPEC.head_size + features[None, :], grad.to(d_given.dtype.element_ty), mask=inside)


# --- Keys and values
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _voltage(scaled, cells, t, head, batch, SPEC: tl.constexpr):
    """Stored about what it leaks to, in volt, `[T, D]`."""
    DAC: tl.constexpr = SPEC.dac
    stored = converted(scaled, DAC, SPEC.fast)
    if SPEC.write_noise:
        stored += cells.write_noise_v * write_noise(cells, SPEC.array, batch, head, t, SPEC)
    return stored - SPEC.rest_v


@triton.jit
def _coefficient(cells, j: tl.constexpr, t, features, head, source, SPEC: tl.constexpr):
    """κ_j of the cells (aimc.ops.effects.cell.cell_coefficients): `[T, D]`, or a number where all share it."""
    start = cells.coefficients + j * cells.of_power
    if SPEC.differ:
        offsets = (t[:, None] % SPEC.window) * SPEC.head_size + features[None, :]
        start += head * (SPEC.window * SPEC.head_size)
        return tl.load(start + offsets, mask=_inside(t, features, source, SPEC), other=0.0)
    else:
        return tl.load(start)


@triton.jit
def _spread(cells, t, features, head, source, SPEC: tl.constexpr):
    """Of cells that leak apart, `[T, D]`: what is left of a voltage in the middle of the time in which their block is
    seen, and by how much its exponent falls in half of that time (:mod:`aimc.ops.triton.spread`)."""
    offsets = (head * SPEC.window + t[:, None] % SPEC.window) * SPEC.head_size + features[None, :]
    rate = tl.load(cells.rates + offsets, mask=_inside(t, features, source, SPEC), other=0.0)
    since = (t % SPEC.rows).to(tl.float32)[:, None]
    return tl.exp(-rate * (cells.half_length - since)), rate * cells.half_length


@triton.jit
def _rise(cells, t, SPEC: tl.constexpr):
    """`e^(λ(s−s_0))`, `[T, 1]`."""
    return tl.exp((t % SPEC.rows).to(tl.float32) * cells.decay_per_token)[:, None]


@triton.jit
def _write_cells(source, cells, stack, head, SPEC: tl.constexpr):
    """What the powers of the queries' decay multiply (aimc.ops.effects.cell.cell_operands), `[P, B, H_kv, T, D]`;
    without leakage all powers in one."""
    t, features, batch = _place(SPEC)
    _, scaled = _given(source, t, features, head, batch, SPEC)
    u = _voltage(scaled, cells, t, head, batch, SPEC)
    END: tl.constexpr = SPEC.powers
    if SPEC.orders > 0:
        left, fall = _spread(cells, t, features, head, source, SPEC)
        factor = tl.full(u.shape, 1.0, tl.float32)  # (−fall)^m / m!
        ORDERS: tl.constexpr = SPEC.orders
        for m in tl.static_range(ORDERS):
            operand = tl.full(u.shape, 0.0, tl.float32)
            power = tl.full(u.shape, 1.0, tl.float32)
            for j in tl.static_range(END):
                operand += power * _coefficient(cells, j, t, features, head, source, SPEC) * j**m
                power = power * u * left
            _store_operand(stack, operand * factor, m, t, features, head, batch, source, SPEC)
            factor = factor * -fall / (m + 1)
    elif SPEC.leaky:
        step = u * _rise(cells, t, SPEC)
        power = tl.full(u.shape, 1.0, tl.float32)
        for j in tl.static_range(END):
            if SPEC.stack.bits >> j & 1:
                operand = power * _coefficient(cells, j, t, features, head, source, SPEC)
                _store_operand(stack, operand, j - SPEC.stack.first, t, features, head, batch, source, SPEC)
            power = power * step
    else:
        operand = tl.full(u.shape, 0.0, tl.float32)
        for k in tl.static_range(END):
            operand = operand * u + _coefficient(cells, SPEC.powers - 1 - k, t, features, head, source, SPEC)
        _store_operand(stack, operand, 0, t, features, head, batch, source, SPEC)


@triton.jit
def _operand_at(stack, place: tl.constexpr, t, features, head, batch, source, SPEC: tl.constexpr):
    index = (tl.cast(batch, tl.int64) + place * source.n_batch) * source.n_heads + head
    return stack + index * source.n_tokens * SPEC.head_size + (t[:, None] * SPEC.head_size + features[None, :])


@triton.jit
def _store_operand(stack, operand, place: tl.constexpr, t, features, head, batch, source, SPEC: tl.constexpr):
    at = _operand_at(stack, place, t, features, head, batch, source, SPEC)
    tl.store(at, operand.to(stack.dtype.element_ty), mask=_inside(t, features, source, SPEC))


@triton.jit
def _stored_gradient(source, cells, d_stack, d_given, sums, head, SPEC: tl.constexpr):
    """From the gradients of the graded operands `[P, B, H_kv, T, D]` to that of keys or values, `[B, T, H_kv, D]`, and
    to what makes that of their scaler (aimc.ops.effects.cell.stored_gradient)."""
    t, features, batch = _place(SPEC)
    x, scaled = _given(source, t, features, head, batch, SPEC)
    inside = _inside(t, features, source, SPEC)
    grad = tl.full(x.shape, 0.0, tl.float32)
    if SPEC.orders > 0:
        left, fall = _spread(cells, t, features, head, source, SPEC)
        u = _voltage(scaled, cells, t, head, batch, SPEC)
        factor = tl.full(u.shape, 1.0, tl.float32)
        ORDERS: tl.constexpr = SPEC.orders
        POWERS: tl.constexpr = 2 if SPEC.linear_gradient else SPEC.powers
        for m in tl.static_range(ORDERS):
            slope = tl.full(u.shape, 0.0, tl.float32)
            power = left
            for j in tl.static_range(1, POWERS):
                if SPEC.linear_gradient:
                    slope += power * cells.surrogate_slope
                else:
                    slope += power * _coefficient(cells, j, t, features, head, source, SPEC) * (j * j**m)
                power = power * u * left
            at = _operand_at(d_stack, m, t, features, head, batch, source, SPEC)
            grad += tl.load(at, mask=inside, other=0.0) * slope * factor
            factor = factor * -fall / (m + 1)
    elif SPEC.linear_gradient:
        grad += cells.surrogate_slope * tl.load(
            _operand_at(d_stack, 0, t, features, head, batch, source, SPEC), mask=inside, other=0.0
        )
        if SPEC.leaky:
            grad = grad * _rise(cells, t, SPEC)
    else:
        u = _voltage(scaled, cells, t, head, batch, SPEC)
        rise = tl.full((SPEC.block, 1), 1.0, tl.float32)
        if SPEC.leaky:
            rise = _rise(cells, t, SPEC)
        factor = rise + tl.full(u.shape, 0.0, tl.float32)  # j·u^(j−1)·rise^j without its j
        END: tl.constexpr = SPEC.powers
        for j in tl.static_range(1, END):
            if SPEC.leaky:
                if SPEC.stack.bits >> j & 1:
                    at = _operand_at(d_stack, j - SPEC.stack.first, t, features, head, batch, source, SPEC)
                    of_power = tl.load(at, mask=inside, other=0.0)
                    slope = j * factor * _coefficient(cells, j, t, features, head, source, SPEC)
                    grad += of_power * slope
            else:
                at = _operand_at(d_stack, 0, t, features, head, batch, source, SPEC)
                slope = j * factor * _coefficient(cells, j, t, features, head, source, SPEC)
                grad += tl.load(at, mask=inside, other=0.0) * slope
            factor = factor * u * rise
    grad = _at_converter(grad, x, scaled, source, sums, t, features, head, batch, SPEC)
    _store_given(d_given, grad, t, features, head, batch, source, SPEC)


# --- Launches
# ----------------------------------------------------------------------------------------------------------------


@triton.jit
def write_kernel(
    query,
    full_scale,
    pulses,
    key,
    key_cells,
    key_stack,
    value,
    value_cells,
    value_stack,
    PULSES: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Pulses (:func:`_write_pulses`) and the operands of both arrays (:func:`_write_cells`): of each of the three what
    the model gave, what it becomes with, and where it goes. One program per (block of tokens, head of any of them,
    batch)."""
    head = tl.program_id(1)
    if head < query.n_heads:
        _write_pulses(query, full_scale, pulses, head, PULSES)
    elif head < query.n_heads + key.n_heads:
        _write_cells(key, key_cells, key_stack, head - query.n_heads, KEYS)
    else:
        _write_cells(value, value_cells, value_stack, head - query.n_heads - key.n_heads, VALUES)


@triton.jit
def gradient_at_converters(
    query,
    full_scale,
    d_pulses,
    d_query,
    key,
    key_cells,
    d_key_stack,
    d_key,
    value,
    value_cells,
    d_value_stack,
    d_value,
    sums,
    PULSES: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
):
    """The way back of :func:`write_kernel`: each of the three also has the gradient that comes and the one that goes on
    (:func:`_pulse_gradient`, :func:`_stored_gradient`), and all give to those of their scalers."""
    head = tl.program_id(1)
    if head < query.n_heads:
        _pulse_gradient(query, full_scale, d_pulses, d_query, sums, head, PULSES)
    elif head < query.n_heads + key.n_heads:
        _stored_gradient(key, key_cells, d_key_stack, d_key, sums, head - query.n_heads, KEYS)
    else:
        at = head - query.n_heads - key.n_heads
        _stored_gradient(value, value_cells, d_value_stack, d_value, sums, at, VALUES)
