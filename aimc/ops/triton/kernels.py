"""The three Triton kernels of gain-cell attention: outputs, gradient of the pulses, gradients of the stored keys and
values.

Time is cut in blocks of R tokens, so that block n fills one sub-tile, `n mod J`. A query in block i sees blocks i−J+1 …
i−1 whole, each a sub-tile of its own. Its own block i (up to the query) and block i−J (what is not overwritten yet) lie
in the same sub-tile and share one charge, one clip and one code. One condition on the age of a key, `0 <= t−s < W`,
draws both staircases.

No `from __future__ import annotations` here: Triton reads the annotations.
"""

import triton
import triton.language as tl

from aimc.ops.triton.reads import (
    at_features,
    at_keys,
    at_rows,
    codes_of,
    decay_since,
    dot,
    in_range,
    is_padding,
    key_positions,
    load_rows,
    matrix_at,
    operand_at,
    pulses_of,
    read_av,
    read_qk,
    read_sum,
    row_sum,
    shared,
    value_of,
)

__all__ = ["forward_kernel", "pulse_gradient_kernel", "stored_gradient_kernel"]


@triton.jit
def _program(machine, SPEC: tl.constexpr):
    """Queries `[T]`, their own block, batch, head and K/V head of a program per (query block, head, batch)."""
    head, batch = tl.program_id(1), tl.program_id(2)
    first = tl.program_id(0) * SPEC.block
    t = first + tl.arange(0, SPEC.block)
    return t, first // SPEC.rows, batch, head, head // (machine.n_heads // machine.n_kv_heads)


@triton.jit
def _kept_at(t, tile, batch, head, machine, SPEC: tl.constexpr):
    """Offsets of the rows of one sub-tile in `Kept.sums`, `[T, 1]`, in 64 bits; times D in `Kept.counts`."""
    row = (tl.cast(batch, tl.int64) * machine.n_heads + head) * machine.n_tokens + t[:, None]
    return row * machine.n_kept + tile


@triton.jit
def _keep(kept, counts, share, t, tile, batch, head, machine, SPEC: tl.constexpr):
    """Note which counters of a sub-tile were inside their range."""
    READOUT: tl.constexpr = SPEC.readout
    NORMALISER: tl.constexpr = SPEC.normaliser
    features = tl.arange(0, SPEC.padded_size)[None, :]
    at, written = _kept_at(t, tile, batch, head, machine, SPEC), (t < machine.n_tokens)[:, None]
    inside = in_range(counts, READOUT).to(tl.uint8)
    tl.store(kept.counts + at * SPEC.head_size + features, inside, mask=written & (features < SPEC.head_size))
    if SPEC.normaliser is not None:
        tl.store(kept.sums + at, in_range(share, NORMALISER).to(tl.uint8), mask=written)


# --- Forward
# -----------------------------------------------------------------------------------------------------------------


