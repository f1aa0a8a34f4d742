"""The digital memory of protected tokens, in Triton: exact products beside those of the arrays, without converters.

A query reads the blocks that hold sinks, from the beginning of the text on, and those of the newest tokens; the arrays'
walk leaves out exactly what is read here (`is_protected`).

No `from __future__ import annotations` here: Triton reads the annotations.
"""

import triton
import triton.language as tl

from aimc.ops.triton.activation import gain_of, shares_of
from aimc.ops.triton.reads import (
    at_rows,
    dot,
    is_padding,
    is_protected,
    key_positions,
    load_gradient,
    load_rows,
    load_sum_gradient,
    matrix_at,
    of_rows,
    pulses_of,
    row_sum,
)

__all__ = ["memory_gradient_kernel"]


@triton.jit
def span_of(first, own, batch, machine, SPEC: tl.constexpr):
    """How many blocks with sinks the queries from `first` on read before those of the newest tokens, the first block of
    these, and how many all are."""
    recent = tl.minimum(tl.maximum(first - machine.memory.n_recent + 1, 0) // SPEC.rows, own)
    n_sinks = recent * 0
    if machine.memory.sink is not None:
        end = tl.load(machine.memory.sink_end + batch)
        n_sinks = tl.minimum((end + SPEC.rows - 1) // SPEC.rows, recent)
    return n_sinks, recent, n_sinks + own - recent + 1


@triton.jit
def nth_block(i, n_sinks, recent):
    """Of those that :func:`span_of` has counted."""
    return tl.where(i < n_sinks, i, recent + i - n_sinks)


@triton.jit
def score_memory(q, t, block, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """Exact `S / S_sat − θ` and which tokens of the block are read from the memory, `[T, S]`; and their keys."""
    s = key_positions(block, SPEC)
    keys = load_rows(
        matrix_at(machine.memory.stored_keys, batch * machine.n_kv_heads + kv_head, machine, SPEC),
        s,
        machine.n_tokens,
        SPEC,
    )
    score = dot(q, tl.trans(keys), tl.full((SPEC.block, SPEC.rows), 0.0, tl.float32), SPEC)
    if machine.of_heads.threshold is not None:
        score = score - tl.load(machine.of_heads.threshold + head)
    visible = is_protected(t, s, batch, machine) & (s[None, :] <= t[:, None])
    if machine.padding is not None:
        visible = visible & (is_padding(s, batch, machine) == 0)[None, :]
    return score, visible, keys


@triton.jit
def _values(block, batch, kv_head, machine, SPEC: tl.constexpr):
    values = matrix_at(machine.memory.stored_values, batch * machine.n_kv_heads + kv_head, machine, SPEC)
    return load_rows(values, key_positions(block, SPEC), machine.n_tokens, SPEC)


@triton.jit
def memory_pulses(t, batch, head, machine, SPEC: tl.constexpr):
    """What multiplies the memory's keys, `[T, D]`."""
    pulses = matrix_at(machine.memory.pulses, batch * machine.n_heads + head, machine, SPEC)
    return load_rows(pulses, t, machine.n_tokens, SPEC)


@triton.jit
def _factor(t, batch, head, machine, SPEC: tl.constexpr):
    """What a share is multiplied by, `[T, 1]`: pulses of the arrays are relative to the longest."""
    factor = tl.full((SPEC.block, 1), 1.0, tl.float32)
    if SPEC.corrects:
        factor = factor / of_rows(machine.of_softmax.longest, t, batch, head, machine)
    return factor


@triton.jit
def read_memory(t, own, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """What the protected tokens add to the sum `[T, D]`, in signal units, and to Σφ `[T, 1]`."""
    q = memory_pulses(t, batch, head, machine, SPEC)
    total = tl.full((SPEC.block, SPEC.padded_size), 0.0, tl.float32)
    pulse = tl.full((SPEC.block, 1), 0.0, tl.float32)
    n_sinks, recent, n_blocks = span_of(tl.program_id(0) * SPEC.block, own, batch, machine, SPEC)
    for i in range(n_blocks):
        block = nth_block(i, n_sinks, recent)
        score, visible, _ = score_memory(q, t, block, batch, head, kv_head, machine, SPEC)
        if SPEC.softmax is None:
            phi = pulses_of(score, visible)
        else:
            phi = shares_of(score, visible, t, batch, head, machine) * _factor(t, batch, head, machine, SPEC)
        total = dot(phi, _values(block, batch, kv_head, machine, SPEC), total, SPEC)
        pulse += row_sum(phi)
    return total, pulse


@triton.jit
def _back(q, d_out, d_sum, t, block, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """φ and the gradient of the scores `[T, S]`, what it adds to that of θ or of the logits' gain `[T, 1]`, and the
    keys."""
    score, visible, keys = score_memory(q, t, block, batch, head, kv_head, machine, SPEC)
    values = _values(block, batch, kv_head, machine, SPEC)
    d_phi = dot(d_out, tl.trans(values), tl.full((SPEC.block, SPEC.rows), 0.0, tl.float32), SPEC)
    if SPEC.softmax is None:
        phi = pulses_of(score, visible)
        grad = tl.where(visible & (score >= 0.0) & (score <= 1.0), d_phi + d_sum, 0.0)
        of_trained = row_sum(grad)
    else:
        factor = _factor(t, batch, head, machine, SPEC)
        share = shares_of(score, visible, t, batch, head, machine)
        phi = share * factor
        grad = (d_phi * factor + d_sum) * share
        of_trained = row_sum(grad * score)
        grad = grad * gain_of(t, batch, head, machine)
    return phi, grad, of_trained, keys


@triton.jit
def pulse_gradient_of_memory(d_out, d_sum, t, own, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """Gradients of what multiplies the memory's keys `[T, D]`, and of θ or of the logits' gain `[T, 1]`."""
    q = memory_pulses(t, batch, head, machine, SPEC)
    total = tl.full((SPEC.block, SPEC.padded_size), 0.0, tl.float32)
    of_trained = tl.full((SPEC.block, 1), 0.0, tl.float32)
    n_sinks, recent, n_blocks = span_of(tl.program_id(0) * SPEC.block, own, batch, machine, SPEC)
    for i in range(n_blocks):
        block = nth_block(i, n_sinks, recent)
        _, grad, of_rows_here, keys = _back(q, d_out, d_sum, t, block, batch, head, kv_head, machine, SPEC)
        total = dot(grad, keys, total, SPEC)
        of_trained += of_rows_here
    return total, of_trained


@triton.jit
def memory_gradient_kernel(grad, d_sum, machine, d_keys, d_values, SPEC: tl.constexpr):
    """Gradients of the memory's keys and values, `[B, H_kv, T, D]`; one program per (block of tokens, K/V head, batch),
    as for the arrays' cells."""
    block, kv_head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group = machine.n_heads // machine.n_kv_heads
    of_keys = tl.full((SPEC.rows, SPEC.padded_size), 0.0, tl.float32)
    of_values = of_keys
    start = block * SPEC.rows
    last = start + SPEC.rows + machine.memory.n_recent
    if machine.memory.sink is not None:
        last = tl.where(start < tl.load(machine.memory.sink_end + batch), machine.n_tokens, last)
    last = tl.minimum(last, machine.n_tokens)
    for head in range(kv_head * group, (kv_head + 1) * group):
        for first in range(start, last, SPEC.block):
            t = first + tl.arange(0, SPEC.block)
            q = memory_pulses(t, batch, head, machine, SPEC)
            d_out = load_gradient(grad, t, batch, head, machine, SPEC)
            of_sum = load_sum_gradient(d_sum, t, batch, head, machine, SPEC)
            phi, d_score, _, _ = _back(q, d_out, of_sum, t, block, batch, head, kv_head, machine, SPEC)
            of_keys = dot(tl.trans(d_score.to(SPEC.operand_dtype)), q, of_keys, SPEC)
            of_values = dot(tl.trans(phi.to(SPEC.operand_dtype)), d_out, of_values, SPEC)
    offsets, inside = at_rows(key_positions(block, SPEC), machine.n_tokens, SPEC)
    index = batch * machine.n_kv_heads + kv_head
    sat = machine.levels.saturation_av
    tl.store(matrix_at(d_keys, index, machine, SPEC) + offsets, of_keys / sat, mask=inside)
    tl.store(matrix_at(d_values, index, machine, SPEC) + offsets, of_values / sat, mask=inside)
