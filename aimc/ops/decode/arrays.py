"""The two arrays of one layer between tokens: what every cell holds, since when, and for which token."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from aimc.hardware import Hardware
from aimc.ops.decode.cells import Cells, Moment
from aimc.ops.decode.whole import fits
from aimc.ops.eager import operands, stored_v
from aimc.ops.effects.array import Operands
from aimc.ops.effects.cell import leaking_cell
from aimc.ops.effects.converters import before_storage_dac
from aimc.ops.effects.leakage import decay_factor, own_decay
from aimc.ops.effects.noise import ArrayId, Chip, draw_seed
from aimc.ops.effects.protection import Memory, has_memory, remember
from aimc.ops.heads import Heads
from aimc.ops.ring import Contents, Earlier
from aimc.ops.scaling import Scaling


class KVArrays:
    """The two arrays of every K/V head of one layer: W slots of stored voltages in a ring, token s in slot `s mod W`.

    Args:
        key: keys `[B, H_kv, T, D]` of the first tokens; sizes, device and dtype are taken from it.
        hardware: the machine.
        chip: which chip and layer.
        generator: source of the seed of write and read noise, drawn here once; None: torch's global one.
    """

    def __init__(self, key: Tensor, hardware: Hardware, chip: Chip, generator: torch.Generator | None = None) -> None:
        self.hardware = hardware
        self.chip = chip
        fresh = hardware.noise.is_fresh()
        self.seed = draw_seed(generator, key.device) if fresh else torch.zeros((), dtype=torch.int64, device=key.device)
        self.n_batch, self.n_kv_heads, _, self.head_size = key.shape
        self._n_tokens = 0
        self.position: Tensor | None = None
        """Number of the next token, int64 `[1]`, once the arrays are fixed; None: they are not, see :meth:`fix`."""
        self.n_refreshed = 0
        """Tokens rewritten by refreshes so far."""
        self.refresh_every: int | None = None
        """Tokens from one refresh of all cells to the next; None: never."""
        window, dtype = hardware.array.window, torch.promote_types(key.dtype, torch.float32)
        self.cell = leaking_cell(hardware)
        """What the arrays are made of, about the voltage that it leaks to."""
        self.like = torch.zeros((), dtype=dtype, device=key.device)
        """Of the dtype and on the device of all numbers here."""
        self.fits_whole = fits(hardware)
        """Whether one compiled call can do a whole token."""
        sizes = (self.n_batch, self.n_kv_heads, window, self.head_size)
        self.cells = {array: Cells(sizes, hardware, self.cell, self.like) for array in ArrayId}
        """What each array holds."""
        self.tokens = torch.full((window,), -1, device=key.device)
        """Position of the token in each slot, `[W]`; -1: empty."""
        self.written_at = torch.zeros(window, dtype=torch.float64, device=key.device)
        """When each slot was written, in token times since the first token, `[W]`."""
        self.padding = torch.ones(self.n_batch, window, dtype=torch.bool, device=key.device)
        """Slots that hold padding or nothing, `[B, W]`."""
        self.sink = torch.zeros_like(self.padding)
        """Slots whose token is protected for ever, `[B, W]`."""
        features, of_tokens = hardware.features, sizes[:3]
        self.key_norm = torch.ones(of_tokens, dtype=dtype, device=key.device) if features.normalise_keys else None
        """By what the keys in the slots were divided, `[B, H_kv, W]`; None: by one."""
        self.value_norm = torch.ones(of_tokens, dtype=dtype, device=key.device) if features.normalise_values else None
        """Likewise for values."""
        self.n_real = torch.zeros(self.n_batch, dtype=torch.int64, device=key.device)
        """Tokens that are not padding, so far, `[B]`."""
        self.memory: Memory | None = None
        """The protected tokens."""
        self.waited = 0.0
        """Time in which no token came, in token times."""
        self._delay: Tensor | None = None
        self._read_by_graph: Any = None
        slots, heads = torch.arange(window, device=key.device), self._heads(self.seed)
        self._leak_rates = {array: heads.leak_rates(array, slots) for array in ArrayId}
        self.columns_qk = heads.column_tables_qk(slots)
        """Gain and offset of the charge-to-pulse circuits, `[H_kv, W]` each; None: none."""
        self.columns_av = heads.column_tables_av(torch.arange(hardware.array.n_tiles, device=key.device))
        """Gain and offset of the counters, `[H_kv, J, D]` each; None: none."""

    @property
    def n_tokens(self) -> int:
        """Tokens written so far; while a graph is recorded, those before it."""
        if self.position is not None and not is_recorded(self.position):
            self._n_tokens = int(self.position)
        return self._n_tokens

    @property
    def delay(self) -> Tensor | float:
        """Time in which no token came, in token times; of fixed arrays `[1]`, to be read by a graph."""
        return self.waited if self._delay is None else self._delay

    def fix(self) -> None:
        """From now on one token at a time, without gradients, in tensors that stay where they are and with the same
        operations for every token: what a CUDA graph records once and replays. All slots are read, empty ones included.

        Raises:
            ValueError: nothing has been written yet, or the hardware has a memory that grows, or cells are refreshed.
        """
        if has_memory(self.hardware):
            raise ValueError(
                "protection and pruning keep tokens in a digital memory whose size changes from token to token, which"
                " no graph can follow; decode without fix(), or switch them off"
            )
        if self.refresh_every:
            raise ValueError(
                f"refresh_every={self.refresh_every}: a graph does the same for every token, and a refresh comes"
                " between some; decode without fix(), or make the cache without refreshes"
            )
        if not self.n_tokens:
            raise ValueError("nothing has been written to these arrays: read the prompt first, and then fix them")
        heads = self._heads(self.seed)  # a graph reads these tables where they are: nobody may let go of them
        self._read_by_graph = [heads.cell_errors(array) for array in ArrayId], heads.all_columns()
        self.position = torch.tensor([self.n_tokens], device=self.tokens.device)
        self._delay = torch.tensor([self.waited], dtype=torch.float64, device=self.tokens.device)

    @property
    def now(self) -> float:
        """Time of the next token, in token times since the first."""
        return self.n_tokens + self.waited

    def cell_decay(self, array: ArrayId, slots: slice, time: float | Tensor) -> Tensor:
        """By how much the voltages in these slots have fallen at a time in token times: `[S, 1]`, or cell by cell
        `[H_kv, S, D]`."""
        ages = (time - self.written_at[slots]).clamp(min=0.0)
        rates = self._leak_rates[array]
        if rates is None:
            return decay_factor(ages, self.hardware.leakage.decay_per_token, dtype=torch.float64)[:, None]
        return own_decay(rates[:, slots], ages)

    def voltages(self, array: ArrayId) -> Tensor:
        """Voltages in the cells now, in volt, `[B, H_kv, W, D]`."""
        every = slice(None)
        u = self.cells[array].voltages(every)
        u = u * self.cell_decay(array, every, self.now).to(u.dtype)
        return u.masked_fill((self.tokens < 0)[:, None], 0.0) + self.cell.offset_v

    def wait(self, seconds: float) -> None:
        """Let time pass: cells leak, no token is read or written.

        Raises:
            ValueError: time does not run backwards.
            ConfigError: the hardware does not know how long a token takes.
        """
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(
                f"wait({seconds}): cells leak forwards in time only; give a number of seconds that is not negative"
            )
        more = seconds / self.hardware.leakage.known_token_time_s()
        self.waited += more
        if self._delay is not None:
            self._delay += more

    def refresh(self) -> None:
        """Read all cells, round to the nearest storage level (of the DAC as it is, with its nonlinearity), write them
        again with fresh write noise."""
        tokens = self.tokens.clamp(min=0)
        renewal = self.seed + 1 + self.n_refreshed  # its own noise: another seed
        heads, slots = self._heads(renewal), torch.arange(len(tokens), device=tokens.device)
        for array in ArrayId:
            wanted = before_storage_dac(self.voltages(array), self.hardware)
            self.cells[array].write(slots, stored_v(heads, wanted, array, tokens) - self.cell.offset_v)
        self.written_at = torch.where(self.tokens >= 0, self.now, self.written_at)
        self.n_refreshed += int((self.tokens >= 0).sum())

    def select(self, rows: Tensor) -> None:
        """Row `rows[b]` of the batch becomes row b."""
        rows = rows.to(self.tokens.device)
        for cells in self.cells.values():
            cells.select(rows)
        for name in ("padding", "sink", "n_real", "key_norm", "value_norm"):
            x = getattr(self, name)
            setattr(self, name, None if x is None else x.index_select(0, rows))
        self.memory = None if self.memory is None else self.memory.select(rows)
        self.n_batch = len(rows)

    def check_continues(self, hardware: Hardware, chip: Chip, key: Tensor) -> None:
        """Raise if these arrays are not the ones that keys `[B, H_kv, T, D]` on this hardware and chip can continue.

        Raises:
            ValueError: other hardware, chip, batch or heads.
        """
        if hardware is not self.hardware and hardware != self.hardware:
            raise ValueError(
                "this cache was filled on other hardware than the model runs on now, so its voltages mean something"
                " else; make a new cache, or put the model back with aimc.set_hardware"
            )
        self.hardware = hardware  # equal, and the very object that the next token comes with: no comparison then
        if hardware.noise.is_frozen_in_chip() and chip != self.chip:
            raise ValueError(
                f"this cache was filled on chip {self.chip.seed} and the model runs on chip {chip.seed} now: cells are"
                " not moved between chips; make a new cache, or choose the chip again with aimc.set_chip"
            )
        sizes, wanted = (self.n_batch, self.n_kv_heads, self.head_size), (key.shape[0], key.shape[1], key.shape[3])
        if sizes != wanted:
            raise ValueError(
                f"this cache holds a batch of {sizes[0]} with {sizes[1]} K/V heads of {sizes[2]} features, and the new"
                f" tokens have {wanted[0]}, {wanted[1]} and {wanted[2]}; make a new cache for another batch"
            )

    def write(self, heads: Heads, key: Tensor, value: Tensor, padding: Tensor, scaling: Scaling) -> None:
        """Store scaled keys and values `[B, H_kv, T, D]` of the next T tokens; `padding` is `[B, T]`. Of more than W,
        the last W remain."""
        n_new, window = key.shape[2], self.hardware.array.window
        if self.position is None:
            tokens = torch.arange(self._n_tokens, self._n_tokens + n_new, device=key.device)
        else:
            tokens = self.position.clone()
        kept = slice(max(n_new - window, 0), None)
        slots = tokens[kept] % window
        if has_memory(self.hardware):
            newest = remember(key, value, tokens, padding, self.n_real, self.hardware, scaling)
            memory = newest if self.memory is None else self.memory.extended(newest)
            self.memory = memory.without_lost(self._n_tokens + n_new - 1, self.hardware)
            self.sink[:, slots] = newest.sink[:, kept]
        tokens = tokens[kept]
        for array, x in ((ArrayId.QK, key), (ArrayId.AV, value)):
            self.cells[array].write(slots, stored_v(heads, x[:, :, kept], array, tokens) - self.cell.offset_v)
        for norm, of_new in ((self.key_norm, scaling.key_norm), (self.value_norm, scaling.value_norm)):
            if norm is not None and of_new is not None:
                norm[..., slots] = of_new[..., kept].to(norm.dtype)
        self.tokens[slots] = tokens
        self.written_at[slots] = tokens.to(torch.float64) + self.delay
        self.padding[:, slots] = padding[:, kept]
        self.n_real += (~padding).sum(dim=1)
        if self.position is None:
            self._n_tokens += n_new
        else:
            self.position += 1

    def open_slot(self, padding: Tensor | None) -> int:
        """Take note of one more token, `padding` bool `[B, 1]` or None: none is; what is to be stored of it goes to the
        slot that is returned. For arrays that are not fixed, and have no memory."""
        slot = self._n_tokens % self.hardware.array.window
        self.tokens[slot] = self._n_tokens
        self.written_at[slot] = self.now
        if padding is None:
            self.padding[:, slot] = False
            self.n_real += 1
        else:
            self.padding[:, slot] = padding[:, 0]
            self.n_real += ~padding[:, 0]
        self._n_tokens += 1
        return slot

    def operands(self, array: ArrayId, slots: slice) -> Operands:
        """What the cells in these slots, all of them in use, do to a pulse, `[B, H_kv, S, D]` per power of the decay,
        or a number."""
        return operands(self._heads(self.seed), self.cells[array].voltages(slots), array, self.tokens[slots])

    def moments(self, heads: Heads, n_slots: int, row: Tensor) -> list[Moment]:
        """How the first slots of the two arrays answer the token at the position `row` `[1]`."""
        slots, coefficients = slice(0, n_slots), self.cell.coefficients
        now = row.to(torch.float64) + self.delay
        if heads.leaks_apart:
            decays: list[Tensor | None] = [self.cell_decay(array, slots, now).to(heads.dtype) for array in ArrayId]
        else:
            decay = heads.decay(now, self.written_at[slots])
            decays = [None if decay is None else decay.mT] * len(ArrayId)
        return [
            Moment(n_slots, decay, coefficients, *heads.cell_errors(array))
            for array, decay in zip(ArrayId, decays, strict=True)
        ]

    def norms(self, slots: slice) -> tuple[Tensor | None, Tensor | None]:
        """By what keys and values in these slots were divided, `[B, H_kv, S]`; None: by one."""
        key, value = (None if norm is None else norm[..., slots] for norm in (self.key_norm, self.value_norm))
        return key, value

    def earlier(self) -> Earlier:
        """What a further piece of text finds."""
        held = slice(0, min(self.n_tokens, self.hardware.array.window))
        contents = Contents(
            tokens=self.tokens[held],
            times=self.written_at[held],
            keys=self.operands(ArrayId.QK, held),
            values=self.operands(ArrayId.AV, held),
            padding=self.padding[:, held],
            sink=self.sink[:, held] if has_memory(self.hardware) else None,
            key_norm=self.norms(held)[0],
            value_norm=self.norms(held)[1],
        )
        return Earlier(
            n_tokens=self.n_tokens, waited=self.waited, n_real=self.n_real, contents=contents, memory=self.memory
        )

    @property
    def n_bytes(self) -> int:
        """Memory of all that is kept between tokens, in byte; tables of the chip (:mod:`aimc.ops.frozen`) are
        not among it."""
        parts = [x for owner in (self, *self.cells.values()) for x in vars(owner).values()]
        parts += [*self._leak_rates.values(), *self.columns_qk, *self.columns_av, *(self.memory or [])]
        return sum(x.nbytes for x in parts if isinstance(x, Tensor))

    def _heads(self, seed: Tensor) -> Heads:
        like = self.like.expand(self.n_batch, self.n_kv_heads, 1, self.head_size)
        return Heads(like, like, self.hardware, self.chip, seed, self.cell)


def is_recorded(x: Tensor) -> bool:
    """Whether what is done with a tensor now will be done again by a graph, without this code."""
    return torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing())
