"""What one block of gain cells does, in Triton: loads, the three contractions, the two reads and the counters.

Every function is the twin of an eager one (named in its docstring) on a block held in registers. Stored operands come
with the decay of their own position inside the block taken out (:mod:`aimc.ops.triton.operands`), so that the powers of
one number per query, its decay since the block began, are all that is left between the products: Horner's rule.

No `from __future__ import annotations` here: Triton reads the annotations.
"""

import triton
import triton.language as tl

from aimc.ops.triton.noise import read_noise_av, read_noise_of_sum, read_noise_qk

_ROUNDER = tl.constexpr(12582912.0)  # 1.5·2^23: adding it leaves no bit behind the point, halves go to even


# --- Memory
# ------------------------------------------------------------------------------------------------------------------


@triton.jit
def program(machine, SPEC: tl.constexpr):
    """Queries `[T]`, their own block, batch, head and K/V head of a program per (query block, head, batch)."""
    head, batch = tl.program_id(1), tl.program_id(2)
    first = tl.program_id(0) * SPEC.block
    t = first + tl.arange(0, SPEC.block)
    return t, first // SPEC.rows, batch, head, head // (machine.n_heads // machine.n_kv_heads)


@triton.jit
def row_at(t, batch, head, machine):
    """Offsets `[T, 1]` in what there is of each query, `[B, H, T]`."""
    return (batch * machine.n_heads + head) * machine.n_tokens + t[:, None]


@triton.jit
def of_rows(numbers, t, batch, head, machine):
    """What there is of each query, `[T, 1]` out of `[B, H, T]`; one behind the text, which may divide."""
    at = row_at(t, batch, head, machine)
    return tl.load(numbers + at, mask=(t < machine.n_tokens)[:, None], other=1.0)


@triton.jit
def at_rows(rows, n_rows, SPEC: tl.constexpr):
    """Offsets and mask of a block of rows of a `[n_rows, D]` matrix."""
    features = tl.arange(0, SPEC.padded_size)
    offsets = rows[:, None] * SPEC.head_size + features[None, :]
    return offsets, (rows < n_rows)[:, None] & (features < SPEC.head_size)[None, :]


@triton.jit
def load_rows(matrix, rows, n_rows, SPEC: tl.constexpr):
    """Rows of a `[n_rows, D]` matrix; zero outside."""
    offsets, inside = at_rows(rows, n_rows, SPEC)
    return tl.load(matrix + offsets, mask=inside, other=0.0)


@triton.jit
def matrix_at(tensor, index, machine, SPEC: tl.constexpr):
    """Start of the `[T, D]` matrix number `index`, in 64 bits because all heads together may hold more than 2^31
    numbers."""
    return tensor + tl.cast(index, tl.int64) * (machine.n_tokens * SPEC.head_size)


@triton.jit
def operand_at(stack, place: tl.constexpr, batch, kv_head, machine, SPEC: tl.constexpr):
    """Start of the `[T, D]` matrix of one operand of a stack `[P, B, H_kv, T, D]`."""
    index = (place * machine.n_batch + batch) * machine.n_kv_heads + kv_head
    return matrix_at(stack, index, machine, SPEC)


@triton.jit
def key_positions(block, SPEC: tl.constexpr):
    """Positions of the keys of a block, `[S]`."""
    return block * SPEC.rows + tl.arange(0, SPEC.rows)


@triton.jit
def last_query(block, machine, SPEC: tl.constexpr):
    """One behind the last query that sees a block."""
    return tl.minimum((block + SPEC.tiles + 1) * SPEC.rows, machine.n_tokens)


@triton.jit
def is_padding(positions, batch, machine):
    """Which tokens are padding; only where there is a mask."""
    row = machine.padding + batch * machine.n_tokens
    return tl.load(row + positions, mask=positions < machine.n_tokens, other=0) != 0


@triton.jit
def is_protected(t, s, batch, machine):
    """Which tokens `[S]` are digital for the queries `[T]`, `[T, S]` (aimc.ops.effects.protection.protected_tokens);
    only where there is a memory."""
    protected = t[:, None] - s[None, :] < machine.memory.n_recent
    if machine.memory.sink is not None:
        row = machine.memory.sink + batch * machine.n_tokens
        protected = protected | (tl.load(row + s, mask=s < machine.n_tokens, other=0) != 0)[None, :]
    return protected


@triton.jit
def decay_since(t, block, machine, SPEC: tl.constexpr):
    """Decay of the queries since a block began, `[T, 1]`; above one for a query inside it, whose keys have the rest in
    their operands. Where cells leak apart, what takes its place: x of :mod:`aimc.ops.triton.spread`."""
    since = (t - block * SPEC.rows).to(tl.float32)
    if SPEC.spreads:
        factor = since / machine.levels.half_length - 1.0
    else:
        factor = tl.exp(since * -machine.levels.decay_per_token)
    return factor[:, None]


