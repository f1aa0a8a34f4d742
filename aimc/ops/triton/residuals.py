"""What a forward pass of the kernels leaves to its backward pass; importable where Triton is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aimc.hardware import Hardware
from aimc.ops.triton.alignment import aligned
from aimc.ops.triton.spec import n_words


class Residuals(NamedTuple):
    """A bit per counter, a byte per normaliser column, and a few numbers per query."""

    counts: Tensor | None
    """Which counters were inside their range, so that a gradient passes: by sub-tile in the order of its age a bit per
    feature, int32 `[B, H, T, n_kept, words]`; None: no gradient is wanted."""
    sums: Tensor | None
    """Of the normaliser columns, uint8 `[B, H, T, n_kept]`; None: there are none."""
    divisor: Tensor | None
    """By what the digital sum was divided: Σφ as counted, or the sum of all shares, float32 `[B, H, T]`; None: by
    nothing."""
    largest: Tensor | None
    """Largest logit, likewise; None: there is no softmax."""
    resting: Tensor | None
    """`S / S_sat` of a column of resting cells; None: nothing is made up for."""
    longest: Tensor | None
    """What pulses are relative to."""

    @classmethod
    def room(cls, query: Tensor, hardware: Hardware, *, keep: bool) -> Residuals:
        """Unwritten, for queries `[B, H, T, D]`."""
        shape, device = query.shape[:3], query.device

        def numbers(wanted: bool) -> Tensor | None:
            return torch.empty(shape, dtype=torch.float32, device=device) if wanted else None

        def by_tile(wanted: bool, dtype: torch.dtype, *size: int) -> Tensor | None:
            n = n_kept(query.shape[2], hardware)
            return torch.empty(*shape, n, *size, dtype=dtype, device=device) if wanted else None

        softmax, divides, corrects = hardware.has_softmax, hardware.normaliser.is_on, corrects_on(hardware)
        return cls(
            counts=by_tile(keep, torch.int32, n_words(query.shape[3])),
            sums=by_tile(keep and divides, torch.uint8),
            divisor=numbers(divides or softmax),
            largest=numbers(softmax),
            resting=numbers(corrects),
            longest=numbers(corrects),
        )

    @property
    def tensors(self) -> list[Tensor]:
        """Those that there are."""
        return [x for x in self if x is not None]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], hardware: Hardware) -> Residuals:
        """The inverse of :attr:`tensors`, with the bits of the counters among them."""
        softmax, divides, corrects = hardware.has_softmax, hardware.normaliser.is_on, corrects_on(hardware)
        given = iter(tensors)
        there = True, divides, divides or softmax, softmax, corrects, corrects
        return cls(*(aligned(next(given)) if is_there else None for is_there in there))


def n_kept(n_tokens: int, hardware: Hardware) -> int:
    """Sub-tiles that a text uses."""
    array = hardware.array
    return min(array.n_tiles, -(-n_tokens // array.rows))


def corrects_on(hardware: Hardware) -> bool:
    """Whether digital logic makes up for age, or for what keys and values were divided by."""
    return bool(hardware.leakage.compensate and hardware.leakage.decay_per_token) or hardware.features.normalises
