"""The heads of one call: sizes, and all that chance has drawn for them, the same in every form of the operator."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from aimc.hardware import Cell, Hardware
from aimc.ops.effects.activation import Corrections
from aimc.ops.effects.ageing import retained
from aimc.ops.effects.array import CellDecay, Decay
from aimc.ops.effects.cell import leaking_cell
from aimc.ops.effects.leakage import age, decay_factor
from aimc.ops.effects.noise import ArrayId, Chip, at_read, at_write, write_noise
from aimc.ops.effects.random import Lanes, normal
from aimc.ops.frozen import NO_TABLES, Frozen, KernelTables
from aimc.ops.scaling import Scaling, per_head


class Heads:
    """Sizes, chip and noise of the heads of one call.

    Args:
        query: `[B, H, T, D]`; sizes, device and dtype are taken from it (float32, or float64 for float64).
        key: `[B, H_kv, T, D]`.
        hardware: the machine.
        chip: which chip and layer; None: nothing of it is frozen.
        seed: of this call's write and read noise, int64 without dimensions.
        first_sequence: number of the first sequence among those that share the seed, likewise.
        cell: `leaking_cell(hardware)`, where it is known already.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        hardware: Hardware,
        chip: Chip | None,
        seed: Tensor | int,
        cell: Cell | None = None,
        first_sequence: Tensor | int = 0,
    ) -> None:
        self.hardware = hardware
        self.cell = cell or leaking_cell(hardware)
        """What the arrays are made of, about the voltage that it leaks to."""
        self.decay_per_token = hardware.leakage.decay_per_token
        """λ; 0 without leakage."""
        compensates = hardware.leakage.compensate and self.decay_per_token
        self.retained = retained(hardware) if compensates else None
        """What age compensation makes up for; None: it is off, or nothing leaks."""
        self.chip = chip or Chip(seed=0)  # whether one was needed is checked before
        self.layer = self.chip.layer
        self.seed, self.first_sequence = seed, first_sequence
        self.given_draws: Tensor | None = None
        """Both as one tensor, where somebody has it."""
        self.dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.device = query.device
        self.n_batch, self.n_heads, self.n_tokens, self.head_size = query.shape
        self.n_kv_heads = key.shape[1]
        self.batch, self.kv_heads = range(self.n_batch), range(self.n_kv_heads)
        """Which sequences and K/V heads of the layer these are."""
        self._frozen = Frozen(hardware, self.chip, self.cell, self.n_kv_heads, self.head_size, self.dtype, self.device)

    def part(self, batch: range, kv_heads: range) -> Heads:
        """Some of the sequences and some of the K/V heads with their query heads, each with the draws that it has
        among all."""
        part = copy.copy(self)
        part.batch, part.kv_heads = batch, kv_heads
        part.n_batch, part.n_kv_heads, part.n_heads = len(batch), len(kv_heads), len(kv_heads) * self.group
        return part

    @property
    def draws(self) -> Tensor:
        """Seed and number of the first sequence of the call, int64 `[2]`."""
        if self.given_draws is not None:
            return self.given_draws
        return torch.stack([torch.as_tensor(x, device=self.device) for x in (self.seed, self.first_sequence)])

    @property
    def sequences(self) -> Tensor:
        """Numbers of these sequences among those that share the seed, int64 `[B]`."""
        return torch.arange(self.batch.start, self.batch.stop, device=self.device) + self.first_sequence

    @property
    def query_heads(self) -> range:
        """Which query heads of the layer these are."""
        return range(self.kv_heads.start * self.group, self.kv_heads.stop * self.group)

    @property
    def leaks_apart(self) -> bool:
        """Whether cells leak, and each at a rate of its own."""
        return self.hardware.leaks_apart

    @property
    def group(self) -> int:
        """Query heads that share one K/V head."""
        return self.n_heads // self.n_kv_heads

    def for_query_heads(self, x: Tensor, dim: int) -> Tensor:
        """One entry per K/V head → one per query head, along `dim`."""
        return x if self.group == 1 else x.repeat_interleave(self.group, dim=dim)

    def full_scale_qk(self, scaling: Scaling) -> Tensor | float:
        """Charge that fills the score ADC, or gives the longest pulse, in signal units: a number or `[H, 1, 1]`."""
        return self.hardware.array.saturation_qk * per_head(scaling.full_scale_qk, self.dtype)

    def full_scale_av(self, scaling: Scaling) -> Tensor | float:
        """Charge that fills a sub-tile's counter, in signal units: a number or `[H, 1, 1]`."""
        return self.hardware.array.saturation_av * per_head(scaling.full_scale_av, self.dtype)

    def full_scale_of_sum(self, scaling: Scaling) -> Tensor | float:
        """Pulses of full length that fill the counter of a sub-tile's normaliser column: a number or `[H, 1, 1]`."""
        return self.hardware.normaliser.full_scale * per_head(scaling.full_scale_of_sum, self.dtype)

    def full_scales(self, scaling: Scaling) -> tuple[Tensor | float, Tensor | float, Tensor | float]:
        """All three."""
        return self.full_scale_qk(scaling), self.full_scale_av(scaling), self.full_scale_of_sum(scaling)

    @property
    def corrects(self) -> bool:
        """Whether digital logic makes up for age, or for what keys and values were divided by."""
        return self.retained is not None or self.hardware.features.normalises

    def corrections(
        self,
        times: list[Tensor],
        written: list[Tensor],
        norms: list[tuple[Tensor | None, Tensor | None]],
        relative_pulses: Tensor,
    ) -> Corrections:
        """What digital logic does with the parts of the keys that were read from the arrays.

        Args:
            times: when each part was read, `[T']`.
            written: when its tokens were written, `[S]`.
            norms: by what its keys and values were divided, `[B, H_kv, S]`; None: by one.
            relative_pulses: pulses over S_sat, `[B, H, T, D]`.
        """
        score: list[Tensor | float] = []
        pulse: list[Tensor | float] = []
        for read, stored, of_tokens in zip(times, written, norms, strict=True):
            left = 1.0 if self.retained is None else 1.0 / self.retained.of(self.decay(read, stored))  # type: ignore[arg-type]
            for factors, norm in zip((score, pulse), of_tokens, strict=True):
                factors.append(left if norm is None else left * self.for_query_heads(norm, dim=1)[:, :, None])
        features = self.hardware.features
        keeps = not features.normalise_keys, not features.normalise_values
        return Corrections(score, pulse, self.cell.coefficients[0] * relative_pulses.sum(dim=-1, keepdim=True), keeps)

    def write_noise(self, array: ArrayId, tokens: Tensor) -> Tensor | None:
        """Write noise of the tokens `[S]` in volt, `[B, H_kv, S, D]`; None: none."""
        sigma = self.hardware.noise.write_v
        at = (self.sequences, self.kv_heads, tokens, self.head_size, self.dtype)
        return sigma * write_noise(self.seed, self.layer, array, *at) if sigma else None

    def add_write_noise_(self, volts: Tensor, array: ArrayId, tokens: Tensor) -> Tensor:
        """:meth:`write_noise` added to what is written, `[B, H_kv, S, D]`, in place and without a gradient; returns
        it."""
        sigma = self.hardware.noise.write_v
        if sigma:
            at = at_write(self.layer, array, self.sequences, self.kv_heads, tokens)
            features = torch.arange(self.head_size, device=self.device)
            Lanes.of(torch.as_tensor(self.seed, device=self.device), *at).add_normal_(volts, sigma, features)
        return volts

    def mismatch(self, array: ArrayId, tokens: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gain and offset mismatch of the cells that hold the tokens `[S]`: `[H_kv, S, D]` each, the offset in volt;
        None: none."""
        gain, offset_v = self._frozen.mismatch(array)
        return self._part(gain, self._slots(tokens)), self._part(offset_v, self._slots(tokens))

    def coefficients(self, array: ArrayId, tokens: Tensor) -> list[Tensor | float]:
        """κ_j of the cells that hold the tokens `[S]`, see :func:`aimc.ops.effects.cell.cell_coefficients`: `[H_kv, S,
        D]` or a number each."""
        tables = [self._part(table, self._slots(tokens)) for table in self._frozen.coefficients(array)]
        return [table for table in tables if table is not None] or list(self.cell.coefficients)

    def kernel_tables(self) -> KernelTables:
        """All of the layer, which nobody may change."""
        return self._frozen.of_kernels() if self.hardware.noise.is_frozen_in_chip() else NO_TABLES

    def all_columns(self) -> list[tuple[Tensor | None, Tensor | None]]:
        """:meth:`column_tables_qk`, :meth:`column_tables_av` and :meth:`column_tables_of_sum` of all places of the
        layer, which nobody may change."""
        frozen = self._frozen
        return [frozen.columns_qk(), frozen.columns_av(), frozen.columns_of_sum()]  # type: ignore[list-item]

    def cell_errors(self, array: ArrayId) -> tuple[Tensor | None, Tensor | None]:
        """:meth:`mismatch` of all cells of the layer, `[H_kv, W, D]` each, which nobody may change."""
        gain, offset_v = self._frozen.mismatch(array)
        assert not isinstance(gain, float) and not isinstance(offset_v, float)  # each cell has its own
        return gain, offset_v

    def leak_rates(self, array: ArrayId, tokens: Tensor) -> Tensor | None:
        """λ of each of the cells that hold the tokens `[S]`, per token time, `[H_kv, S, D]`; None: all leak alike, or
        not at all."""
        return self._part(self._frozen.leak_rates(array), self._slots(tokens))

    def column_tables_qk(self, slots: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gain and offset of the charge-to-pulse circuits of the slots `[S]`: `[H_kv, S]` each; None: none."""
        gain, offset = self._frozen.columns_qk()
        return self._part(gain, slots), self._part(offset, slots)

    def column_tables_av(self, tiles: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gain and offset of the counters of the sub-tiles `[J]`: `[H_kv, J, D]` each; None: none."""
        gain, offset = self._frozen.columns_av()
        return self._part(gain, tiles), self._part(offset, tiles)

    def _slots(self, tokens: Tensor) -> Tensor:
        return tokens % self.hardware.array.window

    def _part(self, table: Any, places: Tensor) -> Any:
        """A table of the layer for these heads and places; what all share stays as it is."""
        if not isinstance(table, Tensor):
            return table
        of_heads = table[self.kv_heads.start : self.kv_heads.stop]
        if torch.compiler.is_compiling() or self.device.type != "cpu" or not bool((places.diff() == 1).all()):
            return of_heads[:, places]
        return of_heads[:, int(places[0]) : int(places[0]) + len(places)]  # neighbours need not be copied

    def column_errors_qk(self, tokens: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """:meth:`column_tables_qk` for the columns of the tokens `[S]`, as query heads meet them: `[H, 1, S]` each;
        None: none."""
        gain, offset = self.column_tables_qk(tokens % self.hardware.array.window)
        gain, offset = self._for_query_heads(gain), self._for_query_heads(offset)
        return (None if gain is None else gain[:, None]), (None if offset is None else offset[:, None])

    def column_errors_av(self, tiles: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """:meth:`column_tables_av` as query heads meet them: `[H, J, D]` each; None: none."""
        gain, offset = self.column_tables_av(tiles)
        return self._for_query_heads(gain), self._for_query_heads(offset)

    def column_tables_of_sum(self, tiles: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gain and offset of the normaliser columns' counters, as :meth:`column_tables_av`: `[H_kv, J, 1]` each."""
        gain, offset = self._frozen.columns_of_sum()
        return self._part(gain, tiles), self._part(offset, tiles)

    def column_errors_of_sum(self, tiles: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """:meth:`column_tables_of_sum` as query heads meet them: `[H, J, 1]` each; None: none."""
        gain, offset = self.column_tables_of_sum(tiles)
        return self._for_query_heads(gain), self._for_query_heads(offset)

    def _for_query_heads(self, x: Tensor | None) -> Tensor | None:
        return None if x is None else self.for_query_heads(x, dim=0)

    def read_noise_qk(self, rows: Tensor, tokens: Tensor) -> Tensor | None:
        """Read noise of the first array in full scales, `[B, H, T', S]`; None: none."""
        if not (sigma := self.hardware.noise.read_qk):
            return None
        return sigma * normal(self.seed, *self._at_read(ArrayId.QK, rows), tokens, dtype=self.dtype)

    def read_noise_av(self, rows: Tensor, tile: int | Tensor) -> Tensor | None:
        """Read noise of one sub-tile of the second array in full scales, `[B, H, T', D]`, or of the sub-tiles `[J]`,
        `[J, B, H, T', D]`; None: none."""
        if not (sigma := self.hardware.noise.read_av):
            return None
        tile = tile[:, None, None, None, None] if isinstance(tile, Tensor) else tile
        features = torch.arange(self.head_size, device=self.device)
        return sigma * normal(self.seed, *self._at_read(ArrayId.AV, rows), tile, features, dtype=self.dtype)

    def read_noise_of_sum(self, rows: Tensor, tiles: Tensor) -> Tensor | None:
        """Read noise of the normaliser column of the sub-tiles `[J]` in full scales of its counter, `[J, B, H, T', 1]`;
        None: none. It is the column behind the last feature."""
        if not (sigma := self.hardware.noise.read_av):
            return None
        at = *self._at_read(ArrayId.AV, rows), tiles[:, None, None, None, None]
        behind = torch.full((1,), self.head_size, device=self.device)
        return sigma * normal(self.seed, *at, behind, dtype=self.dtype)

    def read_lanes(self, array: ArrayId, rows: Tensor) -> Lanes | None:
        """What the draws of the read noise of an array have in common, `[2, B, H, T', 1]`; None: there is none."""
        noise = self.hardware.noise
        if not (noise.read_qk if array == ArrayId.QK else noise.read_av):
            return None
        return Lanes.of(torch.as_tensor(self.seed, device=self.device), *self._at_read(array, rows))

    def _at_read(self, array: ArrayId, rows: Tensor) -> tuple[int | Tensor, ...]:
        return at_read(self.layer, array, self.sequences, self.query_heads, rows)

    def decay(self, times: Tensor, written: Tensor) -> Tensor | None:
        """By how much what was written at the times `[S]` has fallen at the times `[T']`, in token times: `[T', S]`;
        None: no leakage."""
        if not self.decay_per_token:
            return None
        return decay_factor(age(times, written), self.decay_per_token, dtype=self.dtype)

    def decays(self, times: Tensor, written: Tensor, tokens: Tensor) -> tuple[Decay, Decay]:
        """:meth:`decay` of the tokens `[S]` in the first and in the second array, cell by cell where their rates are
        spread."""
        rates = [self.leak_rates(array, tokens) for array in ArrayId]
        if rates[0] is None or rates[1] is None:
            of_both = self.decay(times, written)
            return of_both, of_both
        ages = age(times, written)
        first, second = (
            CellDecay(ages, self.for_query_heads(of_array, dim=0)) for of_array in rates if of_array is not None
        )
        return first, second