@triton.jit
def load_gradient(grad, t, batch, head, machine, SPEC: tl.constexpr):
    """Gradient of the digital sum of a query block, `[T, D]` out of `[B, T, H, D]`; padded queries have none."""
    features = tl.arange(0, SPEC.padded_size)[None, :]
    row = (tl.cast(batch, tl.int64) * machine.n_tokens + t[:, None]) * machine.n_heads + head
    inside = (t < machine.n_tokens)[:, None] & (features < SPEC.head_size)
    d_out = tl.load(grad + row * SPEC.head_size + features, mask=inside, other=0.0)
    if machine.padding is not None:
        d_out = tl.where(is_padding(t, batch, machine)[:, None], 0.0, d_out)
    return d_out


@triton.jit
def load_sum_gradient(d_sum, t, batch, head, machine, SPEC: tl.constexpr):
    """Gradient of Σφ, or of the sum of all shares, of a query block, `[T, 1]`; zero without a normaliser and a softmax.
    Padded queries have none."""
    of_sum = tl.full((SPEC.block, 1), 0.0, tl.float32)
    if d_sum is not None:
        at = row_at(t, batch, head, machine)
        of_sum = tl.load(d_sum + at, mask=(t < machine.n_tokens)[:, None], other=0.0)
        if machine.padding is not None:
            of_sum = tl.where(is_padding(t, batch, machine)[:, None], 0.0, of_sum)
    return of_sum


# --- Contractions
# ------------------------------------------------------------------------------------------------------------


@triton.jit
def dot(a, b, sum, SPEC: tl.constexpr):
    """`sum + a·b`, factors in the operands' dtype."""
    a, b = a.to(SPEC.operand_dtype).to(SPEC.dot_dtype), b.to(SPEC.operand_dtype).to(SPEC.dot_dtype)
    return tl.dot(a, b, acc=sum, input_precision=SPEC.precision, out_dtype=tl.float32)


@triton.jit
def row_sum(x):
    """`[N, 1]`. Not `tl.sum`: Triton's own jit functions run interpreted only if nothing has imported Triton before."""
    return tl.reduce(x, 1, tl.standard._sum_combine)[:, None]


@triton.jit
def row_largest(x):
    """`[N, 1]`; see :func:`row_sum`."""
    return tl.reduce(x, 1, tl.standard._elementwise_max)[:, None]


@triton.jit
def shared(x, CONSTANT: tl.constexpr):
    """Charge of cells that all have one operand of power 0, `[T, 1]` from weights `[T, …]`; without one, zero."""
    if CONSTANT == 0.0:
        return tl.full((x.shape[0], 1), 0.0, tl.float32)
    else:
        return CONSTANT * row_sum(x.to(tl.float32))


@triton.jit
def contracted(
    x, OF_KEYS: tl.constexpr, OVER_FEATURES: tl.constexpr, decay, block, batch, kv_head, machine, SPEC: tl.constexpr
):
    """Weights times the cells of the first (`OF_KEYS`) or second array, but for the operand that all cells share
    (:func:`shared`): over the features, `Σ_j r_t^j·Σ_d x_td·operand_j,sd` (aimc.ops.effects.array.charge_qk), `[T, S]`
    from `[T, D]`; or over the keys of a block, `Σ_j r_t^j·Σ_s x_ts·operand_j,sd` (charge_av), `[T, D]` from `[T, S]`.
    """
    stack = machine.key_operands if OF_KEYS else machine.value_operands
    STACK: tl.constexpr = SPEC.keys if OF_KEYS else SPEC.values
    WIDTH: tl.constexpr = SPEC.rows if OVER_FEATURES else SPEC.padded_size
    rows = key_positions(block, SPEC)
    charge = tl.full((SPEC.block, WIDTH), 0.0, tl.float32)
    for k in tl.static_range(SPEC.highest + 1):
        if k > 0:
            charge = charge * decay
        if STACK.bits >> (SPEC.highest - k) & 1:
            place = operand_at(stack, SPEC.highest - k - STACK.first, batch, kv_head, machine, SPEC)
            operand = load_rows(place, rows, machine.n_tokens, SPEC)
            charge = dot(x, tl.trans(operand) if OVER_FEATURES else operand, charge, SPEC)
    return charge


# --- The two arrays
# ----------------------------------------------------------------------------------------------------------


