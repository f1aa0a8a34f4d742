"""The affine bridge between a model's numbers and the arrays' units."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Affine(NamedTuple):
    """`x' = scale·x + offset`, one pair per head."""

    scale: Tensor
    """`[H]`, dimensionless."""
    offset: Tensor
    """`[H]`, in the unit of the result."""


class Scaling(NamedTuple):
    """The scalers in front of the two arrays, and between them."""

    query: Affine | None
    """To pulse fractions, `[H]`; None: already scaled."""
    key: Affine | None
    """To volt, `[H_kv]`; None: already scaled."""
    value: Affine | None
    """To volt, `[H_kv]`; None: already scaled."""
    score: Tensor | None = None
    """From charge of the first array in signal units to the logits of the softmax activation, `[H]`; None: one."""
    pulse_threshold: Tensor | None = None
    """θ of the charge-to-pulse circuits in full scales, `[H]`; None: none."""
    memory_key: Affine | None = None
    """The straight line that stands for a key cell in the digital memory of the softmax activation: from volt about
    rest to charge per unit pulse in signal units, `[H_kv]`; None: the cell's own c_0 + c_1·u."""
    memory_value: Affine | None = None
    """Likewise for a value cell."""
    full_scale_qk: Tensor | None = None
    """Reference of the score ADC (or of the charge-to-pulse circuit) of each query head over `array.saturation_qk`,
    `[H]`; None: one. Like all below without a gradient."""
    full_scale_av: Tensor | None = None
    """Reference of the counters of each query head over `array.saturation_av`, `[H]`; None: one."""
    full_scale_of_sum: Tensor | None = None
    """That of the normaliser's counters over `normaliser.full_scale`, likewise."""
    threshold: Tensor | None = None
    """Comparator level of each query head in full scales of the score, `[H]`, for `pruned_softmax`; None: the
    hardware's."""

    query_norm: Tensor | None = None
    """By which each query was divided before its scaler, `[B, H, T]`; None: by one."""
    key_norm: Tensor | None = None
    """Likewise for keys, `[B, H_kv, T]`."""
    value_norm: Tensor | None = None
    """Likewise for values, `[B, H_kv, T]`."""

    @property
    def affines(self) -> tuple[Affine | None, Affine | None, Affine | None]:
        """Those of query, key and value."""
        return self.query, self.key, self.value

    @property
    def trained(self) -> list[Tensor]:
        """Scales and offsets in front of the arrays, of those that are still to be applied."""
        return [x for affine in self.affines if affine is not None for x in affine]

    def of_tokens(self, piece: slice) -> Scaling:
        """For some of the tokens."""
        names = ("query_norm", "key_norm", "value_norm")
        norms = {name: getattr(self, name) for name in names}
        return self._replace(**{name: x[..., piece] for name, x in norms.items() if x is not None})

    def part(self, batch: range, heads: range, kv_heads: range) -> Scaling:
        """Of some of the sequences and query heads, and of their K/V heads."""
        of_kv = ("key", "value", "memory_key", "memory_value", "key_norm", "value_norm")
        return Scaling(
            **{name: _rows(x, kv_heads if name in of_kv else heads, batch) for name, x in self._asdict().items()}
        )


def _rows(x: Affine | Tensor | None, numbers: range, batch: range) -> Any:
    of_heads = slice(numbers.start, numbers.stop)
    if isinstance(x, Affine):
        return Affine(*(of_all[of_heads] for of_all in x))
    if x is None or x.ndim == 1:
        return None if x is None else x[of_heads]
    return x[batch.start : batch.stop, of_heads]


def scaled(x: Tensor, affine: Affine | None) -> Tensor:
    """`[B, H, T, D]` through its scaler, in float32 (float64 for float64); None: only the change of dtype."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if affine is None:
        return x.to(dtype)
    return x.to(dtype) * affine.scale.to(dtype)[:, None, None] + affine.offset.to(dtype)[:, None, None]


def per_head(factor: Tensor | None, dtype: torch.dtype) -> Tensor | float:
    """A factor of each head `[H]`, shaped to multiply `[B, H, T, …]`, without gradient; None: one."""
    return 1.0 if factor is None else factor.detach().to(dtype)[:, None, None]
