"""The arrays of one call: what is written to them and with which errors they are read, the same for every backend."""

from __future__ import annotations

import torch
from torch import Tensor

from aimc.hardware import Array, Cell, Hardware
from aimc.ops.effects.array import CellDecay, Decay, together
from aimc.ops.effects.cell import cell_operands, leaking_cell
from aimc.ops.effects.leakage import age, decay_factor
from aimc.ops.effects.noise import ArrayId, Chip, read_noise_av, read_noise_qk, write_noise
from aimc.ops.effects.quantize import dac


class Heads:
    """Sizes, chip and noise of the heads of one call.

    Args:
        query: `[B, H, T, D]`; sizes, device and dtype are taken from it (float32, or float64 for float64).
        key: `[B, H_kv, T, D]`.
        hardware: the machine.
        chip: which chip and layer; None: nothing of it is frozen.
        seed: of this call's write and read noise, int64 without dimensions.
    """

    def __init__(self, query: Tensor, key: Tensor, hardware: Hardware, chip: Chip | None, seed: Tensor | int) -> None:
        self.hardware = hardware
        self.chip = chip or Chip(seed=0)  # whether one was needed is checked before
        self.layer = self.chip.layer
        self.seed = seed
        self.dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.device = query.device
        self.n_batch, self.n_heads, self.n_tokens, self.head_size = query.shape
        self.n_kv_heads = key.shape[1]

    @property
    def cell(self) -> Cell:
        """What the arrays are made of, about the voltage that it leaks to."""
        return leaking_cell(self.hardware)

    @property
    def leaks_apart(self) -> bool:
        """Whether cells leak, and each at a rate of its own."""
        return bool(self.hardware.noise.tau_spread and self.hardware.leakage.decay_per_token)

    @property
    def group(self) -> int:
        """Query heads that share one K/V head."""
        return self.n_heads // self.n_kv_heads

    def for_query_heads(self, x: Tensor, dim: int) -> Tensor:
        """One entry per K/V head → one per query head, along `dim`."""
        return x if self.group == 1 else x.repeat_interleave(self.group, dim=dim)

    def stored_u(self, scaled: Tensor, array: ArrayId, tokens: Tensor) -> Tensor:
        """Write scaled keys or values `[B, H_kv, S, D]` of the tokens `[S]`: voltages about the leak target, with write
        noise."""
        hardware, noise = self.hardware, self.hardware.noise
        stored_v = dac(scaled, hardware.storage_dac)
        if noise.write_v:
            unit = write_noise(
                self.seed, self.layer, array, self.n_batch, self.n_kv_heads, tokens, self.head_size, self.dtype
            )
            stored_v = stored_v + noise.write_v * unit
        return stored_v - self.cell.offset_v

    def cell_errors(self, array: ArrayId, tokens: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gain and offset mismatch of the cells that hold the tokens `[S]`: `[H_kv, S, D]` each, the offset in volt;
        None: none."""
        noise = self.hardware.noise
        cells = (array, self.n_kv_heads, tokens % self.hardware.array.window, self.head_size, self.dtype)
        gain = noise.mismatch_gain * self.chip.cell_gain(*cells) if noise.mismatch_gain else None
        offset_v = noise.mismatch_offset_v * self.chip.cell_offset(*cells) if noise.mismatch_offset_v else None
        return gain, offset_v

    def leak_rates(self, array: ArrayId, tokens: Tensor) -> Tensor | None:
        """λ of each of the cells that hold the tokens `[S]`, per token time, `[H_kv, S, D]`; None: all leak alike, or
        not at all."""
        if not self.leaks_apart:
            return None
        slots = tokens % self.hardware.array.window
        unit = self.chip.cell_retention(array, self.n_kv_heads, slots, self.head_size, self.dtype)
        return self.hardware.leakage.decay_per_token * torch.exp(-self.hardware.noise.tau_spread * unit)

    def written(self, scaled: Tensor, array: ArrayId, tokens: Tensor) -> tuple[Tensor, list[Tensor | float]]:
        """:meth:`stored_u`, and what these cells do to a pulse: the operands of
        :func:`aimc.ops.effects.cell.cell_operands`, `[B, H_kv, S, D]`."""
        u = self.stored_u(scaled, array, tokens)
        return u, self.operands(u, array, tokens)

    def operands(self, u: Tensor, array: ArrayId, tokens: Tensor) -> list[Tensor | float]:
        """What the cells that hold voltages `u` about their leak target do to a pulse."""
        gain, offset_v = self.cell_errors(array, tokens)
        operands = cell_operands(u, self.cell, gain=gain, offset_v=offset_v)
        return (
            operands if self.hardware.leakage.decay_per_token else [together(operands)]
        )  # all powers stay as they are

    def column_tables_qk(self, slots: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gain and offset of the charge-to-pulse circuits of the slots `[S]`: `[H_kv, S]` each; None: none."""
        noise = self.hardware.noise
        columns = (self.n_kv_heads, slots, self.dtype)
        gain = noise.column_gain * self.chip.column_gain_qk(*columns) if noise.column_gain else None
        offset = noise.column_offset * self.chip.column_offset_qk(*columns) if noise.column_offset else None
        return gain, offset

    def column_tables_av(self, tiles: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gain and offset of the counters of the sub-tiles `[J]`: `[H_kv, J, D]` each; None: none."""
        noise = self.hardware.noise
        columns = (self.n_kv_heads, tiles, self.head_size, self.dtype)
        gain = noise.column_gain * self.chip.column_gain_av(*columns) if noise.column_gain else None
        offset = noise.column_offset * self.chip.column_offset_av(*columns) if noise.column_offset else None
        return gain, offset

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

    def _for_query_heads(self, x: Tensor | None) -> Tensor | None:
        return None if x is None else self.for_query_heads(x, dim=0)

    def read_noise_qk(self, rows: Tensor, tokens: Tensor) -> Tensor | None:
        """Read noise of the first array in full scales, `[B, H, T', S]`; None: none."""
        sigma = self.hardware.noise.read_qk
        at = (self.n_batch, self.n_heads, rows, tokens, self.dtype)
        return sigma * read_noise_qk(self.seed, self.layer, *at) if sigma else None

    def read_noise_av(self, rows: Tensor, tile: int) -> Tensor | None:
        """Read noise of one sub-tile of the second array in full scales, `[B, H, T', D]`; None: none."""
        sigma = self.hardware.noise.read_av
        at = (self.n_batch, self.n_heads, rows, tile, self.head_size, self.dtype)
        return sigma * read_noise_av(self.seed, self.layer, *at) if sigma else None

    def decay(self, times: Tensor, written: Tensor) -> Tensor | None:
        """By how much what was written at the times `[S]` has fallen at the times `[T']`, in token times: `[T', S]`;
        None: no leakage."""
        per_token = self.hardware.leakage.decay_per_token
        return decay_factor(age(times, written), per_token, dtype=self.dtype) if per_token else None

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

    def visible(self, rows: Tensor, tokens: Tensor, padding: Tensor | None) -> Tensor:
        """Which tokens `[S]` the queries `[T']` see: `[T', S]`, or `[B, 1, T', S]` with their padding `[B, S]`."""
        visible = (tokens <= rows[:, None]) & (age(rows, tokens) < self.hardware.array.window)
        return visible if padding is None else visible & ~padding[:, None, None, :]


def n_tiles_reached(n_tokens: int, array: Array) -> int:
    """Sub-tiles that any of `n_tokens` tokens is written to."""
    return -(-min(n_tokens, array.window) // array.rows)
