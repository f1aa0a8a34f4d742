"""What the digital softmax must know of all scores of a query before it makes a pulse of any: one Triton kernel.

No `from __future__ import annotations` here: Triton reads the annotations.
"""

import triton
import triton.language as tl

from aimc.ops.triton.activation import correction, gain_of, measured
from aimc.ops.triton.memory import memory_pulses, nth_block, score_memory, span_of
from aimc.ops.triton.reads import (
    decay_since,
    load_rows,
    matrix_at,
    program,
    read_qk,
    row_at,
    row_largest,
    row_sum,
    shared,
)

__all__ = ["statistics_kernel"]


@triton.jit
def _with(largest, total, longest, logit, visible, factor):
    """The statistics of a row with more logits `[T, S]`, whose pulses are lengthened by a factor."""
    logit = tl.where(visible, logit, float("-inf"))
    new = tl.maximum(largest, row_largest(logit))
    safe = tl.where(new == float("-inf"), 0.0, new)
    kept, share = tl.exp(largest - safe), tl.exp(logit - safe)
    return new, total * kept + row_sum(share), tl.maximum(longest * kept, row_largest(share * factor))


@triton.jit
def _with_block(
    largest,
    total,
    longest,
    q,
    rest,
    resting,
    t,
    block,
    MASKED: tl.constexpr,
    batch,
    head,
    kv_head,
    machine,
    SPEC: tl.constexpr,
):
    """The same with a block of the arrays."""
    decay = decay_since(t, block, machine, SPEC)
    relative, visible = read_qk(q, rest, t, decay, block, MASKED, batch, head, kv_head, machine, SPEC)
    logit = measured(relative, resting, decay, block, batch, kv_head, machine, SPEC) * gain_of(t, batch, head, machine)
    factor = tl.full((SPEC.block, SPEC.rows), 1.0, tl.float32)
    if SPEC.corrects:
        factor = correction(machine.of_softmax.value_norm, decay, block, batch, kv_head, machine, SPEC)
    return _with(largest, total, longest, logit, visible, factor)


@triton.jit
def statistics_kernel(pulses, machine, SPEC: tl.constexpr):
    """Fills `resting`, `largest`, `total` and `longest` of :class:`aimc.ops.triton.spec.OfSoftmax`; one program per
    (query block, head, batch)."""
    REST: tl.constexpr = SPEC.softmax.rest
    t, own, batch, head, kv_head = program(machine, SPEC)
    q = load_rows(matrix_at(pulses, batch * machine.n_heads + head, machine, SPEC), t, machine.n_tokens, SPEC)
    rest = shared(q, SPEC.key_constant)
    at, written = row_at(t, batch, head, machine), (t < machine.n_tokens)[:, None]
    resting = shared(q, REST)
    if SPEC.corrects:
        tl.store(machine.of_softmax.resting + at, resting, mask=written)
    largest = tl.full((SPEC.block, 1), float("-inf"), tl.float32)
    total = tl.full((SPEC.block, 1), 0.0, tl.float32)
    longest = total
    for block in range(tl.maximum(own - SPEC.tiles + 1, 0), own):
        largest, total, longest = _with_block(
            largest, total, longest, q, rest, resting, t, block, False, batch, head, kv_head, machine, SPEC
        )
    largest, total, longest = _with_block(
        largest, total, longest, q, rest, resting, t, own, True, batch, head, kv_head, machine, SPEC
    )
    if own >= SPEC.tiles:  # what is left of the block being overwritten
        largest, total, longest = _with_block(
            largest, total, longest, q, rest, resting, t, own - SPEC.tiles, True, batch, head, kv_head, machine, SPEC
        )
    if SPEC.protects:
        dq = memory_pulses(t, batch, head, machine, SPEC)
        n_sinks, recent, n_blocks = span_of(tl.program_id(0) * SPEC.block, own, batch, machine, SPEC)
        for i in range(n_blocks):
            block = nth_block(i, n_sinks, recent)
            score, visible, _ = score_memory(dq, t, block, batch, head, kv_head, machine, SPEC)
            largest, total, longest = _with(
                largest, total, longest, score * gain_of(t, batch, head, machine), visible, 0.0
            )
    tl.store(machine.of_softmax.largest + at, tl.where(largest == float("-inf"), 0.0, largest), mask=written)
    tl.store(machine.of_softmax.total + at, total, mask=written)
    if SPEC.corrects:
        tl.store(machine.of_softmax.longest + at, tl.maximum(longest, SPEC.softmax.shortest), mask=written)
