"""Token by token on the arrays: how the next tokens of a text read what the cells hold, and overwrite it.

Equal to the parallel operator: a token that is generated reads what it would have read, had the whole text been given
at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aimc.hardware import Hardware
from aimc.ops.attention import attend
from aimc.ops.call import Call
from aimc.ops.checks import check_attention
from aimc.ops.decode.arrays import KVArrays, is_recorded
from aimc.ops.decode.whole import read_token
from aimc.ops.eager import eager_attention
from aimc.ops.effects.activation import activation
from aimc.ops.effects.columns import with_columns
from aimc.ops.effects.converters import adc, dac
from aimc.ops.effects.noise import ArrayId, with_noise
from aimc.ops.effects.normaliser import counted_pulse, reciprocal
from aimc.ops.effects.protection import Memory, digital_charge, digital_pulses, digital_sum, protected_tokens
from aimc.ops.effects.pruning import kept_in_memory, weights_of_kept
from aimc.ops.fused import wants_gradient
from aimc.ops.heads import Heads
from aimc.ops.ring import n_tiles_reached
from aimc.ops.scaling import Scaling, scaled


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
        TypeError, ValueError: see :func:`aimc.ops.checks.check_attention`; also padding on the right, and more than one
            token, or a gradient, on fixed arrays.
    """
    hardware, chip = arrays.hardware, arrays.chip
    check_attention(query, key, value, hardware, key_padding, chip, scaling)
    if arrays.position is not None:
        _check_fixed(query)
    if arrays.position is None or not is_recorded(query):
        _check_left_padding(arrays, key_padding)
    _check_hysteresis(hardware)
    scaling = scaling or Scaling(None, None, None)
    out = []
    for piece in _pieces(arrays, query.shape[2]):
        if arrays.refresh_every and arrays.n_tokens and arrays.n_tokens % arrays.refresh_every == 0:
            arrays.refresh()
        q, k, v = (x[:, :, piece] for x in (query, key, value))
        padding = None if key_padding is None else key_padding[:, piece]
        part = scaling.of_tokens(piece)
        call = Call(q, k, v, part, padding, Heads(q, k, hardware, chip, arrays.seed, arrays.cell))
        with torch.autocast(query.device.type, enabled=False):
            out.append(_decode_piece(call, arrays).to(query.dtype))
    return out[0] if len(out) == 1 else torch.cat(out, dim=2)


def _pieces(arrays: KVArrays, n_new: int) -> list[slice]:
    """The new tokens in runs between refreshes."""
    every = arrays.refresh_every
    if every is None:
        return [slice(0, n_new)]
    start = arrays.n_tokens
    cuts = [t - start for t in range(start + 1, start + n_new) if t % every == 0]
    return [slice(a, b) for a, b in zip([0, *cuts], [*cuts, n_new], strict=True)]


def _decode_piece(call: Call, arrays: KVArrays) -> Tensor:
    heads, scaling, padding = call.heads, call.scaling, call.key_padding
    fixed = arrays.position is not None
    is_next = not fixed and heads.n_tokens == 1 and arrays.n_tokens and not torch.is_grad_enabled()
    if is_next and (out := read_token(call, arrays)) is not None:
        return out
    query, key, value = (scaled(x, affine) for x, affine in zip(call[:3], scaling.affines, strict=True))
    if padding is None:
        padding = torch.zeros(heads.n_batch, heads.n_tokens, dtype=torch.bool, device=heads.device)
    if fixed or is_next:
        arrays.write(heads, key, value, padding, scaling)
        out = _read_token(heads, query, arrays, scaling)
        return out if call.key_padding is None else out.masked_fill(padding[:, None, :, None], 0.0)
    if arrays.n_tokens and call.differentiated is not call and wants_gradient([*call[:3], *call.scaling.trained]):
        raise NotImplementedError(
            "noise_gradient='clean' and a text that goes on in a cache: the arrays hold what was written with noise,"
            " and a clean pass would need what it would have been; use torch.no_grad(), or give the whole text at once"
        )
    if arrays.n_tokens == 0:  # all of the text so far: the parallel operator, in whatever form
        out = attend(call)
    else:  # several tokens: while they overwrite the oldest, each still reads those that it would have found
        out = eager_attention(call._replace(key_padding=padding), arrays.earlier())[0]
    with torch.no_grad():  # also of the lines that stand for cells
        arrays.write(heads, key, value, padding, scaling)
    return out


