"""Noise by place: every draw is a pure function of a seed and of where in the machine it is met.

The same seed and coordinates give the same number whatever the block size, the order or the backend. That is what makes
a chip physical (token s and token s+W meet the same cell) and a decoder equal to the parallel form. The numbers come
from :mod:`aimc.ops.effects.random`; what is frozen is kept, see
:mod:`aimc.ops.frozen`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from aimc.ops.effects.random import normal

SEED_LIMIT = 2**63
Numbers = int | range | Tensor
"""Sequences or heads: how many, from zero on, or which, a range or int64 `[N]`."""


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


def draw_seed(generator: torch.Generator | None, device: torch.device) -> Tensor:
    """One fresh seed in [0, 2^63 − 1), an int64 tensor without dimensions on `device`.

    Args:
        generator: where it is drawn from, on any device; None: torch's global generator of `device`.
        device: where the seed is needed. It stays a tensor, so drawing one waits for no accelerator.
    """
    source = device if generator is None else generator.device
    return brought(torch.randint(SEED_LIMIT - 1, (), generator=generator, device=source), device)


def brought(x: Tensor, device: torch.device) -> Tensor:
    """The same numbers on a device. A GPU is not waited for, which would have to end all that it still does: CUDA has
    taken what lies in a CPU's ordinary memory before it returns."""
    is_taken = device.type == "cuda" and x.device.type == "cpu" and not x.is_pinned()
    return x.to(device, non_blocking=is_taken)


def draws_of(seed: int, first_sequence: int = 0) -> Tensor:
    """Whose noise a pass is to meet, int64 `[2]` for :func:`aimc.gain_cell_attention`.

    The noise of a sequence follows from the seed and its number, not from the batch that it is read in: a step that is
    split into micro-batches, or over processes, meets the same noise as a whole.

    Args:
        seed: in [0, 2^63), of all the sequences that are numbered together.
        first_sequence: number of the first sequence of the pass, in [0, 2^31); the others follow it.

    Raises:
        ValueError: a number outside its range.
    """
    if not (0 <= seed < SEED_LIMIT and 0 <= first_sequence < 2**31):
        raise ValueError(
            f"seed={seed}, first_sequence={first_sequence}: noise is drawn by a seed in [0, 2^63) and a sequence's"
            " number in [0, 2^31); give such numbers"
        )
    return torch.tensor([seed, first_sequence])


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
    feature = torch.arange(head_size, device=positions.device)
    return normal(seed, *at_write(layer, array, batch, heads, positions), feature, dtype=dtype)


def at_write(layer: int, array: ArrayId, batch: Numbers, heads: Numbers, positions: Tensor) -> tuple[int | Tensor, ...]:
    """First coordinates of the write noise of tokens at absolute `positions` `[S]`, `[B, H_kv, S, 1]`. The feature
    follows."""
    device = positions.device
    at = _numbers(device, batch)[:, None, None, None], _numbers(device, heads)[:, None, None]
    return Stream.WRITE, layer, int(array), *at, positions[:, None]


def at_read(layer: int, array: ArrayId, batch: Numbers, heads: Numbers, positions: Tensor) -> tuple[int | Tensor, ...]:
    """First coordinates of the read noise of queries at absolute `positions` `[T]`, `[B, H, T, 1]`. Absolute positions
    of the keys follow in the first array; number of the sub-tile and feature in the second."""
    device = positions.device
    at = _numbers(device, batch)[:, None, None, None], _numbers(device, heads)[:, None, None]
    return Stream.READ, layer, int(array), *at, positions[:, None]


def _numbers(device: torch.device, numbers: Numbers) -> Tensor:
    if isinstance(numbers, Tensor):
        return numbers
    first, behind = (0, numbers) if isinstance(numbers, int) else (numbers.start, numbers.stop)
    return torch.arange(first, behind, device=device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """One chip: one draw of everything that is frozen at fabrication, for one layer.

    Each method computes unit normal numbers (multiply by the standard deviation) from the chip's seed and the place of
    the cell or column. Heads are K/V heads: query heads of a group share the arrays of their K/V head.
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
        self, array: ArrayId, heads: Numbers, places: Tensor, head_size: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Gain of each cell, `[H_kv, S, D]` for int64 slot numbers `[S]` (absolute position mod window)."""
        return self._cells(Stream.CELL_GAIN, array, heads, places, head_size, dtype)

    def cell_offset(
        self, array: ArrayId, heads: Numbers, places: Tensor, head_size: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Offset of each cell, shaped like :meth:`cell_gain`."""
        return self._cells(Stream.CELL_OFFSET, array, heads, places, head_size, dtype)

    def cell_retention(
        self, array: ArrayId, heads: Numbers, places: Tensor, head_size: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Logarithm of each cell's retention time over the nominal one, shaped like :meth:`cell_gain`."""
        return self._cells(Stream.CELL_RETENTION, array, heads, places, head_size, dtype)

    def column_gain_qk(self, heads: Numbers, places: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Gain of each charge-to-pulse circuit, one per slot `[S]` of the first array: `[H_kv, S]`."""
        return self._columns_qk(Stream.COLUMN_GAIN, heads, places, dtype)

    def column_offset_qk(self, heads: Numbers, places: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Offset of each charge-to-pulse circuit, shaped like :meth:`column_gain_qk`."""
        return self._columns_qk(Stream.COLUMN_OFFSET, heads, places, dtype)

    def column_gain_av(
        self, heads: Numbers, places: Tensor, head_size: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Gain of each counter, one per (sub-tile, feature) of the second array: `[H_kv, J, D]` for sub-tile numbers
        `[J]`."""
        return self._cells(Stream.COLUMN_GAIN, ArrayId.AV, heads, places, head_size, dtype)

    def column_offset_av(
        self, heads: Numbers, places: Tensor, head_size: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Offset of each counter, shaped like :meth:`column_gain_av`."""
        return self._cells(Stream.COLUMN_OFFSET, ArrayId.AV, heads, places, head_size, dtype)

    def _cells(
        self, stream: Stream, array: ArrayId, heads: Numbers, places: Tensor, head_size: int, dtype: torch.dtype
    ) -> Tensor:
        head = _numbers(places.device, heads)[:, None, None]
        feature = torch.arange(head_size, device=places.device)
        return normal(self.seed, stream, self.layer, int(array), head, places[:, None], feature, dtype=dtype)

    def _columns_qk(self, stream: Stream, heads: Numbers, places: Tensor, dtype: torch.dtype) -> Tensor:
        head = _numbers(places.device, heads)[:, None]
        return normal(self.seed, stream, self.layer, int(ArrayId.QK), head, places, dtype=dtype)