@triton.jit
def _charge_of(q, rest, t, block, MASKED: tl.constexpr, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """What one block of tokens brings to its sub-tile of the second array: charge `[T, D]` and Σφ `[T, 1]`."""
    VALUES: tl.constexpr = SPEC.values
    VALUE_CONSTANT: tl.constexpr = SPEC.value_constant
    decay = decay_since(t, block, machine, SPEC)
    relative, visible = read_qk(q, rest, t, decay, block, MASKED, batch, head, kv_head, machine, SPEC)
    phi = pulses_of(relative, visible)
    of_shared = shared(phi, VALUE_CONSTANT)
    charge = at_features(
        phi, machine.value_operands, VALUES, of_shared, VALUE_CONSTANT, decay, block, batch, kv_head, machine, SPEC
    )
    return charge, row_sum(phi)


@triton.jit
def _count(charge, pulse, t, tile, kept, KEEP: tl.constexpr, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """Codes of the counters of one sub-tile, `[T, D]`, and of its normaliser column, `[T, 1]` or zero."""
    READOUT: tl.constexpr = SPEC.readout
    NORMALISER: tl.constexpr = SPEC.normaliser
    counts = read_av(charge, t, tile, batch, head, kv_head, machine, SPEC)
    of_sum = tl.full((SPEC.block, 1), 0.0, tl.float32)
    share = of_sum
    if SPEC.normaliser is not None:
        share = read_sum(pulse, t, tile, batch, head, kv_head, machine, SPEC)
        of_sum = codes_of(share, NORMALISER)
    if KEEP:
        _keep(kept, counts, share, t, tile, batch, head, machine, SPEC)
    return codes_of(counts, READOUT), of_sum


@triton.jit
def forward_kernel(pulses, machine, out, sums, kept, KEEP: tl.constexpr, SPEC: tl.constexpr):
    """Digital sum of the sub-tiles' counts in units of `array.saturation_av`, divided by Σφ where there is a
    normaliser, `[B, T, H, D]`; what divided, `[B, H, T]`, into `sums`. One program per (query block, head, batch)."""
    READOUT: tl.constexpr = SPEC.readout
    NORMALISER: tl.constexpr = SPEC.normaliser
    KEY_CONSTANT: tl.constexpr = SPEC.key_constant
    t, own, batch, head, kv_head = _program(machine, SPEC)
    q = load_rows(matrix_at(pulses, batch * machine.n_heads + head, machine, SPEC), t, machine.n_tokens, SPEC)
    rest = shared(q, KEY_CONSTANT)
    total = tl.full((SPEC.block, SPEC.padded_size), 0.0, tl.float32)
    divisor = tl.full((SPEC.block, 1), 0.0, tl.float32)
    for block in range(tl.maximum(own - SPEC.tiles + 1, 0), own):
        charge, pulse = _charge_of(q, rest, t, block, False, batch, head, kv_head, machine, SPEC)
        codes, of_sum = _count(charge, pulse, t, block % SPEC.tiles, kept, KEEP, batch, head, kv_head, machine, SPEC)
        total += codes
        divisor += of_sum
    charge, pulse = _charge_of(q, rest, t, own, True, batch, head, kv_head, machine, SPEC)
    if own >= SPEC.tiles:  # what is left of the block being overwritten
        older, of_older = _charge_of(q, rest, t, own - SPEC.tiles, True, batch, head, kv_head, machine, SPEC)
        charge += older
        if SPEC.normaliser is not None:
            pulse += of_older
    codes, of_sum = _count(charge, pulse, t, own % SPEC.tiles, kept, KEEP, batch, head, kv_head, machine, SPEC)
    scale = tl.load(machine.of_heads.full_scale_av + head) / machine.levels.saturation_av
    total = value_of(total + codes, READOUT) * scale
    if SPEC.normaliser is not None:
        divisor = value_of(divisor + of_sum, NORMALISER) * machine.levels.full_scale_of_sum
        total = total / tl.maximum(divisor, machine.levels.least_sum)
        at = (batch * machine.n_heads + head) * machine.n_tokens + t[:, None]
        tl.store(sums + at, divisor, mask=(t < machine.n_tokens)[:, None])
    if machine.padding is not None:
        total = tl.where(is_padding(t, batch, machine)[:, None], 0.0, total)
    features = tl.arange(0, SPEC.padded_size)[None, :]
    row = (tl.cast(batch, tl.int64) * machine.n_tokens + t[:, None]) * machine.n_heads + head
    inside = (t < machine.n_tokens)[:, None] & (features < SPEC.head_size)
    tl.store(out + row * SPEC.head_size + features, total.to(out.dtype.element_ty), mask=inside)


# --- Backward
# ----------------------------------------------------------------------------------------------------------------


@triton.jit
def _load_gradient(grad, t, batch, head, machine, SPEC: tl.constexpr):
    """Gradient of the digital sum of a query block, `[T, D]` out of `[B, T, H, D]`; padded queries have none."""
    features = tl.arange(0, SPEC.padded_size)[None, :]
    row = (tl.cast(batch, tl.int64) * machine.n_tokens + t[:, None]) * machine.n_heads + head
    inside = (t < machine.n_tokens)[:, None] & (features < SPEC.head_size)
    d_out = tl.load(grad + row * SPEC.head_size + features, mask=inside, other=0.0)
    if machine.padding is not None:
        d_out = tl.where(is_padding(t, batch, machine)[:, None], 0.0, d_out)
    return d_out


@triton.jit
def _load_sum_gradient(d_sum, t, batch, head, machine, SPEC: tl.constexpr):
    """Gradient of Σφ of a query block, `[T, 1]`; zero without a normaliser. Padded queries have none."""
    of_sum = tl.full((SPEC.block, 1), 0.0, tl.float32)
    if d_sum is not None:
        at = (batch * machine.n_heads + head) * machine.n_tokens + t[:, None]
        of_sum = tl.load(d_sum + at, mask=(t < machine.n_tokens)[:, None], other=0.0)
        if machine.padding is not None:
            of_sum = tl.where(is_padding(t, batch, machine)[:, None], 0.0, of_sum)
    return of_sum


@triton.jit
def _behind_counters(d_out, d_sum, t, tile, kept, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """Gradients of the charge of a sub-tile `[T, D]` and of its Σφ `[T, 1]`, both times A_sat."""
    features = tl.arange(0, SPEC.padded_size)
    at, read = _kept_at(t, tile, batch, head, machine, SPEC), (t < machine.n_tokens)[:, None]
    held = read & (features < SPEC.head_size)[None, :]
    inside = tl.load(kept.counts + at * SPEC.head_size + features[None, :], mask=held, other=0)
    d_charge = tl.where(inside != 0, d_out, 0.0)
    if machine.columns_av.gain is not None:
        column = (kv_head * SPEC.tiles + tile) * SPEC.head_size + features
        gain = tl.load(machine.columns_av.gain + column, mask=features < SPEC.head_size, other=0.0)
        d_charge = d_charge * (1.0 + gain)[None, :]
    d_pulse = d_sum
    if SPEC.normaliser is not None:
        d_pulse = tl.where(tl.load(kept.sums + at, mask=read, other=0) != 0, d_sum, 0.0)
        if machine.columns_of_sum.gain is not None:
            d_pulse = d_pulse * (1.0 + tl.load(machine.columns_of_sum.gain + kv_head * SPEC.tiles + tile))
    return d_charge, d_pulse


@triton.jit
def _block_gradients(
    q, rest, d_out, d_sum, t, block, MASKED: tl.constexpr, kept, batch, head, kv_head, machine, SPEC: tl.constexpr
):
    """Back from the counters to both arrays, for one query block and one key block.

    Returns φ `[T, S]`, the gradient of A's charge `[T, D]`, that of `S / S_sat − θ` `[T, S]`, both times A_sat, and the
    decay. A_sat is left to the caller, which divides sums: small operands would be lost in half precision.
    """
    VALUES: tl.constexpr = SPEC.values
    VALUE_CONSTANT: tl.constexpr = SPEC.value_constant
    decay = decay_since(t, block, machine, SPEC)
    relative, visible = read_qk(q, rest, t, decay, block, MASKED, batch, head, kv_head, machine, SPEC)
    tile = block % SPEC.tiles
    d_charge, d_pulse = _behind_counters(d_out, d_sum, t, tile, kept, batch, head, kv_head, machine, SPEC)
    of_shared = shared(d_charge, VALUE_CONSTANT)
    d_phi = at_keys(
        d_charge, machine.value_operands, VALUES, of_shared, VALUE_CONSTANT, decay, block, batch, kv_head, machine, SPEC
    )
    if SPEC.normaliser is not None:
        d_phi = d_phi + d_pulse
    passes = visible & (relative >= 0.0) & (relative <= 1.0)
    return pulses_of(relative, visible), d_charge, tl.where(passes, d_phi, 0.0), decay


@triton.jit
def _before_columns_qk(d_relative, block, kv_head, machine, SPEC: tl.constexpr):
    """Gradient of a charge that goes through columns with a gain error."""
    if machine.columns_qk.gain is not None:
        column = kv_head * SPEC.window + key_positions(block, SPEC) % SPEC.window
        d_relative = d_relative * (1.0 + tl.load(machine.columns_qk.gain + column))[None, :]
    return d_relative


@triton.jit
def _pulse_gradient(
    q, rest, d_out, d_sum, t, block, MASKED: tl.constexpr, kept, batch, head, kv_head, machine, SPEC: tl.constexpr
):
    """What one block of keys adds to the gradients of the pulses `[T, D]` and of the threshold, by query `[T, 1]`."""
    KEYS: tl.constexpr = SPEC.keys
    KEY_CONSTANT: tl.constexpr = SPEC.key_constant
    _, _, d_relative, decay = _block_gradients(
        q, rest, d_out, d_sum, t, block, MASKED, kept, batch, head, kv_head, machine, SPEC
    )
    of_threshold = row_sum(d_relative)
    d_relative = _before_columns_qk(d_relative, block, kv_head, machine, SPEC)
    of_shared = shared(d_relative, KEY_CONSTANT)
    of_pulses = at_features(
        d_relative, machine.key_operands, KEYS, of_shared, KEY_CONSTANT, decay, block, batch, kv_head, machine, SPEC
    )
    return of_pulses, of_threshold


@triton.jit
def pulse_gradient_kernel(pulses, grad, d_sum, machine, kept, d_pulses, d_threshold, SPEC: tl.constexpr):
    """Gradients of the pulses over S_sat, `[B, H, T, D]`, and of the threshold by query, `[B, H, T]` (None: there is
    none); one program per (query block, head, batch)."""
    KEY_CONSTANT: tl.constexpr = SPEC.key_constant
    t, own, batch, head, kv_head = _program(machine, SPEC)
    index = batch * machine.n_heads + head
    q = load_rows(matrix_at(pulses, index, machine, SPEC), t, machine.n_tokens, SPEC)
    rest = shared(q, KEY_CONSTANT)
    d_out = _load_gradient(grad, t, batch, head, machine, SPEC)
    of_sum = _load_sum_gradient(d_sum, t, batch, head, machine, SPEC)
    total = tl.full((SPEC.block, SPEC.padded_size), 0.0, tl.float32)
    of_threshold = tl.full((SPEC.block, 1), 0.0, tl.float32)
    for block in range(tl.maximum(own - SPEC.tiles + 1, 0), own):
        of_block, of_rows = _pulse_gradient(
            q, rest, d_out, of_sum, t, block, False, kept, batch, head, kv_head, machine, SPEC
        )
        total += of_block
        of_threshold += of_rows
    for turn in range(2):  # its own block, and what is left of the block being overwritten
        block = own - turn * SPEC.tiles
        if block >= 0:
            of_block, of_rows = _pulse_gradient(
                q, rest, d_out, of_sum, t, block, True, kept, batch, head, kv_head, machine, SPEC
            )
            total += of_block
            of_threshold += of_rows
    offsets, inside = at_rows(t, machine.n_tokens, SPEC)
    tl.store(matrix_at(d_pulses, index, machine, SPEC) + offsets, total / machine.levels.saturation_av, mask=inside)
    if d_threshold is not None:
        at = index * machine.n_tokens + t[:, None]
        of_threshold = of_threshold / -machine.levels.saturation_av
        tl.store(d_threshold + at, of_threshold, mask=(t < machine.n_tokens)[:, None])


@triton.jit
def _add_products(sums, weights, x, decay, STACK: tl.constexpr, SPEC: tl.constexpr):
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
def _zeros(STACK: tl.constexpr, SPEC: tl.constexpr):
    LENGTH: tl.constexpr = STACK.length
    sums = ()
    for _ in tl.static_range(LENGTH):
        sums = sums + (tl.full((SPEC.rows, SPEC.padded_size), 0.0, tl.float32),)  # type: ignore[assignment]
    return sums


@triton.jit
def _store_operands(stack, sums, STACK: tl.constexpr, block, batch, kv_head, machine, SPEC: tl.constexpr):
    LENGTH: tl.constexpr = STACK.length
    offsets, inside = at_rows(key_positions(block, SPEC), machine.n_tokens, SPEC)
    for place in tl.static_range(LENGTH):
        value = sums[place] / machine.levels.saturation_av
        tl.store(operand_at(stack, place, batch, kv_head, machine, SPEC) + offsets, value, mask=inside)


@triton.jit
def stored_gradient_kernel(pulses, grad, d_sum, machine, kept, d_keys, d_values, SPEC: tl.constexpr):
    """Gradients of the graded operands of both arrays, `[P, B, H_kv, T, D]`; one program per (key block, K/V head,
    batch).

    The query heads of the group are summed here, in a fixed order, so that the result does not depend on the scheduler.
    """
    KEY_GRADIENTS: tl.constexpr = SPEC.key_gradients
    VALUE_GRADIENTS: tl.constexpr = SPEC.value_gradients
    KEY_CONSTANT: tl.constexpr = SPEC.key_constant
    block, kv_head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group = machine.n_heads // machine.n_kv_heads
    of_keys, of_values = _zeros(KEY_GRADIENTS, SPEC), _zeros(VALUE_GRADIENTS, SPEC)
    last = tl.minimum((block + SPEC.tiles + 1) * SPEC.rows, machine.n_tokens)
    for head in range(kv_head * group, (kv_head + 1) * group):
        index = batch * machine.n_heads + head
        for first in range(block * SPEC.rows, last, SPEC.block):
            t = first + tl.arange(0, SPEC.block)
            q = load_rows(matrix_at(pulses, index, machine, SPEC), t, machine.n_tokens, SPEC)
            d_out = _load_gradient(grad, t, batch, head, machine, SPEC)
            of_sum = _load_sum_gradient(d_sum, t, batch, head, machine, SPEC)
            here = block
            if SPEC.reloads:  # the same, but the compiler cannot know
                here = tl.minimum(block, first // SPEC.rows)
            phi, d_charge, d_relative, decay = _block_gradients(
                q, shared(q, KEY_CONSTANT), d_out, of_sum, t, here, True, kept, batch, head, kv_head, machine, SPEC
            )
            d_relative = _before_columns_qk(d_relative, block, kv_head, machine, SPEC)
            of_keys = _add_products(of_keys, d_relative, q, decay, KEY_GRADIENTS, SPEC)
            of_values = _add_products(of_values, phi, d_charge, decay, VALUE_GRADIENTS, SPEC)
    _store_operands(d_keys, of_keys, KEY_GRADIENTS, block, batch, kv_head, machine, SPEC)
    _store_operands(d_values, of_values, VALUE_GRADIENTS, block, batch, kv_head, machine, SPEC)
