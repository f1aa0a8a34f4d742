"""The three Triton kernels of gain-cell attention: outputs, gradient of the pulses, gradients of the stored keys and
values.

Time is cut in blocks of R tokens, so that block n fills one sub-tile, `n mod J`. A query in block i sees blocks i−J+1 …
i−1 whole, each a sub-tile of its own. Its own block i (up to the query) and block i−J (what is not overwritten yet) lie
in the same sub-tile and share one charge, one clip and one code: they are each other's *partner*. One condition on the
age of a key, `0 <= t−s < W`, draws both staircases.

No `from __future__ import annotations` here: Triton reads the annotations.
"""

import triton
import triton.language as tl

from aimc.ops.triton.cell import (
    Spec,
    charge_at_features,
    charge_at_keys,
    quantize_counts,
    read_noise_av,
    read_noise_qk,
    stored_gradient,
)

__all__ = ["Spec", "forward_kernel", "pulse_gradient_kernel", "stored_gradient_kernel"]


# --- Reading memory
# --------------------------------------------------------------------------------------------------------


@triton.jit
def _at_rows(rows, n_rows, SPEC: tl.constexpr):
    """Offsets and mask of a block of rows of a `[n_rows, D]` matrix."""
    features = tl.arange(0, SPEC.padded_size)
    offsets = rows[:, None] * SPEC.head_size + features[None, :]
    return offsets, (rows < n_rows)[:, None] & (features < SPEC.head_size)[None, :]


@triton.jit
def _load_rows(matrix, rows, n_rows, SPEC: tl.constexpr):
    offsets, inside = _at_rows(rows, n_rows, SPEC)
    return tl.load(matrix + offsets, mask=inside, other=0.0)


@triton.jit
def _matrix(tensor, index, machine, SPEC: tl.constexpr):
    """Start of the `[T, D]` matrix number `index`, in 64 bits because all heads together may hold more than 2^31
    numbers."""
    return tensor + tl.to_tensor(index).to(tl.int64) * (machine.n_tokens * SPEC.head_size)


@triton.jit
def _key_positions(block, SPEC: tl.constexpr):
    return block * SPEC.rows + tl.arange(0, SPEC.rows)


@triton.jit
def _load_errors(table, block, kv_head, SPEC: tl.constexpr):
    """A block of a `[H_kv, W, D]` table of cell errors, or None."""
    if table is None:
        return None
    else:
        slots = (block % SPEC.tiles) * SPEC.rows + tl.arange(0, SPEC.rows)
        return _load_rows(table + kv_head * (SPEC.window * SPEC.head_size), slots, SPEC.window, SPEC)


@triton.jit
def _load_cells(cells, block, batch, kv_head, machine, SPEC: tl.constexpr):
    """Stored voltages of a block `[R, D]`, with the errors of the cells they are in."""
    u = _load_rows(
        _matrix(cells.u, batch * machine.n_kv_heads + kv_head, machine, SPEC),
        _key_positions(block, SPEC),
        machine.n_tokens,
        SPEC,
    )
    return u, _load_errors(cells.gain, block, kv_head, SPEC), _load_errors(cells.offset_v, block, kv_head, SPEC)


@triton.jit
def _load_padding(positions, batch, machine):
    """Which tokens are padding; only where there is a mask."""
    row = machine.padding + batch * machine.n_tokens
    return tl.load(row + positions, mask=positions < machine.n_tokens, other=0) != 0


# --- The two arrays
# --------------------------------------------------------------------------------------------------------


