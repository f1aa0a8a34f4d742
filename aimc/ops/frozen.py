"""What was frozen at fabrication: tables of every cell and column of a layer, drawn once and kept from call to call.

A table is a pure function of its key, so that a kept one is never stale.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aimc.hardware import Cell, Hardware
from aimc.hardware.noise import FROZEN_IN_CHIP
from aimc.ops.effects.cell import cell_coefficients
from aimc.ops.effects.noise import ArrayId, Chip

MOST_BYTES = 2**30
"""Of all kept tables together. Mismatched cells of GPT-2 small at 1024 slots have 300 MB a chip."""
MOST_ASKED = 4096
"""Keys of which it is remembered when they were asked for."""
Table = Tensor | float | None
"""For every K/V head and place; a number that all share; or None: there is no such effect."""


class KernelTables(NamedTuple):
    """Of all cells and columns of a layer, as the Triton kernels take them; None: there is no such effect."""

    coefficients: Sequence[Tensor | None]
    """κ_j of the cells of each array (:func:`aimc.ops.effects.cell.cell_coefficients`): float32 `[P, H_kv, W, D]`."""
    leak_rates: Sequence[Tensor | None]
    """λ of the cells of each array per token time, `[H_kv, W, D]`."""
    columns: Sequence[Sequence[Tensor | None]]
    """Gain and offset of the charge-to-pulse circuits `[H_kv, W]`, of the counters `[H_kv, J, D]`, and of those of the
    normaliser columns `[H_kv, J, 1]`."""


NO_TABLES = KernelTables((None, None), (None, None), ((None, None),) * 3)
"""Of a chip whose cells and columns are all alike."""


class Kept:
    """Tables by key, and which chip they are of. Nobody may change them.

    Where there is no room, those of other chips go, the least recently used first; and of the same chip those that
    nobody has asked for since the new one was asked for last. So layers that ask in turn, and have no room together,
    do not throw out what the next one asks for: the last ones are made each time.

    Args:
        most_bytes: that they have together.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes, self.n_bytes = most_bytes, 0
        self._tables: OrderedDict[Hashable, Sequence[Table]] = OrderedDict()
        self._chips: dict[Hashable, Hashable] = {}
        self._asked: OrderedDict[Hashable, int] = OrderedDict()
        self._now = 0
        self._lock = threading.Lock()

    def get(
        self, key: Hashable, make: Callable[[], Sequence[Table]], *, chip: Hashable = None, keep: bool = True
    ) -> Sequence[Table]:
        """The tables of a key, made if they are not there; with `keep` false these are not kept. `chip`: whose."""
        with self._lock:
            before = self._ask(key)
            if key in self._tables:
                self._tables.move_to_end(key)
                return self._tables[key]
        with torch.inference_mode(False), torch.no_grad():  # a tensor of the inference mode is of no use in training
            tables = make()
        if not keep:
            return tables
        with self._lock:
            if key not in self._tables and self._has_room(_n_bytes(tables), chip, before):
                self._tables[key] = tables
                self._chips[key] = chip
                self.n_bytes += _n_bytes(tables)
        return tables

    def _ask(self, key: Hashable) -> int:
        """When this was asked for before; 0: never, or long ago."""
        self._now += 1
        before, self._asked[key] = self._asked.pop(key, 0), self._now
        if len(self._asked) > MOST_ASKED:
            self._asked.popitem(last=False)
        return before

    def _has_room(self, n_bytes: int, chip: Hashable, before: int) -> bool:
        """Whether so many more can be kept, once enough is gone: of other chips, or not asked for since `before`."""
        others = [key for key in self._tables if self._chips[key] != chip or self._asked.get(key, 0) < before]
        free = self.most_bytes - self.n_bytes
        if n_bytes > free + sum(_n_bytes(self._tables[key]) for key in others):
            return False
        while n_bytes > self.most_bytes - self.n_bytes:
            key = others.pop(0)
            self.n_bytes -= _n_bytes(self._tables.pop(key))
            del self._chips[key]
        return True

    def clear(self) -> None:
        """Forget all, and free their memory."""
        with self._lock:
            self._tables.clear()
            self._chips.clear()
            self._asked.clear()
            self.n_bytes = 0


KEPT = Kept()
"""Of all chips of this process."""


