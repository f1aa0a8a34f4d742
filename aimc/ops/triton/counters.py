"""What a forward pass keeps of the counters, in Triton: whether each was inside its range; and the way back through
them.

No `from __future__ import annotations` here: Triton reads the annotations.
"""

import triton
import triton.language as tl

from aimc.ops.triton.reads import row_sum
from aimc.ops.triton.spec import BITS

_BITS = tl.constexpr(BITS)


@triton.jit
def _kept_at(t, place, batch, head, machine):
    """Offsets of what is kept of one sub-tile in `Kept.sums`, `[T, 1]`, in 64 bits; times the words in `Kept.counts`. A
    sub-tile's place is how many blocks it lies before the query's own."""
    row = (tl.cast(batch, tl.int64) * machine.n_heads + head) * machine.n_tokens + t[:, None]
    return row * machine.n_kept + place


@triton.jit
def keep_inside(kept, inside, sum_inside, t, place, batch, head, machine, SPEC: tl.constexpr):
    """Note which counters of a sub-tile were inside their range."""
    at, written = _kept_at(t, place, batch, head, machine), (t < machine.n_tokens)[:, None]
    features = tl.arange(0, SPEC.padded_size)[None, :]
    WORDS: tl.constexpr = SPEC.words
    for word in tl.static_range(WORDS):
        bits = inside.to(tl.int32) << features % _BITS
        if WORDS > 1:
            bits = tl.where(features // _BITS == word, bits, 0)
        tl.store(kept.counts + at * WORDS + word, row_sum(bits), mask=written)
    if SPEC.normaliser is not None:
        tl.store(kept.sums + at, sum_inside.to(tl.uint8), mask=written)


@triton.jit
def _inside_of(kept, at, is_text, SPEC: tl.constexpr):
    """Which counters were inside their range, as :func:`keep_inside` has noted it, `[T, D]`."""
    features = tl.arange(0, SPEC.padded_size)[None, :]
    bits = tl.full((SPEC.block, SPEC.padded_size), 0, tl.int32)
    WORDS: tl.constexpr = SPEC.words
    for word in tl.static_range(WORDS):
        of_word = tl.load(kept.counts + at * WORDS + word, mask=is_text, other=0)
        bits = tl.where(features // _BITS == word, of_word >> features % _BITS, bits)
    return bits & 1 != 0


@triton.jit
def behind_counters(d_out, t, own, block, kept, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """Gradient of the charge of a sub-tile `[T, D]`, times A_sat."""
    features = tl.arange(0, SPEC.padded_size)
    at, is_text = _kept_at(t, (own - block) % SPEC.tiles, batch, head, machine), (t < machine.n_tokens)[:, None]
    d_charge = tl.where(_inside_of(kept, at, is_text, SPEC), d_out, 0.0)
    if machine.columns_av.gain is not None:
        column = (kv_head * SPEC.tiles + block % SPEC.tiles) * SPEC.head_size + features
        gain = tl.load(machine.columns_av.gain + column, mask=features < SPEC.head_size, other=0.0)
        d_charge = d_charge * (1.0 + gain)[None, :]
    return d_charge


@triton.jit
def behind_normaliser(d_sum, t, own, block, kept, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """Gradient of a sub-tile's Σφ `[T, 1]`, times A_sat; without a normaliser what is given."""
    d_pulse = d_sum
    if SPEC.normaliser is not None:
        at, is_text = _kept_at(t, (own - block) % SPEC.tiles, batch, head, machine), (t < machine.n_tokens)[:, None]
        d_pulse = tl.where(tl.load(kept.sums + at, mask=is_text, other=0) != 0, d_sum, 0.0)
        if machine.columns_of_sum.gain is not None:
            d_pulse = d_pulse * (1.0 + tl.load(machine.columns_of_sum.gain + kv_head * SPEC.tiles + block % SPEC.tiles))
    return d_pulse
