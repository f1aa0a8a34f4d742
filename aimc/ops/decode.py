"""Token by token on the arrays: what the cells hold between tokens, and how the next tokens read and overwrite it.

Equal to the parallel operator: a token that is generated reads what it would have read, had the whole text been given at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aimc.config import Hardware
from aimc.ops.array import Operands, charge_av, charge_qk
from aimc.ops.attention import attend
from aimc.ops.call import Call
from aimc.ops.checks import check_attention
from aimc.ops.heads import Heads, n_tiles_reached
from aimc.ops.noise import ArrayId, Chip, draw_seed
from aimc.ops.protection import Memory, ideal_pulses, remember
from aimc.ops.quantize import quantize
from aimc.ops.scaling import Scaling, scaled
from aimc.ops.tiles import SubTile, activation, read_arrays, with_errors


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
        self.n_tokens = 0
        """Tokens written so far."""
        self.n_refreshed = 0
        """Tokens rewritten by refreshes so far."""
        self.refresh_every: int | None = None
        """Tokens from one refresh of all cells to the next; None: never."""
        window, dtype = hardware.array.window, torch.promote_types(key.dtype, torch.float32)
        cells = (self.n_batch, self.n_kv_heads, window, self.head_size)
        self.key_u, self.value_u = (torch.zeros(cells, dtype=dtype, device=key.device) for _ in range(2))
        """Stored voltages about rest at the time of writing, in volt, write noise included, `[B, H_kv, W, D]`."""
        self.tokens = torch.full((window,), -1, device=key.device)
        """Position of the token in each slot, `[W]`; -1: empty."""
        self.written_at = torch.zeros(window, dtype=torch.float64, device=key.device)
        """When each slot was written, in token times since the first token, `[W]`."""
        self.padding = torch.ones(self.n_batch, window, dtype=torch.bool, device=key.device)
        """Slots that hold padding or nothing, `[B, W]`."""
        self.n_real = torch.zeros(self.n_batch, dtype=torch.int64, device=key.device)
        """Tokens that are not padding, so far, `[B]`."""
        self.memory: Memory | None = None
        """The protected tokens."""
        self._waited = 0.0
        self._operands: dict[ArrayId, list[Tensor | float]] = {}

    @property
    def now(self) -> float:
        """Time of the next token, in token times since the first."""
        return self.n_tokens + self._waited

    def decay(self) -> Tensor:
        """By how much the voltage in each slot has fallen by now, `[W]`; 1 without leakage."""
        return torch.exp(-self.hardware.leakage.decay_per_token * (self.now - self.written_at))

    def voltages(self, array: ArrayId) -> Tensor:
        """Voltages in the cells now, in volt, `[B, H_kv, W, D]`."""
        u = self.key_u if array == ArrayId.QK else self.value_u
        return u * self.decay().to(u.dtype)[:, None] + self.hardware.cell.offset_v

    def wait(self, seconds: float) -> None:
        """Let time pass: cells leak, no token is read or written.

        Raises:
            ValueError: time does not run backwards.
            ConfigError: the hardware does not know how long a token takes.
        """
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"wait({seconds}): cells leak forwards in time only; give a number of seconds that is not negative")
        self._waited += seconds / self.hardware.leakage.known_token_time_s()

    def refresh(self) -> None:
        """Read all cells, round to the nearest storage level, write them again with write noise of their own."""
        tokens = self.tokens.clamp(min=0)
        renewal = self.seed + 1 + self.n_refreshed  # its own noise: another seed
        heads = Heads(self.key_u, self.key_u, self.hardware, self.chip, renewal)
        for array in ArrayId:
            u = heads.stored_u(self.voltages(array), array, tokens)
            (self.key_u if array == ArrayId.QK else self.value_u).copy_(u)
            self._operands[array] = heads.operands(u, array, tokens)
        self.written_at = torch.where(self.tokens >= 0, self.now, self.written_at)
        self.n_refreshed += int((self.tokens >= 0).sum())

    def select(self, rows: Tensor) -> None:
        """Row `rows[b]` of the batch becomes row b."""
        rows = rows.to(self.key_u.device)
        self.key_u, self.value_u, self.padding, self.n_real = (
            x.index_select(0, rows) for x in (self.key_u, self.value_u, self.padding, self.n_real)
        )
        self._operands = {
            array: [o.index_select(0, rows) if isinstance(o, Tensor) and o.ndim == 4 else o for o in operands]  # 3-D: of the chip alone
            for array, operands in self._operands.items()
        }
        self.memory = None if self.memory is None else self.memory.select(rows)
        self.n_batch = len(rows)

    def check_continues(self, hardware: Hardware, chip: Chip, key: Tensor) -> None:
        """Raise if these arrays are not the ones that keys `[B, H_kv, T, D]` on this hardware and chip can continue.

        Raises:
            ValueError: other hardware, chip, batch or heads.
        """
        if hardware is not self.hardware and hardware != self.hardware:
            raise ValueError(
                "this cache was filled on other hardware than the model runs on now, so its voltages mean something else; "
                "make a new cache, or put the model back with aimc.set_hardware"
            )
        if hardware.noise.is_frozen_in_chip() and chip != self.chip:
            raise ValueError(
                f"this cache was filled on chip {self.chip.seed} and the model runs on chip {chip.seed} now: cells are not moved between "
                "chips; make a new cache, or choose the chip again with aimc.set_chip"
            )
        sizes, wanted = (self.n_batch, self.n_kv_heads, self.head_size), (key.shape[0], key.shape[1], key.shape[3])
        if sizes != wanted:
            raise ValueError(
                f"this cache holds a batch of {sizes[0]} with {sizes[1]} K/V heads of {sizes[2]} features, and the new tokens have "
                f"{wanted[0]}, {wanted[1]} and {wanted[2]}; make a new cache for another batch"
            )

    def write(self, heads: Heads, key: Tensor, value: Tensor, padding: Tensor, scaling: Scaling) -> None:
        """Store scaled keys and values `[B, H_kv, T, D]` of the next T tokens; `padding` is `[B, T]`. Of more than W, the last W remain."""
        n_new, window = key.shape[2], self.hardware.array.window
        protection = self.hardware.protection
        tokens = torch.arange(self.n_tokens, self.n_tokens + n_new, device=key.device)
        if protection.is_on:
            newest = remember(key, value, tokens, padding, self.n_real, self.hardware, scaling)
            memory = newest if self.memory is None else self.memory.extended(newest)
            self.memory = memory.without_lost(self.n_tokens + n_new - 1, protection)
        kept = slice(max(n_new - window, 0), None)
        tokens, slots = tokens[kept], tokens[kept] % window
        for array, x in ((ArrayId.QK, key), (ArrayId.AV, value)):
            u, operands = heads.written(x[:, :, kept], array, tokens)
            (self.key_u if array == ArrayId.QK else self.value_u).index_copy_(2, slots, u)
            if array not in self._operands:
                self._operands[array] = [self._empty(o) for o in operands]
            for whole, part in zip(self._operands[array], operands, strict=True):
                if isinstance(whole, Tensor) and isinstance(part, Tensor):
                    whole.index_copy_(whole.ndim - 2, slots, part)
        self.tokens[slots] = tokens
        self.written_at[slots] = tokens.to(torch.float64) + self._waited
        self.padding[:, slots] = padding[:, kept]
        self.n_real = self.n_real + (~padding).sum(dim=1)
        self.n_tokens += n_new

    def operands(self, array: ArrayId, slots: slice) -> Operands:
        """What the cells in these slots do to a pulse, `[B, H_kv, S, D]` per power of the decay, or a number."""
        return [o[..., slots, :] if isinstance(o, Tensor) else o for o in self._operands[array]]

    def _empty(self, operand: Tensor | float) -> Tensor | float:
        if not isinstance(operand, Tensor):
            return operand
        return operand.new_zeros(*operand.shape[:-2], self.hardware.array.window, self.head_size)


@torch.no_grad()
def _store(arrays: KVArrays, heads: Heads, key: Tensor, value: Tensor, padding: Tensor, scaling: Scaling) -> None:
    arrays.write(heads, key.detach(), value.detach(), padding, scaling)


def decode(
    query: Tensor, key: Tensor, value: Tensor, arrays: KVArrays, *, scaling: Scaling | None = None, key_padding: Tensor | None = None
) -> Tensor:
    """Attention of the next T tokens of a text, whose earlier tokens are in the arrays; the new ones are written to them.

    Args:
        query: `[B, H, T, D]`, as for :func:`aimc.ops.attention.gain_cell_attention`.
        key: `[B, H_kv, T, D]`.
        value: `[B, H_kv, T, D]`.
        arrays: changed in place. No gradient runs back into what earlier calls have stored.
        scaling: the scalers, if they are still to be applied.
        key_padding: bool `[B, T]`, True where a new token is padding: only on the left of a text; None: none is.

    Returns:
        `[B, H, T, D]` in the dtype of `query`, as the parallel operator returns it for these tokens.

    Raises:
        TypeError, ValueError: see :func:`aimc.ops.checks.check_attention`; also padding on the right.
    """
    hardware, chip = arrays.hardware, arrays.chip
    check_attention(query, key, value, hardware, key_padding, chip, scaling)
    _check_left_padding(arrays, key_padding)
    scaling = scaling or Scaling(None, None, None)
    out = []
    for piece in _pieces(arrays, query.shape[2]):
        if arrays.refresh_every and arrays.n_tokens and arrays.n_tokens % arrays.refresh_every == 0:
            arrays.refresh()
        q, k, v = (x[:, :, piece] for x in (query, key, value))
        padding = None if key_padding is None else key_padding[:, piece]
        call = Call(q, k, v, scaling, padding, Heads(q, k, hardware, chip, arrays.seed))
        with torch.autocast(query.device.type, enabled=False):
            out.append(_decode_piece(call, arrays).to(query.dtype))
    return out[0] if len(out) == 1 else torch.cat(out, dim=2)


def _pieces(arrays: KVArrays, n_new: int) -> list[slice]:
    """The new tokens in runs between refreshes."""
    every, start = arrays.refresh_every, arrays.n_tokens
    cuts = [] if every is None else [t - start for t in range(start + 1, start + n_new) if t % every == 0]
    return [slice(a, b) for a, b in zip([0, *cuts], [*cuts, n_new], strict=True)]


def _decode_piece(call: Call, arrays: KVArrays) -> Tensor:
    heads, hardware = call.heads, arrays.hardware
    query, key, value = (scaled(x, affine) for x, affine in zip(call[:3], call.scaling.affines, strict=True))
    padding = call.key_padding
    if padding is None:
        padding = torch.zeros(heads.n_batch, heads.n_tokens, dtype=torch.bool, device=heads.device)
    if arrays.n_tokens == 0:  # all of the text so far: the parallel operator
        out = attend(call)
        _store(arrays, heads, key, value, padding, call.scaling)
        return out
    pulses = quantize(query, hardware.input_dac)
    exact = ideal_pulses(query, hardware) if hardware.protection.is_on else None
    if heads.n_tokens == 1 and not torch.is_grad_enabled():
        _store(arrays, heads, key, value, padding, call.scaling)
        out = _read_token(heads, pulses, exact, arrays, call.scaling.score)
    else:
        out = _read_piece(heads, pulses, exact, key, value, padding, arrays, call.scaling)
        _store(arrays, heads, key, value, padding, call.scaling)
    return out if call.key_padding is None else out.masked_fill(padding[:, None, :, None], 0.0)


def _read_piece(
    heads: Heads, pulses: Tensor, exact: Tensor | None, key: Tensor, value: Tensor, padding: Tensor, arrays: KVArrays, scaling: Scaling
) -> Tensor:
    """Several tokens at once: while they overwrite the oldest, each still reads those that it would have found."""
    hardware, start = heads.hardware, arrays.n_tokens
    n_rows, stop = hardware.array.rows, start + heads.n_tokens
    new = torch.arange(start, stop, device=heads.device)
    new_times = new.to(torch.float64) + (arrays.now - start)  # float32 would round the ages after a long pause
    of_new = [heads.written(x, array, new)[1] for x, array in ((key, ArrayId.QK), (value, ArrayId.AV))]
    tile_of_new = new % hardware.array.window // n_rows
    memory, new_sink, old_sink = None, None, None
    if hardware.protection.is_on:
        newest = remember(key, value, new, padding, arrays.n_real, hardware, scaling)
        assert arrays.memory is not None  # written with the first token
        memory, new_sink = arrays.memory.extended(newest), newest.sink
        old_sink = (arrays.memory.tokens == arrays.tokens[:, None]).to(torch.int64) @ arrays.memory.sink.T.to(torch.int64) > 0  # [W, B]
    tiles = []
    for number in range(n_tiles_reached(stop, hardware.array)):
        held = arrays.tokens[number * n_rows : (number + 1) * n_rows]
        slots = slice(number * n_rows, number * n_rows + int((held >= 0).sum()))
        here = (tile_of_new == number).nonzero().squeeze(1)
        operands = [
            [_for_tile(heads, *pair, here) for pair in zip(arrays.operands(array, slots), fresh, strict=True)]
            for array, fresh in zip(ArrayId, of_new, strict=True)
        ]
        tiles.append(
            SubTile(
                number=number,
                tokens=torch.cat([arrays.tokens[slots], new[here]]),
                times=torch.cat([arrays.written_at[slots], new_times[here]]),
                keys=operands[0],
                values=operands[1],
                padding=torch.cat([arrays.padding[:, slots], padding[:, here]], dim=1),
                sink=None if old_sink is None or new_sink is None else torch.cat([old_sink[slots].T, new_sink[:, here]], dim=1),
            )
        )
    return read_arrays(heads, pulses, start, new_times, tiles, score_gain=scaling.score, memory=memory, digital_pulses=exact)[0]


def _for_tile(heads: Heads, old: Tensor | float, fresh: Tensor | float, here: Tensor) -> Tensor | float:
    """One operand of the tokens that a sub-tile held and of those among the new that it gets, for query heads."""
    if not (isinstance(old, Tensor) and isinstance(fresh, Tensor)):
        return old
    return heads.for_query_heads(torch.cat([old, fresh.index_select(-2, here)], dim=-2), dim=-3)


def _read_token(heads: Heads, pulses: Tensor, digital_pulses: Tensor | None, arrays: KVArrays, score_gain: Tensor | None) -> Tensor:
    """The newest token reads every slot in use, its own included; all sub-tiles at once."""
    hardware, array = heads.hardware, heads.hardware.array
    position = arrays.n_tokens - 1
    n_tiles = n_tiles_reached(arrays.n_tokens, array)
    slots, n_kv, group = slice(0, n_tiles * array.rows), heads.n_kv_heads, heads.group
    row = torch.full((1,), position, device=heads.device)
    tokens = arrays.tokens[slots]
    decay = heads.decay(row.to(torch.float64) + arrays._waited, arrays.written_at[slots])  # [1, S]

    def by_group(x: Tensor) -> Tensor:  # [B, H, 1, ...] → [B, H_kv, G, ...]
        return x.reshape(heads.n_batch, n_kv, group, *x.shape[3:])

    fill = charge_qk(by_group(pulses / array.saturation_qk), arrays.operands(ArrayId.QK, slots), decay)  # S / S_sat [B, H_kv, G, S]
    gain, offset = (None if x is None else x[:, None] for x in heads.column_tables_qk(torch.arange(slots.stop, device=heads.device)))
    noise = heads.read_noise_qk(row, tokens.clamp(min=0))
    fill = with_errors(fill, gain, offset, None if noise is None else by_group(noise))
    fills = [fill.reshape(heads.n_batch, heads.n_heads, 1, -1)]
    visible = [~arrays.padding[:, None, None, slots]]
    if arrays.memory is not None:
        assert digital_pulses is not None  # they come together
        protection = hardware.protection
        held = arrays.memory.tokens == tokens[:, None]  # [S, M]
        sink = (held[None] & arrays.memory.sink[:, None]).any(dim=2)
        visible[0] = visible[0] & ~sink[:, None, None] & ~(position - tokens < protection.n_recent)
        fills.append(digital_pulses / array.saturation_qk @ heads.for_query_heads(arrays.memory.keys, dim=1).mT)
        visible.append(arrays.memory.visible(row, protection))
    (phi, *of_memory), after = activation(heads, fills, visible, score_gain, n_analog=1)
    phi = phi.reshape(heads.n_batch, n_kv, group, n_tiles, array.rows).transpose(2, 3)  # [B, H_kv, J, G, R]
    cells = [o.unflatten(-2, (n_tiles, array.rows)) if isinstance(o, Tensor) else o for o in arrays.operands(ArrayId.AV, slots)]
    decay = None if decay is None else decay.view(n_tiles, 1, array.rows)
    counts = charge_av(phi, cells, decay) / array.saturation_av  # A [B, H_kv, J, G, D]
    gain, offset = (None if x is None else x[:, :, None] for x in heads.column_tables_av(torch.arange(n_tiles, device=heads.device)))
    noises = [heads.read_noise_av(row, tile) for tile in range(n_tiles)]
    noise = torch.stack([by_group(x) for x in noises if x is not None], dim=2) if hardware.noise.read_av else None
    out = quantize(with_errors(counts, gain, offset, noise), hardware.readout).sum(dim=2).reshape(pulses.shape)
    if arrays.memory is not None:
        out = out + of_memory[0] @ heads.for_query_heads(arrays.memory.values, dim=1) / array.saturation_av
    return out if after is None else out * after


def _check_left_padding(arrays: KVArrays, key_padding: Tensor | None) -> None:
    if key_padding is None or not bool(key_padding.any()):
        return
    real_before = (~key_padding).cumsum(dim=1) + arrays.n_real[:, None]
    if bool((key_padding & (real_before > 0)).any()):
        raise ValueError(
            "padding after a real token: on a ring buffer it would overwrite slots while the text goes on, and the next token would be "
            "read from a padded position; pad on the left (tokenizer.padding_side = 'left')"
        )