def _read_token(heads: Heads, query: Tensor, arrays: KVArrays, scaling: Scaling) -> Tensor:
    """The newest token, with its scaled query `[B, H, 1, D]`, reads every slot in use, its own included; all sub-tiles
    at once. The rows are those of :func:`aimc.ops.eager.eager_attention`."""
    hardware, array = heads.hardware, heads.hardware.array
    fixed = arrays.position is not None
    n_tiles = array.n_tiles if fixed else n_tiles_reached(arrays.n_tokens, array)
    slots, n_kv, group = slice(0, n_tiles * array.rows), heads.n_kv_heads, heads.group
    row = torch.full((1,), arrays.n_tokens - 1, device=heads.device) if arrays.position is None else arrays.position - 1
    tokens, tiles = arrays.tokens[slots], torch.arange(n_tiles, device=heads.device)
    in_use = tiles * array.rows <= row if fixed else None

    def by_group(x: Tensor) -> Tensor:  # [B, H, 1, ...] → [B, H_kv, G, ...]
        return x.reshape(heads.n_batch, n_kv, group, *x.shape[3:])

    # Input DAC
    pulses = dac(query, hardware.input_dac)
    # Leakage
    of_keys, of_values = arrays.moments(heads, slots.stop, row)
    # First array
    full_scale_qk, full_scale_av, full_scale_of_sum = heads.full_scales(scaling)
    relative_pulses = pulses / full_scale_qk
    charge = arrays.cells[ArrayId.QK].read_qk(by_group(relative_pulses), of_keys)  # S / S_sat [B, H_kv, G, S]
    # Column errors, Read noise
    charge = with_columns(charge, *(None if x is None else x[:, None, slots] for x in arrays.columns_qk))
    noise = heads.read_noise_qk(row, tokens.clamp(min=0))
    charge = with_noise(charge, None if noise is None else by_group(noise))
    # Charge-to-pulse, or softmax between converters
    charges = [charge.reshape(heads.n_batch, heads.n_heads, 1, -1)]
    visible = [~arrays.padding[:, None, None, slots]]
    memory = arrays.memory if arrays.memory is not None and len(arrays.memory.tokens) else None  # padding is not in it
    if memory is not None:
        protection = hardware.protection
        visible[0] = visible[0] & ~protected_tokens(row, tokens, arrays.sink[:, slots], protection)
        charges.append(digital_charge(heads, digital_pulses(query, hardware), memory, full_scale_qk))
        visible.append(memory.visible(row, protection))
        if hardware.activation == "pruned_softmax":
            return _read_selected(heads, tokens, charges, visible, memory, scaling)
    corrections = None
    if heads.corrects:  # Corrections
        now, written = row.to(torch.float64) + arrays.delay, arrays.written_at[slots]
        corrections = heads.corrections([now], [written], [arrays.norms(slots)], relative_pulses)
    (phi, *of_memory), normaliser, lost = activation(heads, charges, visible, scaling, 1, corrections)
    # Second array
    of_groups = full_scale_av if isinstance(full_scale_av, float) else full_scale_av.view(n_kv, 1, group, 1)
    counts = arrays.cells[ArrayId.AV].read_av(by_group(phi), of_values, n_tiles) / of_groups  # A [B, H_kv, J, G, D]
    # Column errors, Read noise
    counts = with_columns(counts, *(None if x is None else x[:, :n_tiles, None] for x in arrays.columns_av))
    noise = heads.read_noise_av(row, tiles)  # [J, B, H, 1, D]
    counts = with_noise(counts, None if noise is None else noise.view(n_tiles, *by_group(noise[0]).shape).movedim(0, 2))
    # Readout, Digital sum
    counts = adc(counts, hardware.readout)
    if in_use is not None:
        counts = counts.masked_fill(~in_use[:, None, None], 0.0)
    out = counts.sum(dim=2).reshape(pulses.shape) * (full_scale_av / array.saturation_av)
    if corrections is not None:
        out = out + lost * (heads.cell.coefficients[0] / array.saturation_av)
    if memory is not None:
        out = out + digital_sum(heads, of_memory[0], memory)
    if hardware.normaliser.is_on:
        of_tiles = phi.unflatten(-1, (n_tiles, -1)).sum(dim=-1)  # [B, H, 1, J]
        pulse = counted_pulse(heads, of_tiles, full_scale_of_sum, row, tiles, in_use)
        pulse = pulse if memory is None else pulse + of_memory[0].sum(dim=-1, keepdim=True)
        normaliser = reciprocal(heads, pulse, full_scale_of_sum)
    return out if normaliser is None else out * normaliser


def _read_selected(
    heads: Heads, tokens: Tensor, charges: list[Tensor], visible: list[Tensor], memory: Memory, scaling: Scaling
) -> Tensor:
    """Pruning: exact attention of what the slots' charges select, as in :func:`aimc.ops.eager.pruned`; `tokens` `[S]`
    are those in the slots, −1 in an empty one."""
    (charge, exact), (seen, protected) = charges, visible
    filled = tokens >= 0
    at = torch.searchsorted(memory.tokens, tokens[filled])
    of_slots = [charge[..., filled]], [seen[..., filled]], [0], [at]
    kept, scores = kept_in_memory(heads, *of_slots, exact, scaling.threshold)
    return digital_sum(heads, weights_of_kept(heads, scores, kept | protected, scaling), memory)


def _check_fixed(query: Tensor) -> None:
    if query.shape[2] != 1 or torch.is_grad_enabled():
        raise ValueError(
            f"fixed arrays take one token at a time, under torch.no_grad(), and there are {query.shape[2]}: what they"
            " do has been settled for that (KVArrays.fix); give single tokens, or make a new cache"
        )


def _check_hysteresis(hardware: Hardware) -> None:
    if hardware.activation == "pruned_softmax" and hardware.pruning.remembers:
        raise NotImplementedError(
            f"pruning.hysteresis={hardware.pruning.hysteresis}: what a comparator holds from one token to the next is"
            " not kept in a cache, so a generated text would differ from the whole one; set it to 0 to generate, or"
            " compute without a cache (use_cache=False)"
        )


def _check_left_padding(arrays: KVArrays, key_padding: Tensor | None) -> None:
    if key_padding is None or not bool(key_padding.any()):
        return
    real_before = (~key_padding).cumsum(dim=1) + arrays.n_real[:, None]
    if bool((key_padding & (real_before > 0)).any()):
        raise ValueError(
            "padding after a real token: on a ring buffer it would overwrite slots while the text goes on, and the next"
            " token would be read from a padded position; pad on the left (tokenizer.padding_side = 'left')"
        )
