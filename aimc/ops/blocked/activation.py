"""What follows the first array, for one run of queries: charges in place to pulse widths, and the way back.

A run is one buffer `[B, H, T', S]`: the columns of the array, then those of the digital memory. The equations are those
of :mod:`aimc.ops.effects.activation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from aimc.hardware import Converter
from aimc.ops.call import Call
from aimc.ops.effects.activation import SHORTEST, Corrections, logit_gain
from aimc.ops.effects.converters import adc, adc_, dac_
from aimc.ops.effects.pruning import selected

Hide = Callable[[Tensor, float], None]
"""Puts a number where a key is not visible, in a buffer of a run."""


class Activation(Protocol):
    """One run of queries at a time."""

    of_score_gain: Tensor | None
    """Gathered gradient of the score gain, `[H]`."""

    of_threshold: Tensor | None
    """Gathered gradient of the threshold, `[H]`."""

    of_rest: Tensor | None
    """What :meth:`back` has found of the charge of resting cells, `[B, H, T', 1]`; None: nothing depends on it."""

    def widths(self, charge: Tensor, columns: Columns, norm: Tensor | None, keep: bool = False) -> Widths:
        """Pulse widths.

        Args:
            charge: in full scales, `[B, H, T', S]`; overwritten unless `keep`.
            columns: of this run.
            norm: by what each query was divided, `[B, H, T', 1]`; None: by one.
            keep: leave `charge` as it is, and remember what :meth:`back` needs.
        """
        ...

    def back(self, grad: Tensor, of_normaliser: Tensor | None, of_lost: Tensor | None) -> Tensor:
        """From the gradient of the widths, overwritten, of the normaliser and of the lost pulse to that of the
        charge."""
        ...


class Columns(NamedTuple):
    """What is known of the columns of a run."""

    n_analog: int
    """How many are read from the array; the rest is digital."""
    hide: Hide
    """Puts a number where a key is not visible."""
    corrections: Corrections | None
    """What digital logic makes up for; None: nothing."""


class Widths(NamedTuple):
    """What goes into the second array and the digital sum."""

    pulses: Tensor
    """`[B, H, T', S]`."""
    normaliser: Tensor | None
    """Of the digital sum, `[B, H, T', 1]`; None: one."""
    lost: Tensor | None = None
    """Pulse that should have met a resting cell and did not, `[B, H, T', 1]`; None: nothing is made up for."""


def inside(x: Tensor, v_min: float, v_max: float) -> Tensor:
    """1 where a clip passes a gradient, 0 elsewhere."""
    return x.clamp(v_min, v_max).eq_(x)


class HardSigmoid:
    """`φ = clip(S / S_sat − θ, 0, 1)`, each key for itself."""

    of_score_gain: Tensor | None = None
    of_rest: Tensor | None = None

    def __init__(self, call: Call) -> None:
        threshold = call.scaling.pulse_threshold
        self.threshold = None if threshold is None else threshold.to(call.heads.dtype)[:, None, None]
        self.of_threshold: Tensor | None = None if threshold is None else torch.zeros_like(threshold)

    def widths(self, charge: Tensor, columns: Columns, norm: Tensor | None, keep: bool = False) -> Widths:
        """See :class:`Activation`."""
        if self.threshold is not None:
            charge.sub_(self.threshold)
        columns.hide(charge, -1.0)
        if not keep:
            return Widths(charge.clamp_(0.0, 1.0), None)
        widths = charge.clamp(0.0, 1.0)
        self._passes = charge.eq_(widths)
        return Widths(widths, None)

    def back(self, grad: Tensor, of_normaliser: Tensor | None, of_lost: Tensor | None) -> Tensor:
        """See :class:`Activation`."""
        grad.mul_(self._passes)
        if self.of_threshold is not None:
            self.of_threshold -= grad.sum(dim=(0, 2, 3))
        return grad


class Softmax:
    """Scores through the ADC to logits, one softmax over all keys, pulses in proportion to the likeliest key's."""

    of_threshold: Tensor | None = None

    def __init__(self, call: Call) -> None:
        hardware, scaling = call.heads.hardware, call.scaling
        self.score_adc, self.probability_dac = hardware.score_adc, hardware.probability_dac
        self.gain = logit_gain(call.heads, scaling._replace(query_norm=None))  # [H, 1, 1]
        self.full_scale = call.heads.full_scale_qk(scaling)
        self.of_score_gain: Tensor | None = None if scaling.score is None else torch.zeros_like(scaling.score)
        self.of_rest: Tensor | None = None

    def widths(self, charge: Tensor, columns: Columns, norm: Tensor | None, keep: bool = False) -> Widths:
        """See :class:`Activation`."""
        n, corrections = columns.n_analog, columns.corrections
        measured = charge.clone() if keep else charge
        adc_(measured[..., :n], self.score_adc)
        if corrections is not None:
            factor, rest, keeps = corrections.score[0], corrections.rest, corrections.keeps_rest[0]
            measured[..., :n].sub_(rest).mul_(factor)
            if keeps:
                measured[..., :n] += rest
        gain = self.gain if norm is None else self.gain * norm
        shares = measured * gain if keep else measured.mul_(gain)
        columns.hide(shares, -math.inf)
        largest = shares.amax(dim=-1, keepdim=True)
        shares.sub_(largest.masked_fill_(largest == -math.inf, 0.0)).exp_()  # a row of padding sees nothing
        total = shares.sum(dim=-1, keepdim=True)
        widths = shares.clone() if keep else shares
        normaliser, longest, lost = total.clamp(min=torch.finfo(total.dtype).tiny).reciprocal_(), None, None
        if corrections is not None:
            keeps = corrections.keeps_rest[1]
            wanted = widths[..., :n].sum(dim=-1, keepdim=True) if keeps else torch.zeros_like(total)
            widths[..., :n].mul_(corrections.pulse[0])
            longest = widths[..., :n].amax(dim=-1, keepdim=True).clamp_(min=SHORTEST)
            widths.div_(longest)
            normaliser, wanted = normaliser.mul_(longest), wanted.div_(longest)
            relative = widths[..., :n].clone() if keep else None
            _through_dac_(widths[..., :n], self.probability_dac)
            lost = wanted.sub_(widths[..., :n].sum(dim=-1, keepdim=True))
        else:
            relative = shares[..., :n] if keep else None
            _through_dac_(widths[..., :n], self.probability_dac)
        if keep:
            self._kept = _Kept(charge, measured, shares, relative, total, normaliser, longest, gain, norm, columns)
        return Widths(widths, normaliser, lost)

    def back(self, grad: Tensor, of_normaliser: Tensor | None, of_lost: Tensor | None) -> Tensor:
        """See :class:`Activation`."""
        kept, dac, adc = self._kept, self.probability_dac, self.score_adc
        n, corrections = kept.columns.n_analog, kept.columns.corrections
        assert of_normaliser is not None and kept.relative is not None  # it was given out
        analog = grad[..., :n]
        if of_lost is not None:
            analog.sub_(of_lost)
        if corrections is not None or dac.v_max < 1.0:  # shares are inside [0, 1]
            analog.mul_(inside(kept.relative, dac.v_min, dac.v_max))
        if corrections is not None and kept.longest is not None:
            analog.mul_(corrections.pulse[0])
            if corrections.keeps_rest[1] and of_lost is not None:
                analog.add_(of_lost)
            grad.div_(kept.longest)
        of_total = -of_normaliser * kept.normaliser / kept.total.clamp(min=torch.finfo(kept.total.dtype).tiny)
        tiny = kept.total < torch.finfo(kept.total.dtype).tiny
        grad.add_(of_total.masked_fill_(tiny, 0.0)).mul_(kept.shares)  # of the logits
        if self.of_score_gain is not None:
            of_gain = grad * kept.measured if kept.norm is None else grad * kept.measured * kept.norm
            self.of_score_gain += (of_gain.sum(dim=(0, 2, 3), keepdim=True)[0] * self.full_scale).flatten()
        grad.mul_(kept.gain)
        self.of_rest = None
        if corrections is not None:
            before = analog.sum(dim=-1, keepdim=True)
            analog.mul_(corrections.score[0])
            kept_rest = before if corrections.keeps_rest[0] else torch.zeros_like(before)
            self.of_rest = kept_rest - analog.sum(dim=-1, keepdim=True)
        analog.mul_(inside(kept.charge[..., :n], adc.v_min, adc.v_max))
        return grad


