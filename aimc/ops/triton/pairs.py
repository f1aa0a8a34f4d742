"""What all gradients have in common for each pair of query and key, in Triton: the pulse that the key's cells have met,
and the gradient of its charge. Where there is room the kernel that makes the gradient of the pulses keeps both, in the
dtype of the products, so that those of keys and values are sums over queries and nothing is computed again.

No `from __future__ import annotations` here: Triton reads the annotations.
"""

import triton
import triton.language as tl

from aimc.ops.triton.counters import behind_counters
from aimc.ops.triton.reads import decay_since, last_query, load_gradient, load_rows, matrix_at
from aimc.ops.triton.sums import add_products, store_operands, zeros_of

__all__ = ["pair_gradient_kernel"]


@triton.jit
def _pairs_at(t, place, batch, head, machine, SPEC: tl.constexpr):
    """Offsets `[T, S]` in :class:`aimc.ops.triton.spec.Pairs`, and which are of the text."""
    index = (tl.cast(batch, tl.int64) * machine.n_heads + head) * machine.n_places + place
    offsets = t[:, None] * SPEC.rows + tl.arange(0, SPEC.rows)[None, :]
    return index * (machine.n_tokens * SPEC.rows) + offsets, (t < machine.n_tokens)[:, None]


@triton.jit
def keep_pairs(pairs, phi, d_relative, t, place, batch, head, machine, SPEC: tl.constexpr):
    """Those of one query block `[T, S]` with the keys `place` blocks before."""
    at, is_text = _pairs_at(t, place, batch, head, machine, SPEC)
    tl.store(pairs.phi + at, phi.to(SPEC.operand_dtype), mask=is_text)
    tl.store(pairs.d_relative + at, d_relative.to(SPEC.operand_dtype), mask=is_text)


@triton.jit
def _of_keys(pulses, pairs, d_keys, block, batch, kv_head, machine, SPEC: tl.constexpr):
    """Gradients of the graded operands of the first array."""
    GRADED: tl.constexpr = SPEC.key_gradients
    group, sums = machine.n_heads // machine.n_kv_heads, zeros_of(GRADED, SPEC)
    for head in range(kv_head * group, (kv_head + 1) * group):
        matrix = matrix_at(pulses, batch * machine.n_heads + head, machine, SPEC)
        for first in range(block * SPEC.rows, last_query(block, machine, SPEC), SPEC.block):
            t = first + tl.arange(0, SPEC.block)
            at, is_text = _pairs_at(t, first // SPEC.rows - block, batch, head, machine, SPEC)
            d_relative = tl.load(pairs.d_relative + at, mask=is_text, other=0.0)
            q = load_rows(matrix, t, machine.n_tokens, SPEC)
            sums = add_products(sums, d_relative, q, decay_since(t, block, machine, SPEC), GRADED, SPEC)
    store_operands(d_keys, sums, GRADED, block, batch, kv_head, machine, SPEC)


@triton.jit
def _of_values(grad, kept, pairs, d_values, block, batch, kv_head, machine, SPEC: tl.constexpr):
    """Of the second."""
    GRADED: tl.constexpr = SPEC.value_gradients
    group, sums = machine.n_heads // machine.n_kv_heads, zeros_of(GRADED, SPEC)
    for head in range(kv_head * group, (kv_head + 1) * group):
        for first in range(block * SPEC.rows, last_query(block, machine, SPEC), SPEC.block):
            t, own = first + tl.arange(0, SPEC.block), first // SPEC.rows
            at, is_text = _pairs_at(t, own - block, batch, head, machine, SPEC)
            phi = tl.load(pairs.phi + at, mask=is_text, other=0.0)
            d_out = load_gradient(grad, t, batch, head, machine, SPEC)
            d_charge = behind_counters(d_out, t, own, block, kept, batch, head, kv_head, machine, SPEC)
            sums = add_products(sums, phi, d_charge, decay_since(t, block, machine, SPEC), GRADED, SPEC)
    store_operands(d_values, sums, GRADED, block, batch, kv_head, machine, SPEC)


@triton.jit
def pair_gradient_kernel(pulses, grad, machine, kept, pairs, d_keys, d_values, SPEC: tl.constexpr):
    """Gradients of the graded operands of both arrays, `[P, B, H_kv, T, D]`, from pairs that were kept; one program per
    (array and key block, K/V head, batch). The query heads of the group are summed here, in a fixed order."""
    block, kv_head, batch = tl.program_id(0) // 2, tl.program_id(1), tl.program_id(2)
    if tl.program_id(0) % 2 == 0:
        _of_keys(pulses, pairs, d_keys, block, batch, kv_head, machine, SPEC)
    else:
        _of_values(grad, kept, pairs, d_values, block, batch, kv_head, machine, SPEC)
