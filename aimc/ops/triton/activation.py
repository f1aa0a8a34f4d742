"""Between the two arrays, in Triton: the charge-to-pulse circuit, or a digital softmax between converters.

The twins of :mod:`aimc.ops.effects.activation` on a block of charges in registers. The softmax's counters stand behind
its pulses, so what was added up cannot be rescaled as the maximum rises: what it must know of a whole row, the largest
logit first, is found by a pass of its own (:mod:`aimc.ops.triton.statistics`).

No `from __future__ import annotations` here: Triton reads the annotations.
"""

import triton
import triton.language as tl

from aimc.ops.triton.reads import codes_of, converted, in_range, key_positions, of_rows, pulses_of, row_sum, value_of


@triton.jit
def gain_of(t, batch, head, machine):
    """From scores in full scales to logits (aimc.ops.effects.activation.logit_gain), `[T, 1]`."""
    gain = tl.full((1, 1), 1.0, tl.float32) * tl.load(machine.of_softmax.gain + head)
    if machine.of_softmax.query_norm is not None:
        gain = gain * of_rows(machine.of_softmax.query_norm, t, batch, head, machine)
    return gain


@triton.jit
def correction(norm, decay, block, batch, kv_head, machine, SPEC: tl.constexpr):
    """By what is multiplied for age and for what a key or value was divided by, `[T, S]` (aimc.ops.heads.Heads.
    corrections); `decay` `[T, 1]` is the queries' since the block began."""
    factor = tl.full((SPEC.block, SPEC.rows), 1.0, tl.float32)
    N_SHARES: tl.constexpr = SPEC.softmax.n_shares
    if N_SHARES > 0:
        rise = tl.exp(tl.arange(0, SPEC.rows).to(tl.float32) * machine.levels.decay_per_token)
        left = tl.minimum(decay * rise[None, :], 1.0)
        share = tl.full((SPEC.block, SPEC.rows), 0.0, tl.float32)
        for i in tl.static_range(N_SHARES):
            share = (share + tl.load(machine.of_softmax.shares + N_SHARES - 1 - i)) * left
        factor = 1.0 / tl.maximum(share, SPEC.softmax.least_share)
    if norm is not None:
        s = key_positions(block, SPEC)
        row = norm + (batch * machine.n_kv_heads + kv_head) * machine.n_tokens
        factor = factor * tl.load(row + s, mask=s < machine.n_tokens, other=1.0)[None, :]
    return factor


@triton.jit
def resting_of(t, batch, head, machine, SPEC: tl.constexpr):
    """`S / S_sat` of a column of resting cells, `[T, 1]`; zero without corrections."""
    resting = tl.full((SPEC.block, 1), 0.0, tl.float32)
    if SPEC.corrects:
        resting = of_rows(machine.of_softmax.resting, t, batch, head, machine)
    return resting


@triton.jit
def measured(relative, resting, decay, block, batch, kv_head, machine, SPEC: tl.constexpr):
    """Scores in full scales as digital logic has them: through the ADC, and corrected, `[T, S]`."""
    ADC: tl.constexpr = SPEC.softmax.score_adc
    score = value_of(codes_of(relative, ADC), ADC, SPEC.fast)
    if SPEC.corrects:
        factor = correction(machine.of_softmax.key_norm, decay, block, batch, kv_head, machine, SPEC)
        score = (score - resting) * factor
        if SPEC.softmax.keeps_scores:
            score = score + resting
    return score


@triton.jit
def shares_of(score, visible, t, batch, head, machine):
    """`exp(logit − largest)`, `[T, S]`: one at most, also where the row's statistics were summed in another order."""
    logit = score * gain_of(t, batch, head, machine)
    largest = of_rows(machine.of_softmax.largest, t, batch, head, machine)
    return tl.where(visible, tl.exp(tl.minimum(logit - largest, 0.0)), 0.0)


@triton.jit
def _relative(share, t, decay, block, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """What the probability DAC is given, and the factor between, `[T, S]`."""
    factor = tl.full((SPEC.block, SPEC.rows), 1.0, tl.float32)
    if SPEC.corrects:
        longest = of_rows(machine.of_softmax.longest, t, batch, head, machine)
        factor = correction(machine.of_softmax.value_norm, decay, block, batch, kv_head, machine, SPEC) / longest
    return tl.minimum(share * factor, 1.0), factor


@triton.jit
def widths_of(relative, visible, t, decay, block, batch, head, kv_head, machine, SPEC: tl.constexpr):
    """Pulses φ `[T, S]` of `S / S_sat − θ`, and with corrections the pulse that resting cells have missed, `[T, 1]`."""
    lost = tl.full((SPEC.block, 1), 0.0, tl.float32)
    if SPEC.softmax is None:
        phi = pulses_of(relative, visible)
    else:
        DAC: tl.constexpr = SPEC.softmax.probability_dac
        resting = resting_of(t, batch, head, machine, SPEC)
        score = measured(relative, resting, decay, block, batch, kv_head, machine, SPEC)
        share = shares_of(score, visible, t, batch, head, machine)
        given, _ = _relative(share, t, decay, block, batch, head, kv_head, machine, SPEC)
        phi = converted(given, DAC, SPEC.fast)
        if SPEC.corrects:
            lost = lost - row_sum(phi)
        if SPEC.keeps_outputs:
            lost = lost + row_sum(share) / of_rows(machine.of_softmax.longest, t, batch, head, machine)
    return phi, lost


@triton.jit
def back_through(
    d_phi,
    d_sum,
    d_lost,
    relative,
    visible,
    t,
    decay,
    block,
    batch,
    head,
    kv_head,
    machine,
    SPEC: tl.constexpr,
):
    """From the gradient of φ `[T, S]`, of its sum or of the sum of all shares `[T, 1]`, and of the lost pulse `[T, 1]`:
    φ, the gradient of `S / S_sat − θ` `[T, S]`, and what a block adds to those of θ or of the logits' gain (without its
    factors) and of the charge of resting cells, `[T, 1]` each."""
    of_rest = tl.full((SPEC.block, 1), 0.0, tl.float32)
    if SPEC.softmax is None:
        phi = pulses_of(relative, visible)
        passes = visible & (relative >= 0.0) & (relative <= 1.0)
        grad = tl.where(passes, d_phi, 0.0)
        of_trained = row_sum(grad)
    else:
        ADC: tl.constexpr = SPEC.softmax.score_adc
        DAC: tl.constexpr = SPEC.softmax.probability_dac
        resting = resting_of(t, batch, head, machine, SPEC)
        score = measured(relative, resting, decay, block, batch, kv_head, machine, SPEC)
        share = shares_of(score, visible, t, batch, head, machine)
        given, factor = _relative(share, t, decay, block, batch, head, kv_head, machine, SPEC)
        phi = converted(given, DAC, SPEC.fast)
        grad = tl.where(in_range(given, DAC), d_phi - d_lost, 0.0) * factor
        if SPEC.keeps_outputs:
            grad = grad + d_lost / of_rows(machine.of_softmax.longest, t, batch, head, machine)
        grad = (grad + d_sum) * share
        of_trained = row_sum(grad * score)
        grad = grad * gain_of(t, batch, head, machine)
        if SPEC.corrects:
            if SPEC.softmax.keeps_scores:
                of_rest = of_rest + row_sum(grad)
            grad = grad * correction(machine.of_softmax.key_norm, decay, block, batch, kv_head, machine, SPEC)
            of_rest = of_rest - row_sum(grad)
        grad = tl.where(in_range(relative, ADC), grad, 0.0)
    return phi, grad, of_trained, of_rest
