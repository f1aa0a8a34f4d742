"""One call of the operator."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from aimc.hardware import Noise
from aimc.ops.heads import Heads
from aimc.ops.scaling import Scaling


class Call(NamedTuple):
    """What every implementation is given."""

    query: Tensor
    """`[B, H, T, D]`, before its scaler if there is one."""
    key: Tensor
    """`[B, H_kv, T, D]`, likewise."""
    value: Tensor
    """`[B, H_kv, T, D]`, likewise."""
    scaling: Scaling
    """Scalers that are still to be applied."""
    key_padding: Tensor | None
    """Bool `[B, T]`, True where a token is padding."""
    heads: Heads
    """Sizes, hardware, chip and noise."""

    @property
    def differentiated(self) -> Call:
        """The call whose gradients are those of this one: itself, or with `noise_gradient = "clean"` the same on
        hardware without noise."""
        hardware = self.heads.hardware
        if hardware.noise_gradient == "exact" or not hardware.noise.active():
            return self
        clean = replace(hardware, noise=Noise())
        return self._replace(heads=Heads(self.query, self.key, clean, self.heads.chip, self.heads.seed))

    def part(self, batch: range, kv_heads: range) -> Call:
        """Some of the sequences and some of the K/V heads with their query heads."""
        heads = self.heads.part(batch, kv_heads)
        of_batch = slice(batch.start, batch.stop)
        of_kv, of_query = (slice(numbers.start, numbers.stop) for numbers in (kv_heads, heads.query_heads))
        return Call(
            self.query[of_batch, of_query],
            self.key[of_batch, of_kv],
            self.value[of_batch, of_kv],
            self.scaling.part(batch, heads.query_heads, kv_heads),
            None if self.key_padding is None else self.key_padding[of_batch],
            heads,
        )
