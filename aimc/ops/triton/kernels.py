"""The three Triton kernels of gain-cell attention: outputs, gradient of the pulses, gradients of the stored keys and
values; the last where nothing was kept of each pair of them (:mod:`aimc.ops.triton.pairs`).

Time is cut in blocks of R tokens, so that block n fills one sub-tile, `n mod J`. A query in block i sees blocks i−J+1 …
i−1 whole, each a sub-tile of its own. Its own block i (up to the query) and block i−J (what is not overwritten yet) lie
in the same sub-tile and share one charge, one clip and one code. One condition on the age of a key, `0 <= t−s < W`,
draws both staircases.

No `from __future__ import annotations` here: Triton reads the annotations.
"""

import triton
import triton.language as tl

from aimc.ops.triton.activation import back_through, widths_of
from aimc.ops.triton.counters import behind_counters, behind_normaliser, keep_inside
from aimc.ops.triton.memory import pulse_gradient_of_memory, read_memory
from aimc.ops.triton.pairs import keep_pairs
from aimc.ops.triton.reads import (
    at_rows,
    codes_of,
    contracted,
    decay_since,
    in_range,
    is_padding,
    key_positions,
    last_query,
    load_gradient,
    load_rows,
    load_sum_gradient,
    matrix_at,
    of_rows,
    program,
    read_av,
    read_qk,
    read_sum,
    row_at,
    row_sum,
    shared,
    value_of,
)
from aimc.ops.triton.sums import add_products, store_operands, zeros_of

__all__ = ["forward_kernel", "pulse_gradient_kernel", "stored_gradient_kernel"]


# --- Forward
# -----------------------------------------------------------------------------------------------------------------


