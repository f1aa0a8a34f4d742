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
    """Pulse that should have met a resting cell and did not, or the other way round, `[..., T, 1]`; only with
    corrections."""


class Corrections(NamedTuple):
    """What digital logic knows of the keys in the arrays: their age, and by what they were divided."""

    score: list[Tensor | float]
    """Per part, by which a score's deviation from that of resting cells is multiplied, broadcastable to `[B, H, T',
    S]`."""
    pulse: list[Tensor | float]
    """Per part, by which a pulse is, likewise."""
    rest: Tensor
    """`S / S_sat` of a column of resting cells, `[B, H, T, 1]`."""
    keeps_rest: tuple[bool, bool]
    """Whether scores, and outputs, count from no charge at all, or else from that of resting cells."""


def activation(
    heads: Heads,
    charges: list[Tensor],
    visible: list[Tensor],
    scaling: Scaling,
    n_analog: int,
    corrections: Corrections | None = None,
) -> Pulses:
    """The pulses that the hardware's activation makes of the charges.

    Args:
        heads: sizes and hardware.
        charges: per part of the keys, `S / S_sat`, `[B, H, T', S]`.
        visible: which keys a query sees, broadcastable to its charges.
        scaling: its `score` and `full_scale_qk` make logits of charges, for the softmax.
        n_analog: how many of the parts, from the first, are read from the array.
        corrections: of the parts in the array; None: none.
    """
    if not heads.hardware.has_softmax:
        return charge_to_pulse(charges, visible, scaling.pulse_threshold)
    return digital_softmax(charges, visible, logit_gain(heads, scaling), heads.hardware, n_analog, corrections)


def logit_gain(heads: Heads, scaling: Scaling) -> Tensor | float:
    """From charge in full scales to logits: broadcastable to `[B, H, T, 1]`."""
    gain = 1.0 if scaling.score is None else scaling.score.to(heads.dtype)[:, None, None]
    norm = 1.0 if scaling.query_norm is None else scaling.query_norm[..., None]
    return gain * heads.full_scale_qk(scaling) * norm


def charge_to_pulse(charges: list[Tensor], visible: list[Tensor], threshold: Tensor | None = None) -> Pulses:
    """`φ = clip(S / S_sat − θ, 0, 1)`, each key for itself.

    Args:
        charges: per part of the keys, `S / S_sat`, `[..., H, T', S]`.
        visible: which keys a query sees, broadcastable to its charges.
        threshold: θ of each head, `[H]`; None: none.
    """
    if threshold is not None:
        charges = [x - threshold.to(x.dtype)[:, None, None] for x in charges]
    widths = [x.clamp(0.0, 1.0).masked_fill(~seen, 0.0) for x, seen in zip(charges, visible, strict=True)]
    return Pulses(widths, None)


def digital_softmax(
    charges: list[Tensor],
    visible: list[Tensor],
    score_gain: Tensor | float,
    hardware: Hardware,
    n_analog: int,
    corrections: Corrections | None = None,
) -> Pulses:
    """Scores through the ADC to logits, one softmax over all keys that a query sees, and pulses for those in the array.

    The likeliest key gets the longest pulse and the others are in proportion: `exp(logit − largest logit)`. The sum of
    the exponentials divides after the counters, in digital, so that neither pulses nor counters lose range where
    attention is spread over many keys.

    With corrections, the deviation of a score from that of resting cells is multiplied by one factor of its query and
    key, and the share by another; pulses are these over the longest of them.

    Args:
        charges: per part of the keys, `S / S_sat`, `[B, H, T', S]`, T' the last queries of the longest part (a sub-tile
            that is not yet in use is not read).
        visible: as for :func:`charge_to_pulse`.
        score_gain: from charge in full scales to logits, broadcastable to `[B, H, T, 1]`.
        hardware: the machine; its `score_adc` and `probability_dac` are used.
        n_analog: how many of the parts, from the first, are read from the array; the rest is digital and meets no
            converter.
        corrections: of the analog parts; None: none.
    """
    measured = [adc(x, hardware.score_adc) if i < n_analog else x for i, x in enumerate(charges)]
    if corrections is not None:
        for i, factor in enumerate(corrections.score):
            rest = corrections.rest[..., -measured[i].shape[-2] :, :]
            measured[i] = (measured[i] - rest) * factor + (rest if corrections.keeps_rest[0] else 0.0)
    n_rows = max(x.shape[-2] for x in measured)

    def of_last_rows(gain: Tensor | float, of_part: Tensor) -> Tensor | float:
        return gain[..., n_rows - of_part.shape[-2] :, :] if isinstance(gain, Tensor) and gain.shape[-2] > 1 else gain

    logits = [
        (of_last_rows(score_gain, x) * x).masked_fill(~seen, -torch.inf)
        for x, seen in zip(measured, visible, strict=True)
    ]

    def at_all_rows(of_part: Tensor, missing: float) -> Tensor:
        return pad(of_part, (n_rows - of_part.shape[-1], 0), value=missing)

    largest = torch.stack([at_all_rows(x.detach().amax(dim=-1), -torch.inf) for x in logits]).amax(dim=0)  # [B, H, T]
    largest = largest.masked_fill(largest == -torch.inf, 0.0)  # a row of padding sees nothing
    shares = [torch.exp(x - largest[..., n_rows - x.shape[-2] :, None]) for x in logits]
    total = torch.stack([at_all_rows(share.sum(dim=-1), 0.0) for share in shares]).sum(dim=0)
    total = total.clamp(min=torch.finfo(total.dtype).tiny)[..., None]
    if corrections is None:
        widths = [dac(share, hardware.probability_dac) if i < n_analog else share for i, share in enumerate(shares)]
        return Pulses(widths, 1.0 / total)
    lengthened = [share * factor for share, factor in zip(shares, corrections.pulse, strict=False)]
    longest = torch.stack([at_all_rows(x.detach().amax(dim=-1), 0.0) for x in lengthened]).amax(dim=0)
    longest = longest.clamp(min=SHORTEST)[..., None]

    def relative(x: Tensor) -> Tensor:
        return x / longest[..., n_rows - x.shape[-2] :, :]

    pulses = [dac(relative(x), hardware.probability_dac) for x in lengthened]
    exact = [relative(share) for share in shares]
    kept = [x.sum(dim=-1) if corrections.keeps_rest[1] else 0.0 for x in exact[:n_analog]]
    missing = [x - y.sum(dim=-1) for x, y in zip(kept, pulses, strict=True)]
    lost = torch.stack([at_all_rows(x, 0.0) for x in missing]).sum(dim=0)[..., None]
    return Pulses([*pulses, *exact[n_analog:]], longest / total, lost)
