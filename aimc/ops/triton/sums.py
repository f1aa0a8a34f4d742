"""Sums over the queries by power of their decay, in Triton: the gradients of the operands of one block of cells.

No `from __future__ import annotations` here: Triton reads the annotations.
"""

import triton
import triton.language as tl

from aimc.ops.triton.reads import at_rows, dot, key_positions, operand_at


@triton.jit
def add_products(sums, weights, x, decay, STACK: tl.constexpr, SPEC: tl.constexpr):
    """Gradients of the operands by power: `Σ_t r_t^j·w_ts·x_td` `[S, D]` from `[T, S]` and `[T, D]`, added to a tuple
    of sums."""
    weights = tl.trans(weights.to(SPEC.operand_dtype))
    x = x.to(tl.float32)
    added = ()
    END: tl.constexpr = STACK.first + STACK.length
    for j in tl.static_range(END):
        if j > 0:
            x = x * decay
        if STACK.bits >> j & 1:
            added = added + (dot(weights, x, sums[j - STACK.first], SPEC),)  # type: ignore[assignment]
        elif j >= STACK.first:
            added = added + (sums[j - STACK.first],)  # type: ignore[assignment]
    return added


@triton.jit
def zeros_of(STACK: tl.constexpr, SPEC: tl.constexpr):
    """With which such sums begin."""
    LENGTH: tl.constexpr = STACK.length
    sums = ()
    for _ in tl.static_range(LENGTH):
        sums = sums + (tl.full((SPEC.rows, SPEC.padded_size), 0.0, tl.float32),)  # type: ignore[assignment]
    return sums


@triton.jit
def store_operands(stack, sums, STACK: tl.constexpr, block, batch, kv_head, machine, SPEC: tl.constexpr):
    """Such sums over A_sat, into `[P, B, H_kv, T, D]`."""
    LENGTH: tl.constexpr = STACK.length
    offsets, inside = at_rows(key_positions(block, SPEC), machine.n_tokens, SPEC)
    for place in tl.static_range(LENGTH):
        value = sums[place] / machine.levels.saturation_av
        tl.store(operand_at(stack, place, batch, kv_head, machine, SPEC) + offsets, value, mask=inside)
