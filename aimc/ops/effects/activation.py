"""From the charge of the first array to the pulses into the second: the charge-to-pulse circuit, or a digital softmax
between converters."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from aimc.hardware import Hardware
from aimc.ops.effects.converters import adc, dac

if TYPE_CHECKING:
    from aimc.ops.heads import Heads
    from aimc.ops.scaling import Scaling


SHORTEST = 2.0**-20
"""Largest share of a query among the tokens in the arrays below which their pulses are not lengthened further."""


class Pulses(NamedTuple):
    """What goes into the second array."""

    widths: list[Tensor]
    """Per part of the keys, `[..., T', S]` as fractions of the longest pulse; 0 where a key is not visible. Of a
    digital part (the memory of protected tokens) a number of any precision."""
    normaliser: Tensor | None
    """By which the digital sum of the counters is multiplied, `[..., T, 1]`; None: by one."""
    lost: Tensor | float = 0.0
    """Pulse that should have met a resting cell and did not, or the other way round, `[..., T, 1]`; only where age is
    made up for."""


class Ages(NamedTuple):
    """What age compensation knows of the keys in the arrays."""

    left: list[Tensor]
    """Per part, which share of its signal a token has kept, `[T', S]`."""
    rest: Tensor | float
    """`S / S_sat` of a column of resting cells, `[B, H, T, 1]`."""


def activation(
    heads: Heads,
    charges: list[Tensor],
    visible: list[Tensor],
    scaling: Scaling,
    n_analog: int,
    ages: Ages | None = None,
) -> Pulses:
    """The pulses that the hardware's activation makes of the charges.

    Args:
        heads: sizes and hardware.
        charges: per part of the keys, `S / S_sat`, `[B, H, T', S]`.
        visible: which keys a query sees, broadcastable to its charges.
        scaling: its `score` and `full_scale_qk` make logits of charges, for the softmax.
        n_analog: how many of the parts, from the first, are read from the array.
        ages: of the parts in the array; None: nothing is made up for.
    """
    if not heads.hardware.has_softmax:
        return charge_to_pulse(charges, visible)
    return digital_softmax(charges, visible, logit_gain(heads, scaling), heads.hardware, n_analog, ages)


def logit_gain(heads: Heads, scaling: Scaling) -> Tensor | float:
    """From charge in full scales to logits: a number or `[H, 1, 1]`."""
    gain = 1.0 if scaling.score is None else scaling.score.to(heads.dtype)[:, None, None]
    return gain * heads.full_scale_qk(scaling)


def charge_to_pulse(charges: list[Tensor], visible: list[Tensor]) -> Pulses:
    """`φ = clip(S / S_sat, 0, 1)`, each key for itself.

    Args:
        charges: per part of the keys, `S / S_sat`, `[..., T', S]`.
        visible: which keys a query sees, broadcastable to its charges.
    """
    widths = [x.clamp(0.0, 1.0).masked_fill(~seen, 0.0) for x, seen in zip(charges, visible, strict=True)]
    return Pulses(widths, None)


def digital_softmax(
    charges: list[Tensor],
    visible: list[Tensor],
    score_gain: Tensor | float,
    hardware: Hardware,
    n_analog: int,
    ages: Ages | None = None,
) -> Pulses:
    """Scores through the ADC to logits, one softmax over all keys that a query sees, and pulses for those in the array.

    The likeliest key gets the longest pulse and the others are in proportion: `exp(logit − largest logit)`. The sum of
    the exponentials divides after the counters, in digital, so that neither pulses nor counters lose range where
    attention is spread over many keys.

    Where age is made up for, the deviation of a score from that of resting cells is divided by what the token has kept,
    and pulses are `share / kept` over the longest of these.

    Args:
        charges: per part of the keys, `S / S_sat`, `[B, H, T', S]`, T' the last queries of the longest part (a sub-tile
            that is not yet in use is not read).
        visible: as for :func:`charge_to_pulse`.
        score_gain: from charge in full scales to logits, broadcastable to `[B, H, 1, 1]`.
        hardware: the machine; its `score_adc` and `probability_dac` are used.
        n_analog: how many of the parts, from the first, are read from the array; the rest is digital and meets no
            converter.
        ages: of the analog parts; None: nothing is made up for.
    """
    measured = [adc(x, hardware.score_adc) if i < n_analog else x for i, x in enumerate(charges)]
    if ages is not None:
        for i, left in enumerate(ages.left):
            rest = ages.rest[..., -left.shape[0] :, :] if isinstance(ages.rest, Tensor) else ages.rest
            measured[i] = (measured[i] - rest) / left + rest
    logits = [(score_gain * x).masked_fill(~seen, -torch.inf) for x, seen in zip(measured, visible, strict=True)]
    n_rows = max(x.shape[-2] for x in logits)

    def at_all_rows(of_part: Tensor, missing: float) -> Tensor:
        return pad(of_part, (n_rows - of_part.shape[-1], 0), value=missing)

    largest = torch.stack([at_all_rows(x.detach().amax(dim=-1), -torch.inf) for x in logits]).amax(dim=0)  # [B, H, T]
    largest = largest.masked_fill(largest == -torch.inf, 0.0)  # a row of padding sees nothing
    shares = [torch.exp(x - largest[..., n_rows - x.shape[-2] :, None]) for x in logits]
    total = torch.stack([at_all_rows(share.sum(dim=-1), 0.0) for share in shares]).sum(dim=0)
    total = total.clamp(min=torch.finfo(total.dtype).tiny)[..., None]
    if ages is None:
        widths = [dac(share, hardware.probability_dac) if i < n_analog else share for i, share in enumerate(shares)]
        return Pulses(widths, 1.0 / total)
    lengthened = [share / left for share, left in zip(shares, ages.left, strict=False)]
    longest = torch.stack([at_all_rows(x.detach().amax(dim=-1), 0.0) for x in lengthened]).amax(dim=0)
    longest = longest.clamp(min=SHORTEST)[..., None]

    def relative(x: Tensor) -> Tensor:
        return x / longest[..., n_rows - x.shape[-2] :, :]

    pulses = [dac(relative(x), hardware.probability_dac) for x in lengthened]
    exact = [relative(share) for share in shares]
    missing = [x.sum(dim=-1) - y.sum(dim=-1) for x, y in zip(exact, pulses, strict=False)]
    lost = torch.stack([at_all_rows(x, 0.0) for x in missing]).sum(dim=0)[..., None]
    return Pulses([*pulses, *exact[n_analog:]], longest / total, lost)
