"""One layer's gain-cell attention as a module: scalers, arrays, scaler."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from aimc.config import Hardware
from aimc.nn.scaler import AffineScaler
from aimc.ops.attention import Details, gain_cell_attention
from aimc.ops.noise import Chip
from aimc.ops.scaling import Scaling

PARTS = ("query", "key", "value", "output")
"""The four scalers of a layer, in the order the data meets them."""

Observer = Callable[["GainCellAttention", dict[str, Tensor], Details | None], None]


class GainCellAttention(nn.Module):
    """Scale, clip, convert, store, multiply, activate, multiply, count, scale: attention of one layer on its own arrays.

    Args:
        n_heads: query heads H.
        n_kv_heads: K/V heads; each has arrays of its own, shared by its group of query heads.
        hardware: shared by all layers of a model; change it with :func:`aimc.set_hardware`.
        layer: index of the layer, part of every cell's address.
    """

    def __init__(self, n_heads: int, n_kv_heads: int, hardware: Hardware, layer: int):
        super().__init__()
        self.hardware = hardware
        self.layer = layer
        self.chip_seed: int | None = None
        """Which chip this runs on; None: chip 0. It matters only to mismatch and column errors."""
        self.generator: torch.Generator | None = None
        """Source of write and read noise; None: torch's global one."""
        self.observer: Observer | None = None
        """Called with scaled q, k, v, the output, and (if `observe_details`) what happened inside."""
        self.observe_details = False
        rest_v = hardware.cell.offset_v
        self.query_scaler = AffineScaler(n_heads)
        self.key_scaler = AffineScaler(n_kv_heads, offset=rest_v)
        self.value_scaler = AffineScaler(n_kv_heads, offset=rest_v)
        self.output_scaler = AffineScaler(n_heads)

    def scaler(self, part: str) -> AffineScaler:
        """The scaler of one of :data:`PARTS`."""
        return getattr(self, f"{part}_scaler")

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding: Tensor | None = None) -> Tensor:
        """Attention of query `[B, H, T, D]` over key and value `[B, H_kv, T, D]`; bool `key_padding` `[B, T]`, True where padding.

        Returns:
            `[B, H, T, D]` in the dtype of `query`.
        """
        result = gain_cell_attention(
            query,
            key,
            value,
            self.hardware,
            scaling=Scaling(self.query_scaler.affine, self.key_scaler.affine, self.value_scaler.affine),
            key_padding=key_padding,
            chip=Chip(seed=self.chip_seed or 0, layer=self.layer),
            generator=self.generator,
            details=self.observe_details,
        )
        result, details = result if self.observe_details else (result, None)
        out = self.output_scaler(result)
        if self.observer is not None:  # the operator scales on the way to the converters and keeps nothing: scale again to show it
            q, k, v = self.query_scaler(query), self.key_scaler(key), self.value_scaler(value)
            self.observer(self, {"query": q, "key": k, "value": v, "output": out}, details)
        return out.to(query.dtype)