@triton.jit
def _read_qk(q, t, block, keys, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """First array: `S/S_sat`, which keys are visible, and the decay, all `[T, S]`."""
    s = _key_positions(block, SPEC)
    ages = t[:, None] - s[None, :]
    visible = (ages >= 0) & (ages < SPEC.window)
    if machine.padding is not None:
        visible = visible & (_load_padding(s, batch, machine) == 0)[None, :]
    decay = tl.exp(tl.maximum(ages, 0).to(tl.float32) * -machine.levels.decay_per_token)
    relative = charge_at_keys(q, keys, decay, SPEC) / machine.levels.saturation_qk
    column = kv_head * SPEC.window + s % SPEC.window
    if machine.columns_qk.gain is not None:
        relative = relative * (1.0 + tl.load(machine.columns_qk.gain + column))[None, :]
    if machine.columns_qk.offset is not None:
        relative = relative + tl.load(machine.columns_qk.offset + column)[None, :]
    if SPEC.read_noise_qk:
        relative = relative + machine.levels.read_noise_qk * read_noise_qk(machine, batch, head, t, s)
    return relative, visible, decay


@triton.jit
def _pulses(relative, visible):
    """Charge-to-pulse circuit: φ."""
    return tl.where(visible, tl.minimum(tl.maximum(relative, 0.0), 1.0), 0.0)


@triton.jit
def _charge_of(q, t, block, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """Charge that one block of tokens brings to its sub-tile of the second array, `[T, D]`."""
    keys = _load_cells(machine.key_cells, block, batch, kv_head, machine, SPEC)
    relative, visible, decay = _read_qk(q, t, block, keys, batch, head, kv_head, machine, SPEC)
    values = _load_cells(machine.value_cells, block, batch, kv_head, machine, SPEC)
    return charge_at_features(_pulses(relative, visible), values, decay, SPEC)


@triton.jit
def _column_gain_av(tile, kv_head, machine, SPEC: tl.constexpr):
    """`1 + gain` of the counters of a sub-tile, `[1, D]`; only where there is a gain error."""
    features = tl.arange(0, SPEC.padded_size)
    column = (kv_head * SPEC.tiles + tile) * SPEC.head_size + features
    return 1.0 + tl.load(machine.columns_av.gain + column, mask=features < SPEC.head_size, other=0.0)[None, :]


@triton.jit
def _read_av(charge, t, tile, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """Second array: `A` before its counter, in full scales."""
    features = tl.arange(0, SPEC.padded_size)
    counts = charge / machine.levels.saturation_av
    if machine.columns_av.gain is not None:
        counts = counts * _column_gain_av(tile, kv_head, machine, SPEC)
    if machine.columns_av.offset is not None:
        column = (kv_head * SPEC.tiles + tile) * SPEC.head_size + features
        counts = (
            counts + tl.load(machine.columns_av.offset + column, mask=features < SPEC.head_size, other=0.0)[None, :]
        )
    if SPEC.read_noise_av:
        counts = counts + machine.levels.read_noise_av * read_noise_av(machine, tile, batch, head, t, features)
    return counts


# --- Kernels
# ---------------------------------------------------------------------------------------------------------------


@triton.jit
def forward_kernel(pulses, machine, out, SPEC: tl.constexpr):
    """Digital sum of the sub-tiles' counts, `[B, H, T, D]`; one program per (query block, head, batch)."""
    head, batch = tl.program_id(1), tl.program_id(2)
    kv_head = head // (machine.n_heads // machine.n_kv_heads)
    t = tl.program_id(0) * SPEC.block + tl.arange(0, SPEC.block)
    own = tl.program_id(0) * SPEC.block // SPEC.rows
    index = batch * machine.n_heads + head
    q = _load_rows(_matrix(pulses, index, machine, SPEC), t, machine.n_tokens, SPEC)
    total = tl.full((SPEC.block, SPEC.padded_size), 0.0, tl.float32)
    for block in range(tl.maximum(own - SPEC.tiles + 1, 0), own + 1):
        charge = _charge_of(q, t, block, batch, head, kv_head, machine, SPEC)
        if (block == own) & (own >= SPEC.tiles):  # what is left of the block being overwritten
            charge += _charge_of(q, t, own - SPEC.tiles, batch, head, kv_head, machine, SPEC)
        total += quantize_counts(_read_av(charge, t, block % SPEC.tiles, batch, head, kv_head, machine, SPEC), SPEC)
    if machine.padding is not None:
        total = tl.where(_load_padding(t, batch, machine)[:, None], 0.0, total)
    offsets, inside = _at_rows(t, machine.n_tokens, SPEC)
    tl.store(_matrix(out, index, machine, SPEC) + offsets, total, mask=inside)


@triton.jit
def _load_query(pulses, grad_out, t, batch, head, machine, SPEC: tl.constexpr):
    """Pulses and the gradient of the output of a query block, `[T, D]` each; padded queries have none."""
    index = batch * machine.n_heads + head
    q = _load_rows(_matrix(pulses, index, machine, SPEC), t, machine.n_tokens, SPEC)
    d_out = _load_rows(_matrix(grad_out, index, machine, SPEC), t, machine.n_tokens, SPEC)
    if machine.padding is not None:
        d_out = tl.where(_load_padding(t, batch, machine)[:, None], 0.0, d_out)
    return q, d_out


@triton.jit
def _partner(block, own, SPEC: tl.constexpr):
    """The other block in the sub-tile of `block` that queries of block `own` see; negative: there is none."""
    return tl.where(block == own, own - SPEC.tiles, tl.where(block == own - SPEC.tiles, own, -1))


@triton.jit
def _block_gradients(q, d_out, t, own, block, keys, values, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """Back from the counter to both arrays, for one query block and one key block.

    Returns φ `[T, S]`, the gradient of A times A_sat `[T, D]`, the gradient of S times S_sat `[T, S]`, and the decay.
    The full
    scales are left to the caller, which divides sums: small operands would be lost in half precision.
    """
    relative, visible, decay = _read_qk(q, t, block, keys, batch, head, kv_head, machine, SPEC)
    phi = _pulses(relative, visible)
    charge = charge_at_features(phi, values, decay, SPEC)
    partner = _partner(block, own, SPEC)
    if partner >= 0:  # the counter's clip is decided by both
        charge += _charge_of(q, t, partner, batch, head, kv_head, machine, SPEC)
    tile = block % SPEC.tiles
    counts = _read_av(charge, t, tile, batch, head, kv_head, machine, SPEC)
    d_counts = tl.where((counts >= SPEC.v_min) & (counts <= SPEC.v_max), d_out, 0.0)
    if machine.columns_av.gain is not None:
        d_counts = d_counts * _column_gain_av(tile, kv_head, machine, SPEC)
    d_phi = charge_at_keys(d_counts, values, decay, SPEC) / machine.levels.saturation_av
    d_relative = tl.where(visible & (relative >= 0.0) & (relative <= 1.0), d_phi, 0.0)
    if machine.columns_qk.gain is not None:
        column = kv_head * SPEC.window + _key_positions(block, SPEC) % SPEC.window
        d_relative = d_relative * (1.0 + tl.load(machine.columns_qk.gain + column))[None, :]
    return phi, d_counts, d_relative, decay


@triton.jit
def pulse_gradient_kernel(pulses, grad_out, machine, d_pulses, SPEC: tl.constexpr):
    """Gradient of the pulses, `[B, H, T, D]`; one program per (query block, head, batch)."""
    head, batch = tl.program_id(1), tl.program_id(2)
    kv_head = head // (machine.n_heads // machine.n_kv_heads)
    t = tl.program_id(0) * SPEC.block + tl.arange(0, SPEC.block)
    own = tl.program_id(0) * SPEC.block // SPEC.rows
    q, d_out = _load_query(pulses, grad_out, t, batch, head, machine, SPEC)
    total = tl.full((SPEC.block, SPEC.padded_size), 0.0, tl.float32)
    for block in range(tl.maximum(own - SPEC.tiles, 0), own + 1):
        keys = _load_cells(machine.key_cells, block, batch, kv_head, machine, SPEC)
        values = _load_cells(machine.value_cells, block, batch, kv_head, machine, SPEC)
        _, _, d_relative, decay = _block_gradients(
            q, d_out, t, own, block, keys, values, batch, head, kv_head, machine, SPEC
        )
        total += charge_at_features(d_relative, keys, decay, SPEC)
    offsets, inside = _at_rows(t, machine.n_tokens, SPEC)
    matrix = _matrix(d_pulses, batch * machine.n_heads + head, machine, SPEC)
    tl.store(matrix + offsets, total / machine.levels.saturation_qk, mask=inside)


@triton.jit
def stored_gradient_kernel(pulses, grad_out, machine, d_key, d_value, SPEC: tl.constexpr):
    """Gradients of the stored keys and values, `[B, H_kv, T, D]`; one program per (key block, K/V head, batch).

    The query heads of the group are summed here, in a fixed order, so that the result does not depend on the scheduler.
    """
    block, kv_head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group = machine.n_heads // machine.n_kv_heads
    d_k = tl.full((SPEC.rows, SPEC.padded_size), 0.0, tl.float32)
    d_v = tl.full((SPEC.rows, SPEC.padded_size), 0.0, tl.float32)
    last = tl.minimum((block + SPEC.tiles + 1) * SPEC.rows, machine.n_tokens)
    for head in range(kv_head * group, (kv_head + 1) * group):
        for first in range(block * SPEC.rows, last, SPEC.block):
            # Always `block`, but the compiler cannot know: it would keep every operand of both arrays in shared memory
            # over the loop.
            here = tl.minimum(block, first // SPEC.rows)
            keys = _load_cells(machine.key_cells, here, batch, kv_head, machine, SPEC)
            values = _load_cells(machine.value_cells, here, batch, kv_head, machine, SPEC)
            t = first + tl.arange(0, SPEC.block)
            q, d_out = _load_query(pulses, grad_out, t, batch, head, machine, SPEC)
            phi, d_counts, d_relative, decay = _block_gradients(
                q, d_out, t, first // SPEC.rows, block, keys, values, batch, head, kv_head, machine, SPEC
            )
            d_k += stored_gradient(d_relative, q, keys, decay, machine.levels.surrogate_slope, SPEC)
            d_v += stored_gradient(phi, d_counts, values, decay, machine.levels.surrogate_slope, SPEC)
    offsets, inside = _at_rows(_key_positions(block, SPEC), machine.n_tokens, SPEC)
    index = batch * machine.n_kv_heads + kv_head
    tl.store(_matrix(d_key, index, machine, SPEC) + offsets, d_k / machine.levels.saturation_qk, mask=inside)
    tl.store(_matrix(d_value, index, machine, SPEC) + offsets, d_v / machine.levels.saturation_av, mask=inside)
