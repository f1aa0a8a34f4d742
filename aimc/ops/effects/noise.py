"""Noise from counters: every draw is a pure function of a seed and of where in the machine it is met.

The same seed and coordinates give the same number whatever the block size, the order or the backend, and nothing is
stored. That is what makes a chip physical (token s and token s+W meet the same cell) and a decoder equal to the
parallel form.

The generator is a 32-bit integer hash that absorbs one coordinate after another, then Box-Muller. The mixing constants
are the two-round set `16 21f0aaad 15 735a2d97 15` of the hash-prospector project (C. Wellons, T. Ettinger; avalanche
bias 0.107); both lie below 2^31, so a product with 32 bits never overflows int64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MIX_A, MIX_B = 0x21F0AAAD, 0x735A2D97
SPREAD = 0x1E3779B9
"""Odd; takes small neighbouring coordinates to distant words before they are mixed."""
LANES = (0x243F6A88, 0x13198A2E)
"""First states of the two lanes, one per uniform of Box-Muller: digits of π. Two 32-bit lanes make coinciding draws
improbable."""
SEED_LIMIT = 2**63
Numbers = int | range
"""Sequences or heads: how many, from zero on, or which."""


class Stream(IntEnum):
    """What a draw is for. Numbers are part of the format: renumbering one changes every chip."""

    CELL_GAIN = 1
    CELL_OFFSET = 2
    COLUMN_GAIN = 3
    COLUMN_OFFSET = 4
    WRITE = 5
    READ = 6
    CELL_RETENTION = 7


class ArrayId(IntEnum):
    """Which of a head's two arrays: QK holds keys (first product), AV holds values (second product)."""

    QK = 0
    AV = 1