class _Kept(NamedTuple):
    """What the softmax needs on its way back."""

    charge: Tensor
    measured: Tensor
    shares: Tensor
    relative: Tensor | None
    """What the probability DAC was given."""
    total: Tensor
    normaliser: Tensor
    longest: Tensor | None
    gain: Tensor | float
    norm: Tensor | None
    columns: Columns


class Pruned:
    """The arrays' scores select; a softmax in digital over the copies of what is kept and over protected tokens. The
    digital columns of a run are the copies of its analog ones, then what is protected beyond them."""

    of_threshold: Tensor | None = None

    def __init__(self, call: Call) -> None:
        self.hardware, scaling = call.heads.hardware, call.scaling
        self.threshold = scaling.threshold
        self.gain = logit_gain(call.heads, scaling._replace(query_norm=None))
        self.full_scale = call.heads.full_scale_qk(scaling)
        self.of_score_gain: Tensor | None = None if scaling.score is None else torch.zeros_like(scaling.score)
        self.of_rest: Tensor | None = None

    def widths(self, charge: Tensor, columns: Columns, norm: Tensor | None, keep: bool = False) -> Widths:
        """See :class:`Activation`."""
        n = columns.n_analog
        hidden = torch.zeros_like(charge)
        columns.hide(hidden, 1.0)
        seen, attended = hidden[..., :n] == 0, hidden[..., n:] == 0
        attended[..., :n] |= selected(charge[..., :n], seen, self.hardware, self.threshold)
        scores = charge[..., n:].clone()
        replaced = None
        if self.hardware.pruning.recompute == "values":
            replaced = seen
            scores[..., :n] = torch.where(seen, adc(charge[..., :n], self.hardware.score_adc), scores[..., :n])
        gain = self.gain if norm is None else self.gain * norm
        logits = (scores * gain).masked_fill_(~attended, -math.inf)
        weights = torch.softmax(logits, dim=-1).masked_fill_(~attended.any(dim=-1, keepdim=True), 0.0)
        if keep:
            self._kept = charge, scores, replaced, weights, gain, norm, n
        return Widths(torch.cat([charge.new_zeros(*charge.shape[:-1], n), weights], dim=-1), None)

    def back(self, grad: Tensor, of_normaliser: Tensor | None, of_lost: Tensor | None) -> Tensor:
        """See :class:`Activation`."""
        charge, scores, replaced, weights, gain, norm, n = self._kept
        digital = grad[..., n:]
        grad[..., :n] = 0.0
        digital.sub_((digital * weights).sum(dim=-1, keepdim=True)).mul_(weights)
        if self.of_score_gain is not None:
            of_gain = digital * scores if norm is None else digital * scores * norm
            self.of_score_gain += (of_gain.sum(dim=(0, 2, 3), keepdim=True)[0] * self.full_scale).flatten()
        digital.mul_(gain)
        if replaced is not None:
            adc_range = self.hardware.score_adc
            grad[..., :n] = digital[..., :n] * inside(charge[..., :n], adc_range.v_min, adc_range.v_max)
            grad[..., :n].masked_fill_(~replaced, 0.0)
            digital[..., :n].masked_fill_(replaced, 0.0)
        return grad


def _through_dac_(shares: Tensor, dac: Converter) -> None:
    """Shares never leave [0, 1]: where that is the range and there are no levels, nothing happens."""
    if dac.n_levels is not None or dac.inl or dac.v_max < 1.0:
        dac_(shares, dac)


def activation_of(call: Call) -> Activation:
    """The hardware's."""
    if call.heads.hardware.activation == "pruned_softmax":
        return Pruned(call)
    return Softmax(call) if call.heads.hardware.has_softmax else HardSigmoid(call)
