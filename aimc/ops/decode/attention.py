"""Token by token on the arrays: how the next tokens of a text read what the cells hold, and overwrite it.

Equal to the parallel operator: a token that is generated reads what it would have read, had the whole text been given
at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aimc.ops.attention import attend
from aimc.ops.call import Call
from aimc.ops.checks import check_attention
from aimc.ops.decode.arrays import KVArrays
from aimc.ops.effects.array import charge_av, charge_qk
from aimc.ops.effects.noise import ArrayId
from aimc.ops.effects.protection import ideal_pulses, protected_tokens, remember
from aimc.ops.effects.quantize import adc, dac
from aimc.ops.heads import Heads, n_tiles_reached
from aimc.ops.scaling import Scaling, scaled
from aimc.ops.tiles import SubTile, activation, memory_fill, memory_sum, read_arrays, with_errors


def decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    arrays: KVArrays,
    *,
    scaling: Scaling | None = None,
    key_padding: Tensor | None = None,
) -> Tensor:
    """Attention of the next T tokens of a text, whose earlier tokens are in the arrays; the new ones are written to
    them.

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
    pulses = dac(query, hardware.input_dac)
    exact = ideal_pulses(query, hardware) if hardware.protection.is_on else None
    if heads.n_tokens == 1 and not torch.is_grad_enabled():
        _store(arrays, heads, key, value, padding, call.scaling)
        out = _read_token(heads, pulses, exact, arrays, call.scaling.score)
    else:
        out = _read_piece(heads, pulses, exact, key, value, padding, arrays, call.scaling)
        _store(arrays, heads, key, value, padding, call.scaling)
    return out if call.key_padding is None else out.masked_fill(padding[:, None, :, None], 0.0)


def _store(arrays: KVArrays, heads: Heads, key: Tensor, value: Tensor, padding: Tensor, scaling: Scaling) -> None:
    with torch.no_grad():  # also of the lines that stand for cells
        arrays.write(heads, key, value, padding, scaling)


def _read_piece(
    heads: Heads,
    pulses: Tensor,
    exact: Tensor | None,
    key: Tensor,
    value: Tensor,
    padding: Tensor,
    arrays: KVArrays,
    scaling: Scaling,
) -> Tensor:
    """Several tokens at once: while they overwrite the oldest, each still reads those that it would have found."""
    hardware, start = heads.hardware, arrays.n_tokens
    n_rows, stop = hardware.array.rows, start + heads.n_tokens
    new = torch.arange(start, stop, device=heads.device)
    new_times = new.to(torch.float64) + (arrays.now - start)  # float32 would round the ages after a long pause
    of_new = [heads.written(x, array, new)[1] for x, array in ((key, ArrayId.QK), (value, ArrayId.AV))]
    tile_of_new = new % hardware.array.window // n_rows
    newest = memory = None
    if arrays.memory is not None:
        newest = remember(key, value, new, padding, arrays.n_real, hardware, scaling)
        memory = arrays.memory.extended(newest)
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
                sink=None if newest is None else torch.cat([arrays.sink[:, slots], newest.sink[:, here]], dim=1),
            )
        )
    return read_arrays(
        heads, pulses, start, new_times, tiles, score_gain=scaling.score, memory=memory, digital_pulses=exact
    )[0]


def _for_tile(heads: Heads, old: Tensor | float, fresh: Tensor | float, here: Tensor) -> Tensor | float:
    """One operand of the tokens that a sub-tile held and of those among the new that it gets, for query heads."""
    if not (isinstance(old, Tensor) and isinstance(fresh, Tensor)):
        return old
    return heads.for_query_heads(torch.cat([old, fresh.index_select(-2, here)], dim=-2), dim=-3)


def _read_token(
    heads: Heads, pulses: Tensor, digital_pulses: Tensor | None, arrays: KVArrays, score_gain: Tensor | None
) -> Tensor:
    """The newest token reads every slot in use, its own included; all sub-tiles at once."""
    hardware, array = heads.hardware, heads.hardware.array
    n_tiles = n_tiles_reached(arrays.n_tokens, array)
    slots, n_kv, group = slice(0, n_tiles * array.rows), heads.n_kv_heads, heads.group
    row = torch.full((1,), arrays.n_tokens - 1, device=heads.device)
    tokens = arrays.tokens[slots]
    if heads.leaks_apart:
        decay, (keys, values) = None, (arrays.faded_operands(of_array, slots) for of_array in ArrayId)
    else:
        decay = heads.decay(row.to(torch.float64) + arrays.waited, arrays.written_at[slots])  # [1, S]
        keys, values = (arrays.operands(of_array, slots) for of_array in ArrayId)

    def by_group(x: Tensor) -> Tensor:  # [B, H, 1, ...] → [B, H_kv, G, ...]
        return x.reshape(heads.n_batch, n_kv, group, *x.shape[3:])

    fill = charge_qk(by_group(pulses / array.saturation_qk), keys, decay)  # S / S_sat [B, H_kv, G, S]
    gain, offset = (
        None if x is None else x[:, None] for x in heads.column_tables_qk(torch.arange(slots.stop, device=heads.device))
    )
    noise = heads.read_noise_qk(row, tokens.clamp(min=0))
    fill = with_errors(fill, gain, offset, None if noise is None else by_group(noise))
    fills = [fill.reshape(heads.n_batch, heads.n_heads, 1, -1)]
    visible = [~arrays.padding[:, None, None, slots]]
    memory = (
        arrays.memory if arrays.memory is not None and len(arrays.memory.tokens) else None
    )  # padding alone is not remembered
    if memory is not None:
        assert digital_pulses is not None  # they come together
        protection = hardware.protection
        visible[0] = visible[0] & ~protected_tokens(row, tokens, arrays.sink[:, slots], protection)
        fills.append(memory_fill(heads, digital_pulses, memory))
        visible.append(memory.visible(row, protection))
    (phi, *of_memory), after = activation(heads, fills, visible, score_gain, n_analog=1)
    phi = phi.reshape(heads.n_batch, n_kv, group, n_tiles, array.rows).transpose(2, 3)  # [B, H_kv, J, G, R]
    cells = [o.unflatten(-2, (n_tiles, array.rows)) if isinstance(o, Tensor) else o for o in values]
    decay = None if decay is None else decay.view(n_tiles, 1, array.rows)
    counts = charge_av(phi, cells, decay) / array.saturation_av  # A [B, H_kv, J, G, D]
    gain, offset = (
        None if x is None else x[:, :, None] for x in heads.column_tables_av(torch.arange(n_tiles, device=heads.device))
    )
    noises = [heads.read_noise_av(row, tile) for tile in range(n_tiles)]
    noise = torch.stack([by_group(x) for x in noises if x is not None], dim=2) if hardware.noise.read_av else None
    out = adc(with_errors(counts, gain, offset, noise), hardware.readout).sum(dim=2).reshape(pulses.shape)
    if memory is not None:
        out = out + memory_sum(heads, of_memory[0], memory)
    return out if after is None else out * after


def _check_left_padding(arrays: KVArrays, key_padding: Tensor | None) -> None:
    if key_padding is None or not bool(key_padding.any()):
        return
    real_before = (~key_padding).cumsum(dim=1) + arrays.n_real[:, None]
    if bool((key_padding & (real_before > 0)).any()):
        raise ValueError(
            "padding after a real token: on a ring buffer it would overwrite slots while the text goes on, and the next"
            " token would be read from a padded position; pad on the left (tokenizer.padding_side = 'left')"
        )
