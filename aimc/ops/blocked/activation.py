"""What follows the first array, for one run of queries: charges in place to pulse widths, and the way back.

A run is one buffer `[B, H, T', S]`: the columns of the array, then those of the digital memory. The equations are those
of :mod:`aimc.ops.effects.activation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from aimc.hardware import Converter
from aimc.ops.call import Call
from aimc.ops.effects.activation import logit_gain
from aimc.ops.effects.converters import adc_, dac_

Hide = Callable[[Tensor, float], None]
"""Puts a number where a key is not visible, in a buffer of a run."""


class Activation(Protocol):
    """One run of queries at a time."""

    of_score_gain: Tensor | None
    """Gathered gradient of the score gain, `[H]`."""

    def widths(self, charge: Tensor, n_analog: int, hide: Hide, keep: bool = False) -> tuple[Tensor, Tensor | None]:
        """Pulse widths `[B, H, T', S]`, and the normaliser `[B, H, T', 1]` of the digital sum; None: one.

        Args:
            charge: in full scales, `[B, H, T', S]`; overwritten unless `keep`.
            n_analog: how many of the columns are read from the array; the rest is digital.
            hide: for this run.
            keep: leave `charge` as it is, and remember what :meth:`back` needs.
        """
        ...

    def back(self, grad: Tensor, of_normaliser: Tensor | None) -> Tensor:
        """From the gradient of the widths, overwritten, and of the normaliser to that of the charge."""
        ...


def outside(x: Tensor, v_min: float, v_max: float) -> Tensor:
    """Where a clip passes no gradient."""
    return (x < v_min) | (x > v_max)


class HardSigmoid:
    """`φ = clip(S / S_sat, 0, 1)`, each key for itself."""

    of_score_gain: Tensor | None = None

    def widths(self, charge: Tensor, n_analog: int, hide: Hide, keep: bool = False) -> tuple[Tensor, Tensor | None]:
        """See :class:`Activation`."""
        hide(charge, -1.0)
        if not keep:
            return charge.clamp_(0.0, 1.0), None
        self._charge = charge
        return charge.clamp(0.0, 1.0), None

    def back(self, grad: Tensor, of_normaliser: Tensor | None) -> Tensor:
        """See :class:`Activation`."""
        return grad.masked_fill_(outside(self._charge, 0.0, 1.0), 0.0)


class Softmax:
    """Scores through the ADC to logits, one softmax over all keys, pulses in proportion to the likeliest key's."""

    def __init__(self, call: Call) -> None:
        hardware, scaling = call.heads.hardware, call.scaling
        self.score_adc, self.probability_dac = hardware.score_adc, hardware.probability_dac
        self.gain = logit_gain(call.heads, scaling)  # [H, 1, 1]
        self.full_scale = call.heads.full_scale_qk(scaling)
        self.of_score_gain: Tensor | None = None if scaling.score is None else torch.zeros_like(scaling.score)

    def widths(self, charge: Tensor, n_analog: int, hide: Hide, keep: bool = False) -> tuple[Tensor, Tensor | None]:
        """See :class:`Activation`."""
        measured = charge.clone() if keep else charge
        adc_(measured[..., :n_analog], self.score_adc)
        shares = measured * self.gain if keep else measured.mul_(self.gain)
        hide(shares, -math.inf)
        largest = shares.amax(dim=-1, keepdim=True)
        shares.sub_(largest.masked_fill_(largest == -math.inf, 0.0)).exp_()  # a row of padding sees nothing
        total = shares.sum(dim=-1, keepdim=True)
        widths = shares.clone() if keep else shares
        _through_dac_(widths[..., :n_analog], self.probability_dac)
        normaliser = total.clamp(min=torch.finfo(total.dtype).tiny).reciprocal_()
        if keep:
            self._kept = charge, measured, shares, total, normaliser, n_analog
        return widths, normaliser

    def back(self, grad: Tensor, of_normaliser: Tensor | None) -> Tensor:
        """See :class:`Activation`."""
        charge, measured, shares, total, normaliser, n_analog = self._kept
        assert of_normaliser is not None  # it was given out
        dac, adc = self.probability_dac, self.score_adc
        grad[..., :n_analog].masked_fill_(outside(shares[..., :n_analog], dac.v_min, dac.v_max), 0.0)
        of_total = -of_normaliser * normaliser * normaliser
        grad.add_(of_total.masked_fill_(total < torch.finfo(total.dtype).tiny, 0.0)).mul_(shares)  # of the logits
        if self.of_score_gain is not None:
            self.of_score_gain += ((grad * measured).sum(dim=(0, 2, 3), keepdim=True)[0] * self.full_scale).flatten()
        grad.mul_(self.gain)
        grad[..., :n_analog].masked_fill_(outside(charge[..., :n_analog], adc.v_min, adc.v_max), 0.0)
        return grad


def _through_dac_(shares: Tensor, dac: Converter) -> None:
    """Shares never leave [0, 1]: where that is the range and there are no levels, nothing happens."""
    if dac.n_levels is not None or dac.inl or dac.v_max < 1.0:
        dac_(shares, dac)


def activation_of(call: Call) -> Activation:
    """The hardware's."""
    return Softmax(call) if call.heads.hardware.has_softmax else HardSigmoid()