@triton.jit
def _charge_of(q, rest, t, block, MASKED: tl.constexpr, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """What one block of tokens brings to its sub-tile of the second array: charge `[T, D]`, Σφ `[T, 1]`, and the pulse
    that resting cells have missed `[T, 1]`."""
    decay = decay_since(t, block, machine, SPEC)
    relative, visible = read_qk(q, rest, t, decay, block, MASKED, batch, head, kv_head, machine, SPEC)
    phi, lost = widths_of(relative, visible, t, decay, block, batch, head, kv_head, machine, SPEC)
    charge = contracted(phi, False, False, decay, block, batch, kv_head, machine, SPEC)
    return charge + shared(phi, SPEC.value_constant), row_sum(phi), lost


@triton.jit
def _count(charge, pulse, t, tile, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """Codes of the counters of one sub-tile, `[T, D]`, and of its normaliser column, `[T, 1]` or zero; and which of
    them were inside their range."""
    READOUT: tl.constexpr = SPEC.readout
    NORMALISER: tl.constexpr = SPEC.normaliser
    counts = read_av(charge, t, tile, batch, head, kv_head, machine, SPEC)
    of_sum = tl.full((SPEC.block, 1), 0.0, tl.float32)
    sum_inside = of_sum == 0.0
    if SPEC.normaliser is not None:
        share = read_sum(pulse, t, tile, batch, head, kv_head, machine, SPEC)
        of_sum, sum_inside = codes_of(share, NORMALISER), in_range(share, NORMALISER)
    return codes_of(counts, READOUT), of_sum, in_range(counts, READOUT), sum_inside


@triton.jit
def forward_kernel(pulses, machine, out, sums, kept, KEEP: tl.constexpr, SPEC: tl.constexpr):
    """Digital sum of the sub-tiles' counts in units of `array.saturation_av`, divided by Σφ where there is a normaliser
    and by the sum of shares where there is a softmax, `[B, T, H, D]`; Σφ as counted, `[B, H, T]`, into `sums`. One
    program per (query block, head, batch)."""
    READOUT: tl.constexpr = SPEC.readout
    NORMALISER: tl.constexpr = SPEC.normaliser
    t, own, batch, head, kv_head = program(machine, SPEC)
    q = load_rows(matrix_at(pulses, batch * machine.n_heads + head, machine, SPEC), t, machine.n_tokens, SPEC)
    rest = shared(q, SPEC.key_constant)
    total = tl.full((SPEC.block, SPEC.padded_size), 0.0, tl.float32)
    divisor = tl.full((SPEC.block, 1), 0.0, tl.float32)
    missed = divisor
    for block in range(tl.maximum(own - SPEC.tiles + 1, 0), own):
        charge, pulse, lost = _charge_of(q, rest, t, block, False, batch, head, kv_head, machine, SPEC)
        codes, of_sum, inside, sum_inside = _count(
            charge, pulse, t, block % SPEC.tiles, batch, head, kv_head, machine, SPEC
        )
        if KEEP:
            keep_inside(kept, inside, sum_inside, t, own - block, batch, head, machine, SPEC)
        total += codes
        divisor += of_sum
        missed += lost
    charge, pulse, lost = _charge_of(q, rest, t, own, True, batch, head, kv_head, machine, SPEC)
    missed += lost
    if own >= SPEC.tiles:  # what is left of the block being overwritten
        older, of_older, lost = _charge_of(q, rest, t, own - SPEC.tiles, True, batch, head, kv_head, machine, SPEC)
        charge += older
        missed += lost
        if SPEC.normaliser is not None:
            pulse += of_older
    codes, of_sum, inside, sum_inside = _count(charge, pulse, t, own % SPEC.tiles, batch, head, kv_head, machine, SPEC)
    if KEEP:
        keep_inside(kept, inside, sum_inside, t, 0, batch, head, machine, SPEC)
    sat = machine.levels.saturation_av
    total = value_of(total + codes, READOUT, SPEC.fast) * (tl.load(machine.of_heads.full_scale_av + head) / sat)
    if SPEC.normaliser is not None:
        full_scale = tl.load(machine.of_heads.full_scale_of_sum + head)
        divisor = value_of(divisor + of_sum, NORMALISER, SPEC.fast) * full_scale
    if SPEC.protects:
        of_memory, of_sum = read_memory(t, own, batch, head, kv_head, machine, SPEC)
        total += of_memory / sat
        divisor += of_sum
    if machine.padding is not None:
        total = tl.where(is_padding(t, batch, machine)[:, None], 0.0, total)
        missed = tl.where(is_padding(t, batch, machine)[:, None], 0.0, missed)
    if SPEC.corrects:
        resting = missed * (SPEC.softmax.rest / sat)
        total = (total + resting) * of_rows(machine.of_softmax.longest, t, batch, head, machine)
    if SPEC.softmax is not None:
        divisor = of_rows(machine.of_softmax.total, t, batch, head, machine)
        total = total / tl.maximum(divisor, machine.levels.least_sum)
    if SPEC.normaliser is not None:
        least = tl.maximum(machine.levels.least_sum * full_scale, machine.levels.least_pulses)
        total = total / tl.maximum(divisor, least)
        tl.store(sums + row_at(t, batch, head, machine), divisor, mask=(t < machine.n_tokens)[:, None])
    features = tl.arange(0, SPEC.padded_size)[None, :]
    row = (tl.cast(batch, tl.int64) * machine.n_tokens + t[:, None]) * machine.n_heads + head
    inside = (t < machine.n_tokens)[:, None] & (features < SPEC.head_size)
    tl.store(out + row * SPEC.head_size + features, total.to(out.dtype.element_ty), mask=inside)


# --- Backward
# ----------------------------------------------------------------------------------------------------------------


@triton.jit
def _block_gradients(
    q, rest, d_out, d_sum, t, own, block, MASKED: tl.constexpr, kept, batch, head, kv_head, machine, SPEC: tl.constexpr
):
    """Back from the counters to both arrays, for one query block and one key block.

    Returns φ `[T, S]`, the gradient of A's charge `[T, D]`, that of `S / S_sat − θ` `[T, S]`, what is added to those of
    what the activation trains and of the charge of resting cells `[T, 1]`, all gradients times A_sat, and the decay.
    A_sat is left to the caller, which divides sums: small operands would be lost in half precision.
    """
    decay = decay_since(t, block, machine, SPEC)
    relative, visible = read_qk(q, rest, t, decay, block, MASKED, batch, head, kv_head, machine, SPEC)
    d_charge = behind_counters(d_out, t, own, block, kept, batch, head, kv_head, machine, SPEC)
    of_sum = behind_normaliser(d_sum, t, own, block, kept, batch, head, kv_head, machine, SPEC)
    d_phi = contracted(d_charge, False, True, decay, block, batch, kv_head, machine, SPEC)
    d_phi = d_phi + shared(d_charge, SPEC.value_constant)
    d_lost = of_sum
    if SPEC.normaliser is not None:
        d_phi = d_phi + of_sum
    if SPEC.softmax is not None:
        REST: tl.constexpr = SPEC.softmax.rest
        d_lost = shared(d_out, REST) if SPEC.corrects else tl.full((SPEC.block, 1), 0.0, tl.float32)
    phi, d_relative, of_trained, of_rest = back_through(
        d_phi, of_sum, d_lost, relative, visible, t, decay, block, batch, head, kv_head, machine, SPEC
    )
    return phi, d_charge, d_relative, of_trained, of_rest, decay


@triton.jit
def _before_columns_qk(d_relative, block, kv_head, machine, SPEC: tl.constexpr):
    """Gradient of a charge that goes through columns with a gain error."""
    if machine.columns_qk.gain is not None:
        column = kv_head * SPEC.window + key_positions(block, SPEC) % SPEC.window
        d_relative = d_relative * (1.0 + tl.load(machine.columns_qk.gain + column))[None, :]
    return d_relative


@triton.jit
def _pulse_gradient(
    q,
    rest,
    d_out,
    d_sum,
    t,
    own,
    block,
    MASKED: tl.constexpr,
    kept,
    pairs,
    batch,
    head,
    kv_head,
    machine,
    SPEC: tl.constexpr,
):
    """What one block of keys adds to the gradients of the pulses `[T, D]`, and by query `[T, 1]` of what the activation
    trains."""
    phi, _, d_relative, of_trained, of_rest, decay = _block_gradients(
        q, rest, d_out, d_sum, t, own, block, MASKED, kept, batch, head, kv_head, machine, SPEC
    )
    d_relative = _before_columns_qk(d_relative, block, kv_head, machine, SPEC)
    if pairs is not None:
        keep_pairs(pairs, phi, d_relative, t, own - block, batch, head, machine, SPEC)
    of_pulses = contracted(d_relative, True, False, decay, block, batch, kv_head, machine, SPEC)
    of_pulses = of_pulses + shared(d_relative, SPEC.key_constant)
    if SPEC.corrects:
        of_pulses += of_rest * SPEC.softmax.rest
    return of_pulses, of_trained


@triton.jit
def pulse_gradient_kernel(
    pulses, grad, d_sum, machine, kept, pairs, d_pulses, d_memory_pulses, d_trained, SPEC: tl.constexpr
):
    """Gradients of the pulses over S_sat and of those of the digital memory (None: there is none), `[B, H, T, D]`, and
    by query, `[B, H, T]`, of what the activation trains: the threshold, or the gain of the logits without its factors
    (None: nothing). One program per (query block, head, batch). Fills `pairs` (None: they are not kept)."""
    t, own, batch, head, kv_head = program(machine, SPEC)
    index = batch * machine.n_heads + head
    q = load_rows(matrix_at(pulses, index, machine, SPEC), t, machine.n_tokens, SPEC)
    rest = shared(q, SPEC.key_constant)
    d_out = load_gradient(grad, t, batch, head, machine, SPEC)
    of_sum = load_sum_gradient(d_sum, t, batch, head, machine, SPEC)
    total = tl.full((SPEC.block, SPEC.padded_size), 0.0, tl.float32)
    of_trained = tl.full((SPEC.block, 1), 0.0, tl.float32)
    for block in range(tl.maximum(own - SPEC.tiles + 1, 0), own):
        of_block, of_rows_here = _pulse_gradient(
            q, rest, d_out, of_sum, t, own, block, False, kept, pairs, batch, head, kv_head, machine, SPEC
        )
        total += of_block
        of_trained += of_rows_here
    for turn in range(2):  # its own block, and what is left of the block being overwritten
        block = own - turn * SPEC.tiles
        if block >= 0:
            of_block, of_rows_here = _pulse_gradient(
                q, rest, d_out, of_sum, t, own, block, True, kept, pairs, batch, head, kv_head, machine, SPEC
            )
            total += of_block
            of_trained += of_rows_here
    offsets, inside = at_rows(t, machine.n_tokens, SPEC)
    sat = machine.levels.saturation_av
    tl.store(matrix_at(d_pulses, index, machine, SPEC) + offsets, total / sat, mask=inside)
    if SPEC.protects:
        of_memory, of_rows_here = pulse_gradient_of_memory(d_out, of_sum, t, own, batch, head, kv_head, machine, SPEC)
        of_trained += of_rows_here
        tl.store(matrix_at(d_memory_pulses, index, machine, SPEC) + offsets, of_memory / sat, mask=inside)
    if d_trained is not None:
        SIGN: tl.constexpr = -1.0 if SPEC.softmax is None else 1.0
        at = row_at(t, batch, head, machine)
        tl.store(d_trained + at, of_trained * SIGN / sat, mask=(t < machine.n_tokens)[:, None])


@triton.jit
def stored_gradient_kernel(pulses, grad, d_sum, machine, kept, d_keys, d_values, SPEC: tl.constexpr):
    """Gradients of the graded operands of both arrays, `[P, B, H_kv, T, D]`, where no pairs were kept
    (:mod:`aimc.ops.triton.pairs`); one program per (key block, K/V head, batch).

    The query heads of the group are summed here, in a fixed order, so that the result does not depend on the scheduler.
    """
    KEY_GRADIENTS: tl.constexpr = SPEC.key_gradients
    VALUE_GRADIENTS: tl.constexpr = SPEC.value_gradients
    block, kv_head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group = machine.n_heads // machine.n_kv_heads
    of_keys, of_values = zeros_of(KEY_GRADIENTS, SPEC), zeros_of(VALUE_GRADIENTS, SPEC)
    last = last_query(block, machine, SPEC)
    for head in range(kv_head * group, (kv_head + 1) * group):
        index = batch * machine.n_heads + head
        for first in range(block * SPEC.rows, last, SPEC.block):
            t = first + tl.arange(0, SPEC.block)
            q = load_rows(matrix_at(pulses, index, machine, SPEC), t, machine.n_tokens, SPEC)
            rest = shared(q, SPEC.key_constant)
            d_out = load_gradient(grad, t, batch, head, machine, SPEC)
            of_sum = load_sum_gradient(d_sum, t, batch, head, machine, SPEC)
            here = block
            if SPEC.reloads:  # the same, but the compiler cannot know
                here = tl.minimum(block, first // SPEC.rows)
            phi, d_charge, d_relative, _, _, decay = _block_gradients(
                q, rest, d_out, of_sum, t, first // SPEC.rows, here, True, kept, batch, head, kv_head, machine, SPEC
            )
            d_relative = _before_columns_qk(d_relative, block, kv_head, machine, SPEC)
            of_keys = add_products(of_keys, d_relative, q, decay, KEY_GRADIENTS, SPEC)
            of_values = add_products(of_values, phi, d_charge, decay, VALUE_GRADIENTS, SPEC)
    store_operands(d_keys, of_keys, KEY_GRADIENTS, block, batch, kv_head, machine, SPEC)
    store_operands(d_values, of_values, VALUE_GRADIENTS, block, batch, kv_head, machine, SPEC)
