"""The cells of one array between tokens, and how all of them are read at one moment.

Kept is what is physical: the code of a storage level, a byte a cell, or its voltage where nothing but the voltage says
what a cell holds. Charge is made of that at every read. On a CPU in float32 compiled loops do it while they read, if
numba is there (:mod:`aimc.ops.compiled.cells`); otherwise PyTorch does it, some heads at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from aimc.hardware import Cell, Converter, Hardware
from aimc.ops import compiled
from aimc.ops.effects.converters import level_numbers, storage_levels

MOST_CODES = 256
"""Of a byte."""
CELLS_AT_ONCE = 2**20
"""Whose charge stays in the cache of a CPU."""
CELLS_AT_ONCE_ELSEWHERE = 2**26
"""Whose charge an accelerator makes at once."""


class Moment(NamedTuple):
    """How the cells of one array answer a pulse at one moment: those in the first S slots, all at once."""

    n_slots: int
    """S."""
    decay: Tensor | None
    """By how much voltages have fallen, `[S, 1]`, or cell by cell `[H_kv, S, D]`; None: nothing leaks."""
    coefficients: list[float]
    """Of the cell, about the voltage that it leaks to."""
    gain: Tensor | None
    """Mismatch of the gain of every cell, relative, `[H_kv, W, D]`."""
    offset_v: Tensor | None
    """Mismatch of its offset, in volt, likewise."""

    @property
    def is_of_each_cell(self) -> bool:
        """Whether cells in a slot that hold the same may still answer differently."""
        return self.gain is not None or self.offset_v is not None or (self.decay is not None and self.decay.ndim == 3)

    def weights(self) -> list[Tensor | float]:
        """What multiplies the powers of the voltages at the time of writing, numbers or `[S]`; or, where that differs
        from cell to cell, charge: it is the first power."""
        if self.is_of_each_cell:
            return [0.0, 1.0]
        decay = 1.0 if self.decay is None else self.decay[:, 0]
        return [c if power == 0 else c * decay**power for power, c in enumerate(self.coefficients)]

    def charge(self, u: Tensor, heads: slice, spare: Tensor, out: Tensor) -> Tensor:
        """Charge per unit pulse of cells with these voltages at the time of writing, `[B', H', S, D]`, in `out`;
        `spare` is overwritten, and may be `u`."""
        if self.decay is not None:
            u = torch.mul(u, self.decay if self.decay.ndim == 2 else self.decay[heads], out=spare)
        if self.offset_v is not None:
            u = torch.add(u, self.offset_v[heads, : self.n_slots], out=spare)
        torch.mul(u, self.coefficients[-1], out=out)
        for c in reversed(self.coefficients[1:-1]):
            out.add_(c).mul_(u)
        out.add_(self.coefficients[0])
        if self.gain is None:
            return out
        return torch.addcmul(out, out, self.gain[heads, : self.n_slots], out=out)


class Cells:
    """What the cells of one array hold.

    Args:
        shape: `[B, H_kv, W, D]`.
        hardware: the machine.
        cell: what the array is made of, about the voltage that it leaks to.
        like: its dtype, at least float32, is that of voltages; its device that of the cells.
    """

    def __init__(self, shape: tuple[int, int, int, int], hardware: Hardware, cell: Cell, like: Tensor) -> None:
        levels = None if hardware.noise.write_v else storage_levels(hardware, like)
        if levels is not None and len(levels) > MOST_CODES:
            levels = None
        self.levels = None if levels is None else levels - cell.offset_v
        """Voltages about the leak target that the codes stand for, rising, `[n]`; None: cells hold voltages."""
        self.line = None if levels is None else _line(hardware.storage_dac, cell)
        """Step between two levels and the lowest, about the leak target, in volt, where they are evenly spaced; None:
        they are not, or there are none."""
        dtype = like.dtype if levels is None else torch.uint8
        self.state = torch.zeros(shape, dtype=dtype, device=like.device)
        """Codes, or voltages about the leak target at the time of writing, in volt, write noise included, `[B, H_kv, W,
        D]`."""

    def write(self, slots: Tensor, u: Tensor) -> None:
        """Store voltages `u` `[B, H_kv, S, D]` about the leak target in the slots `[S]`; where there are levels, `u`
        lies on them."""
        if self.levels is not None:
            u = torch.bucketize(u.contiguous(), (self.levels[1:] + self.levels[:-1]) / 2, out_int32=True)
        self.state.index_copy_(2, slots, u.to(self.state.dtype))

    def voltages(self, slots: slice) -> Tensor:
        """Voltages in these slots at the time of writing, about the leak target, `[B, H_kv, S, D]`; of an empty slot
        some level."""
        state = self.state[:, :, slots]
        if self.levels is None:
            return state
        return self.levels.index_select(0, state.flatten().int()).view(state.shape)

    def select(self, rows: Tensor) -> None:
        """Row `rows[b]` of the batch becomes row b."""
        self.state = self.state.index_select(0, rows)

    def read_qk(self, pulses: Tensor, moment: Moment) -> Tensor:
        """First array: `S_s = Σ_d pulse_d · charge_sd`, `[B, H_kv, G, D]` → `[B, H_kv, G, S]`, in signal units."""
        kernels = self._kernels(pulses, moment)
        if kernels is not None:
            return kernels.read_qk(self.state, *self._as_line(moment), moment, pulses)
        weights = moment.weights()
        out = (weights[0] * pulses.sum(dim=-1, keepdim=True)).repeat(1, 1, 1, moment.n_slots)
        for batch, heads, power, x in self._powers(moment, pulses.dtype):
            out[batch, heads] += weights[power] * (pulses[batch, heads] @ x.mT)
        return out

    def read_av(self, pulses: Tensor, moment: Moment, n_tiles: int) -> Tensor:
        """Second array: `A_jd = Σ_{s in j} pulse_s · charge_sd` of J sub-tiles, `[B, H_kv, G, S]` → `[B, H_kv, J, G,
        D]`, in signal units."""
        kernels = self._kernels(pulses, moment)
        if kernels is not None:
            return kernels.read_av(self.state, *self._as_line(moment), moment, pulses, n_tiles)

        def of_tiles(x: Tensor) -> Tensor:  # [B, H_kv, G, S] → [B, H_kv, J, G, R]
            return x.unflatten(-1, (n_tiles, -1)).transpose(2, 3)

        weights = moment.weights()
        weighted = [of_tiles(pulses * weight) for weight in weights]
        out = weighted[0].sum(dim=-1, keepdim=True).repeat(1, 1, 1, 1, self.state.shape[-1])
        for batch, heads, power, x in self._powers(moment, pulses.dtype):
            out[batch, heads] += weighted[power][batch, heads] @ x.unflatten(-2, (n_tiles, -1))
        return out

    def _kernels(self, pulses: Tensor, moment: Moment):  # type: ignore[no-untyped-def]  # a module or None
        each_its_own = moment.decay is not None and moment.decay.ndim == 3
        return None if each_its_own else compiled.kernels_for(pulses)

    def _as_line(self, moment: Moment) -> tuple[Tensor | None, Tensor, Tensor]:
        """Levels, scale and shift `[S]` with which a voltage is `scale·levels[code]`, or where there are no levels or
        they are even `scale·state + shift`."""
        decay = torch.ones(moment.n_slots) if moment.decay is None else moment.decay[:, 0]
        if self.line is None:
            return self.levels, decay, torch.zeros_like(decay)
        step, lowest = self.line
        return None, decay * step, decay * lowest

    def _powers(self, moment: Moment, dtype: torch.dtype) -> Iterator[tuple[slice, slice, int, Tensor]]:
        """Part by part of batch and heads: what :meth:`Moment.weights` multiply from the first power on, `[B', H', S,
        D]`. It is overwritten by what comes next: fresh memory costs more than what is computed in it."""
        n_batch, n_heads, _, size = self.state.shape
        of_head = moment.n_slots * size
        most = CELLS_AT_ONCE if self.state.device.type == "cpu" else CELLS_AT_ONCE_ELSEWHERE
        heads_at_once = min(max(most // of_head, 1), n_heads)
        batch_at_once = min(max(most // (n_heads * of_head), 1), n_batch)
        kept = self.state.new_empty(2, batch_at_once * heads_at_once * of_head, dtype=dtype)
        for first in range(0, n_batch, batch_at_once):
            batch = slice(first, first + batch_at_once)
            for first_head in range(0, n_heads, heads_at_once):
                heads = slice(first_head, first_head + heads_at_once)
                state = self.state[batch, heads, : moment.n_slots]
                spare, x = (numbers[: state.numel()].view(state.shape) for numbers in kept)
                u = self._as_voltages(state, spare)
                if moment.is_of_each_cell:
                    yield batch, heads, 1, moment.charge(u, heads, spare, x)
                    continue
                for power in range(1, len(moment.coefficients)):
                    if power > 1:
                        torch.mul(u if power == 2 else x, u, out=x)
                    if moment.coefficients[power]:
                        yield batch, heads, power, u if power == 1 else x

    def _as_voltages(self, state: Tensor, out: Tensor) -> Tensor:
        """Voltages about the leak target at the time of writing, of codes in `out`."""
        if self.levels is None:
            return state
        if self.line is not None:
            step, lowest = self.line
            return torch.add(out.new_full((), lowest), state, alpha=step, out=out)
        torch.index_select(self.levels, 0, state.flatten().int(), out=out.flatten())
        return out


def _line(converter: Converter, cell: Cell) -> tuple[float, float] | None:
    numbers = level_numbers(converter)
    if numbers is None or converter.spacing != "uniform" or converter.coding == "rounded" or converter.inl:
        return None
    return numbers[1] - numbers[0], numbers[0] - cell.offset_v