@triton.jit
def read_qk(q, rest, t, decay, block, MASKED: tl.constexpr, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """First array: `S / S_sat − θ`, and which keys are visible, `[T, S]`; from the pulses, and their charge in the
    operand that all cells share, `[T, 1]`.

    With `MASKED` some keys of the block are of the future or outside the window.
    """
    relative = rest + contracted(q, True, True, decay, block, batch, kv_head, machine, SPEC)
    s = key_positions(block, SPEC)
    column = kv_head * SPEC.window + s % SPEC.window
    if machine.columns_qk.gain is not None:
        relative = relative * (1.0 + tl.load(machine.columns_qk.gain + column))[None, :]
    if machine.columns_qk.offset is not None:
        relative = relative + tl.load(machine.columns_qk.offset + column)[None, :]
    if SPEC.read_noise_qk:
        relative += machine.levels.read_noise_qk * read_noise_qk(machine, batch, head, t, block, SPEC)
    if machine.of_heads.threshold is not None:
        relative = relative - tl.load(machine.of_heads.threshold + head)
    visible = tl.full((SPEC.block, SPEC.rows), True, tl.int1)
    if MASKED:
        ages = t[:, None] - s[None, :]
        visible = ages.to(tl.uint32) < SPEC.window  # and not below zero
    if machine.padding is not None:
        visible = visible & (is_padding(s, batch, machine) == 0)[None, :]
    if SPEC.protects:
        visible = visible & (is_protected(t, s, batch, machine) == 0)
    return relative, visible


@triton.jit
def pulses_of(relative, visible):
    """Charge-to-pulse circuit: φ (aimc.ops.effects.activation.charge_to_pulse)."""
    return tl.where(visible, tl.minimum(tl.maximum(relative, 0.0), 1.0), 0.0)


@triton.jit
def with_columns(x, gain, offset, column, inside):
    """aimc.ops.effects.columns.with_columns for the columns at `column`."""
    if gain is not None:
        x = x * (1.0 + tl.load(gain + column, mask=inside, other=0.0))[None, :]
    if offset is not None:
        x = x + tl.load(offset + column, mask=inside, other=0.0)[None, :]
    return x


@triton.jit
def read_av(charge, t, tile, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """Second array: `A` before its counter, in full scales, `[T, D]`."""
    features = tl.arange(0, SPEC.padded_size)
    counts = charge * (1.0 / tl.load(machine.of_heads.full_scale_av + head))
    column = (kv_head * SPEC.tiles + tile) * SPEC.head_size + features
    counts = with_columns(counts, machine.columns_av.gain, machine.columns_av.offset, column, features < SPEC.head_size)
    if SPEC.read_noise_av:
        counts += machine.levels.read_noise_av * read_noise_av(machine, tile, batch, head, t, SPEC)
    return counts


@triton.jit
def read_sum(pulse, t, tile, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """Normaliser column: Σφ `[T, 1]` before its counter, in full scales (aimc.ops.effects.normaliser.charge_of_sum)."""
    share = pulse * (1.0 / tl.load(machine.of_heads.full_scale_of_sum + head))
    column = kv_head * SPEC.tiles + tile
    if machine.columns_of_sum.gain is not None:
        share = share * (1.0 + tl.load(machine.columns_of_sum.gain + column))
    if machine.columns_of_sum.offset is not None:
        share = share + tl.load(machine.columns_of_sum.offset + column)
    if SPEC.read_noise_av:
        share += machine.levels.read_noise_av * read_noise_of_sum(machine, tile, batch, head, t, SPEC)
    return share


# --- Converters
# --------------------------------------------------------------------------------------------------------------


@triton.jit
def rounded(x):
    """Nearest integer, halves to even, for magnitudes below 2^22."""
    return (x + _ROUNDER) - _ROUNDER


@triton.jit
def codes_of(x, COUNTER: tl.constexpr):
    """aimc.ops.effects.converters.adc in codes, so that sums of codes are exact: :func:`value_of` makes numbers of
    them."""
    x = tl.minimum(tl.maximum(x, COUNTER.v_min), COUNTER.v_max)
    if COUNTER.inl_curvature != 0:
        x += COUNTER.inl_curvature * (x - COUNTER.v_min) * (COUNTER.v_max - x)
    if COUNTER.steps > 0:
        x = rounded((x - COUNTER.zero) * COUNTER.steps) + COUNTER.zero * COUNTER.steps
    return x


@triton.jit
def value_of(codes, COUNTER: tl.constexpr, FAST: tl.constexpr):
    """What a sum of codes stands for."""
    if COUNTER.steps > 0:
        return _over(codes, COUNTER.steps, FAST)
    else:
        return codes


@triton.jit
def _over(codes, STEPS: tl.constexpr, FAST: tl.constexpr):
    """Codes over how many there are per unit, rounded once or, `FAST`, twice."""
    if FAST:
        return codes * (1.0 / STEPS)
    else:
        return tl.div_rn(codes, tl.full(codes.shape, STEPS, tl.float32))


@triton.jit
def in_range(x, COUNTER: tl.constexpr):
    """Where a counter passes a gradient."""
    return (x >= COUNTER.v_min) & (x <= COUNTER.v_max)


@triton.jit
def converted(x, DAC: tl.constexpr, FAST: tl.constexpr):
    """aimc.ops.effects.converters.dac."""
    level = tl.minimum(tl.maximum(x, DAC.v_min), DAC.v_max)
    if DAC.steps > 0:
        code = rounded((level - DAC.zero) * DAC.steps)
        level = _over(code, DAC.steps, FAST) + DAC.zero
        if DAC.clips:
            level = tl.minimum(tl.maximum(level, DAC.v_min), DAC.v_max)
    if DAC.inl_curvature != 0:
        level += DAC.inl_curvature * (level - DAC.v_min) * (DAC.v_max - level)
    return level