class Frozen:
    """The tables of one layer of one chip, for its K/V heads H_kv and all its places.

    Args:
        hardware: the machine.
        chip: which one, and which layer.
        cell: what the arrays are made of, about the voltage that it leaks to.
        n_kv_heads, head_size, dtype, device: of the layer.
    """

    def __init__(
        self,
        hardware: Hardware,
        chip: Chip,
        cell: Cell,
        n_kv_heads: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.noise, self.array, self.cell, self.chip = hardware.noise, hardware.array, cell, chip
        self.n_kv_heads, self.head_size, self.dtype, self.device = n_kv_heads, head_size, dtype, device
        self.decay_per_token = hardware.leakage.decay_per_token

    def mismatch(self, array: ArrayId) -> Sequence[Table]:
        """Relative gain of each cell, and offset in volt: `[H_kv, W, D]` each."""
        noise = self.noise
        return self._kept(
            lambda: self._drawn_mismatch(array), "mismatch", array, noise.mismatch_gain, noise.mismatch_offset_v
        )

    def coefficients(self, array: ArrayId) -> Sequence[Table]:
        """κ_j of each cell, see :func:`aimc.ops.effects.cell.cell_coefficients`: `[H_kv, W, D]` or a number each;
        empty: all cells are the nominal one."""
        sigmas = self.noise.mismatch_gain, self.noise.mismatch_offset_v
        if not any(sigmas):
            return ()
        return self._kept(
            lambda: cell_coefficients(self.cell, *self._drawn_mismatch(array)),
            *("coefficients", array, *sigmas, *self.cell.coefficients),
        )

    def of_kernels(self) -> KernelTables:
        """All that there is, found at once: a GPU waits for whoever looks."""

        def make() -> list[Table]:
            rates = [self.leak_rates(array) for array in ArrayId]
            columns = self.columns_qk(), self.columns_av(), self.columns_of_sum()
            return [*map(self._coefficient_table, ArrayId), *rates, *itertools.chain(*columns)]

        sigmas = [getattr(self.noise, name) for name in FROZEN_IN_CHIP]
        tables: Any = self._kept(make, "of kernels", self.decay_per_token, *sigmas, *self.cell.coefficients)
        return KernelTables(tables[:2], tables[2:4], [tables[i : i + 2] for i in (4, 6, 8)])

    def _coefficient_table(self, array: ArrayId) -> Tensor | None:
        sigmas = self.noise.mismatch_gain, self.noise.mismatch_offset_v
        if not any(sigmas):
            return None
        coefficients = cell_coefficients(self.cell, *self._drawn_mismatch(array))
        like = next(c for c in coefficients if isinstance(c, Tensor))
        return torch.stack([c if isinstance(c, Tensor) else torch.full_like(like, c) for c in coefficients]).float()

    def leak_rates(self, array: ArrayId) -> Tensor | None:
        """λ of each cell per token time, `[H_kv, W, D]`; None: all leak alike, or not at all."""
        spread, rate = self.noise.tau_spread, self.decay_per_token
        if not (spread and rate):
            return None

        def make() -> list[Tensor]:
            return [rate * torch.exp(-spread * self._cells(self.chip.cell_retention, array))]

        (rates,) = self._kept(make, "leakage", array, spread, rate)
        assert isinstance(rates, Tensor)  # made above
        return rates

    def columns_qk(self) -> Sequence[Table]:
        """Gain and offset of the charge-to-pulse circuits, one per slot: `[H_kv, W]` each."""
        gain, offset = self.noise.column_gain, self.noise.column_offset

        def make() -> list[Table]:
            at = self.n_kv_heads, torch.arange(self.array.window, device=self.device), self.dtype
            return [
                gain * self.chip.column_gain_qk(*at) if gain else None,
                offset * self.chip.column_offset_qk(*at) if offset else None,
            ]

        return self._kept(make, "columns_qk", gain, offset)

    def columns_av(self) -> Sequence[Table]:
        """Gain and offset of the counters, one per sub-tile and feature: `[H_kv, J, D]` each."""
        return self._counters("columns_av", self.head_size, slice(None))

    def columns_of_sum(self) -> Sequence[Table]:
        """Gain and offset of the normaliser columns' counters, one per sub-tile, behind those of the features: `[H_kv,
        J, 1]` each."""
        return self._counters("columns_of_sum", self.head_size + 1, slice(-1, None))

    def _counters(self, name: str, n_columns: int, which: slice) -> Sequence[Table]:
        gain, offset = self.noise.column_gain, self.noise.column_offset

        def make() -> list[Table]:
            tiles = torch.arange(self.array.n_tiles, device=self.device)
            at = self.n_kv_heads, tiles, n_columns, self.dtype
            return [
                (gain * self.chip.column_gain_av(*at)[..., which]).contiguous() if gain else None,
                (offset * self.chip.column_offset_av(*at)[..., which]).contiguous() if offset else None,
            ]

        return self._kept(make, name, gain, offset)

    def _drawn_mismatch(self, array: ArrayId) -> list[Tensor | None]:
        gain, offset_v = self.noise.mismatch_gain, self.noise.mismatch_offset_v
        return [
            gain * self._cells(self.chip.cell_gain, array) if gain else None,
            offset_v * self._cells(self.chip.cell_offset, array) if offset_v else None,
        ]

    def _cells(self, draw: Callable[..., Tensor], array: ArrayId) -> Tensor:
        slots = torch.arange(self.array.window, device=self.device)
        return draw(array, self.n_kv_heads, slots, self.head_size, self.dtype)

    def _kept(self, make: Callable[[], Sequence[Table]], *key: Hashable) -> Sequence[Table]:
        if torch.compiler.is_compiling():  # a compiled graph draws for itself: it would hold the tables for ever
            return make()
        sizes = self.array.window, self.array.rows, self.n_kv_heads, self.head_size
        # While a graph is recorded nothing is computed, so that what is made would be read empty until it is replayed.
        recorded = self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        whole_key = (*key, self.chip, *sizes, self.dtype, self.device)
        chip = self.chip.seed, tuple(getattr(self.noise, name) for name in FROZEN_IN_CHIP)
        return KEPT.get(whole_key, make, chip=chip, keep=not recorded)


def _n_bytes(tables: Sequence[Table]) -> int:
    return sum(table.nbytes for table in tables if isinstance(table, Tensor))