def normal(seed: int | Tensor, stream: int, *coordinates: int | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, one per coordinate tuple.

    Args:
        seed: integer in [0, 2^63), or an int64 tensor without dimensions.
        stream: what the draw is for; different streams are independent.
        coordinates: non-negative integers below 2^32, or int64 tensors of them that broadcast together; at least one
            tensor. Pass the largest tensor last: all before it are hashed at their own smaller size. Order matters to
                the result.
        dtype: floating dtype; float64 gives the same draws with finer rounding.

    Returns:
        The broadcast shape of the coordinates, on their device. |value| < 5.8, because uniforms have 24 bits.
    """
    device = next(c.device for c in coordinates if isinstance(c, Tensor))
    words = [
        c if isinstance(c, Tensor) else torch.full((), c, dtype=torch.int64, device=device)
        for c in (seed, int(stream), *coordinates)
    ]
    return _normal(words, dtype)


# One opaque operator: torch.compile must not unfold the hash, whose every step reads the step before twice.
@torch.library.custom_op("aimc::normal", mutates_args=())
def _normal(words: list[Tensor], dtype: torch.dtype) -> Tensor:
    seed, *rest = words
    radial, angular = (_hash(lane, (seed & MASK, seed >> 32, *rest)) >> 8 for lane in LANES)
    # 24 bits are exact in float32; the shift by one keeps the logarithm away from zero.
    radius = torch.sqrt(-2.0 * torch.log((radial + 1).to(dtype) * 2.0**-24))
    return radius * torch.cos(angular.to(dtype) * (2.0 * math.pi * 2.0**-24))


@_normal.register_fake
def _(words: list[Tensor], dtype: torch.dtype) -> Tensor:
    shape = torch.broadcast_shapes(*(word.shape for word in words))
    return words[-1].new_empty(shape, dtype=dtype)


def _hash(lane: int, words: tuple[Tensor, ...]) -> Tensor:
    """32 well-mixed bits, held in int64."""
    state = words[0].new_tensor(lane)
    for word in words:
        state = _mix(state ^ (word * SPREAD) & MASK)
    return state


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words in which every input bit flips every output bit with probability near one half."""
    x = ((x ^ (x >> 16)) * MIX_A) & MASK
    x = ((x ^ (x >> 15)) * MIX_B) & MASK
    return x ^ (x >> 15)


def draw_seed(generator: torch.Generator | None, device: torch.device) -> Tensor:
    """One fresh seed in [0, 2^63 − 1), an int64 tensor without dimensions on `device`.

    Args:
        generator: where it is drawn from, on any device; None: torch's global generator of `device`.
        device: where the seed is needed. It stays a tensor, so drawing one waits for no accelerator.
    """
    source = device if generator is None else generator.device
    return torch.randint(SEED_LIMIT - 1, (), generator=generator, device=source).to(device)


def with_noise(x: Tensor, noise: Tensor | None) -> Tensor:
    """`x` with noise in its unit added; None: none."""
    return x if noise is None else x + noise


def write_noise(
    seed: int | Tensor,
    layer: int,
    array: ArrayId,
    batch: Numbers,
    heads: Numbers,
    positions: Tensor,
    head_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """Unit write noise of the tokens at absolute `positions` [S]: `[B, H_kv, S, D]`, the same at every read."""
    at = _axes(positions.device, batch, heads)
    feature = torch.arange(head_size, device=positions.device)
    return normal(seed, Stream.WRITE, layer, int(array), *at, positions[:, None], feature, dtype=dtype)


def read_noise_qk(
    seed: int | Tensor,
    layer: int,
    batch: Numbers,
    heads: Numbers,
    query_positions: Tensor,
    key_positions: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Unit read noise of the first array: `[B, H, T, S]` for query positions [T] and absolute key positions [S]."""
    at = _axes(query_positions.device, batch, heads)
    return normal(seed, Stream.READ, layer, int(ArrayId.QK), *at, query_positions[:, None], key_positions, dtype=dtype)


def read_noise_av(
    seed: int | Tensor,
    layer: int,
    batch: Numbers,
    heads: Numbers,
    query_positions: Tensor,
    tile: int | Tensor,
    head_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """Unit read noise of one sub-tile of the second array: `[B, H, T, D]` for query positions [T]; of sub-tiles [J]:
    `[J, B, H, T, D]`."""
    at = _axes(query_positions.device, batch, heads)
    tile = tile[:, None, None, None, None] if isinstance(tile, Tensor) else tile
    feature = torch.arange(head_size, device=query_positions.device)
    return normal(seed, Stream.READ, layer, int(ArrayId.AV), tile, *at, query_positions[:, None], feature, dtype=dtype)


def _axes(device: torch.device, batch: Numbers, heads: Numbers) -> tuple[Tensor, Tensor]:
    """Batch and head numbers, shaped to broadcast with two more dimensions."""
    return _numbers(device, batch)[:, None, None, None], _numbers(device, heads)[:, None, None]


def _numbers(device: torch.device, numbers: Numbers) -> Tensor:
    first, behind = (0, numbers) if isinstance(numbers, int) else (numbers.start, numbers.stop)
    return torch.arange(first, behind, device=device)


@dataclass(slots=True, kw_only=True)
class Chip:
    """One chip: one draw of everything that is frozen at fabrication, for one layer.

    Nothing is stored; each method computes unit normal numbers (multiply by the standard deviation) from the chip's
    seed and the
    place of the cell or column. Heads are K/V heads: query heads of a group share the arrays of their K/V head.
    """

    seed: int
    """Which chip, in [0, 2^63)."""
    layer: int = 0
    """Which layer of the model; layers have arrays of their own."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < SEED_LIMIT:
            raise ValueError(f"Chip.seed={self.seed}: a seed is a non-negative 63-bit integer; use one in [0, 2^63)")
        if self.layer < 0:
            raise ValueError(
                f"Chip.layer={self.layer}: layers are counted from zero; give the layer's index in the model"
            )

    def cell_gain(
        self, array: ArrayId, heads: Numbers, slots: Tensor, head_size: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Gain of each cell, `[H_kv, S, D]` for int64 slot numbers `[S]` (absolute position mod window)."""
        return self._cells(Stream.CELL_GAIN, array, heads, slots, head_size, dtype)

    def cell_offset(
        self, array: ArrayId, heads: Numbers, slots: Tensor, head_size: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Offset of each cell, shaped like :meth:`cell_gain`."""
        return self._cells(Stream.CELL_OFFSET, array, heads, slots, head_size, dtype)

    def cell_retention(
        self, array: ArrayId, heads: Numbers, slots: Tensor, head_size: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Logarithm of each cell's retention time over the nominal one, shaped like :meth:`cell_gain`."""
        return self._cells(Stream.CELL_RETENTION, array, heads, slots, head_size, dtype)

    def column_gain_qk(self, heads: Numbers, slots: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Gain of each charge-to-pulse circuit, one per slot of the first array: `[H_kv, S]`."""
        return self._columns_qk(Stream.COLUMN_GAIN, heads, slots, dtype)

    def column_offset_qk(self, heads: Numbers, slots: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Offset of each charge-to-pulse circuit, shaped like :meth:`column_gain_qk`."""
        return self._columns_qk(Stream.COLUMN_OFFSET, heads, slots, dtype)

    def column_gain_av(
        self, heads: Numbers, tiles: Tensor, head_size: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Gain of each counter, one per (sub-tile, feature) of the second array: `[H_kv, J, D]` for sub-tile numbers
        `[J]`."""
        return self._cells(Stream.COLUMN_GAIN, ArrayId.AV, heads, tiles, head_size, dtype)

    def column_offset_av(
        self, heads: Numbers, tiles: Tensor, head_size: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Offset of each counter, shaped like :meth:`column_gain_av`."""
        return self._cells(Stream.COLUMN_OFFSET, ArrayId.AV, heads, tiles, head_size, dtype)

    def _cells(
        self, stream: Stream, array: ArrayId, heads: Numbers, rows: Tensor, head_size: int, dtype: torch.dtype
    ) -> Tensor:
        head = _numbers(rows.device, heads)[:, None, None]
        feature = torch.arange(head_size, device=rows.device)
        return normal(self.seed, stream, self.layer, int(array), head, rows[:, None], feature, dtype=dtype)

    def _columns_qk(self, stream: Stream, heads: Numbers, slots: Tensor, dtype: torch.dtype) -> Tensor:
        head = _numbers(slots.device, heads)[:, None]
        return normal(self.seed, stream, self.layer, int(ArrayId.QK), head, slots, dtype=dtype)
