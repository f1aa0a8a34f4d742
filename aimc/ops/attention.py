"""Gain-cell attention, eager: the truth that every faster implementation is held to.

It reads like the table in section 1 of the design: scaled q through the input DAC to pulses, k and v through the
storage DAC into two arrays, first array, charge-to-pulse circuit, second array, counters, digital sum. Because
sub-tiles share nothing but the digital sum, the walk is over sub-tiles, each with the slots of both arrays that belong
to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aimc.hardware import Array, Hardware
from aimc.ops.call import Call
from aimc.ops.checks import check_attention
from aimc.ops.dispatch import choose_backend
from aimc.ops.effects.array import Operands
from aimc.ops.effects.noise import ArrayId, Chip, draw_seed
from aimc.ops.effects.protection import ideal_pulses, remember
from aimc.ops.effects.quantize import dac
from aimc.ops.fused import fused_attention
from aimc.ops.heads import Heads, n_tiles_reached
from aimc.ops.scaling import Scaling, scaled
from aimc.ops.tiles import Seen, SubTile, read_arrays


@dataclass(slots=True, kw_only=True)
class Details:
    """What happens inside, for inspection."""

    S: Tensor
    """Charge of the first array in signal units with column errors and read noise, `[B, H, T, T]`; 0 where a key is not
    visible."""
    phi: Tensor
    """Pulse widths into the second array as fractions of the longest, `[B, H, T, T]`, indexed by absolute key
    position."""
    A: Tensor
    """Counter values of the sub-tiles, `[B, H, T, J, D]`, J = sub-tiles that any token has reached; 0 before a sub-tile
    is in use."""


def gain_cell_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hardware: Hardware,
    *,
    scaling: Scaling | None = None,
    key_padding: Tensor | None = None,
    chip: Chip | None = None,
    generator: torch.Generator | None = None,
    details: bool = False,
) -> Tensor | tuple[Tensor, Details]:
    """Attention of two gain-cell arrays per head, all positions at once, equal to the token-by-token ring buffer.

    Token s is in slot `s mod W`, sub-tile `slot // R`; query t sees keys `t−W < s <= t`. A sub-tile takes part from the
    token that first writes to it; before that it is not read and adds neither offset nor noise. Padding tokens keep
    their slot (the machine has written something there) but get no pulse.

    Args:
        query: `[B, H, T, D]`, through its scaler, as pulse fractions (clipped to the input DAC's range).
        key: `[B, H_kv, T, D]`, through its scaler, in volt (clipped to the storage DAC's range). H is a multiple of
            H_kv; query head h reads K/V head `h // (H / H_kv)`.
        value: as `key`.
        hardware: cells, converters, arrays, leakage and noise; its `backend` chooses the implementation, all of which
            agree.
        scaling: the scalers of query, key and value, if they are still to be applied (fused with the converters); then
            the three are given as the model has them.
        key_padding: bool `[B, T]`, True where a token is padding; None: none is.
        chip: which chip and layer, needed for mismatch, column errors and spread of retention; its layer also keys the
            noise.
        generator: source of the one seed of this call's write and read noise; None: torch's global one. Untouched
            without noise.
        details: also return :class:`Details`; computed by the eager operator, whatever `hardware.backend` says.

    Returns:
        `[B, H, T, D]` in the dtype of `query`: the digital sum of the sub-tiles in units of `array.saturation_av`,
            before the
        output scaler; zero at padded positions. Computed in float32 (float64 for float64 queries), whatever autocast
        says.

    Raises:
        TypeError, ValueError: see :func:`aimc.ops.checks.check_attention`.
    """
    check_attention(query, key, value, hardware, key_padding, chip, scaling)
    seed = (
        draw_seed(generator, query.device)
        if hardware.noise.is_fresh()
        else torch.zeros((), dtype=torch.int64, device=query.device)
    )
    call = Call(
        query, key, value, scaling or Scaling(None, None, None), key_padding, Heads(query, key, hardware, chip, seed)
    )
    if not details:
        return attend(call)
    out, seen = _eager(call)
    return out, _assemble(seen, out, hardware.array)


def attend(call: Call) -> Tensor:
    """The operator on arguments that are checked, with the seed of its noise in `call.heads`."""
    backend = choose_backend(call.query, call.heads.hardware)
    return _eager(call)[0] if backend == "eager" else fused_attention(call, engine=backend)


def _eager(call: Call) -> tuple[Tensor, list[Seen]]:
    """The table of the design: what is written to the cells, then :func:`aimc.ops.tiles.read_arrays`."""
    heads, scaling, padding = call.heads, call.scaling, call.key_padding
    hardware = heads.hardware
    with torch.autocast(call.query.device.type, enabled=False):
        positions = torch.arange(heads.n_tokens, device=heads.device)
        tokens_of = _tile_tokens(heads.n_tokens, hardware.array, heads.device)
        query, key, value = (scaled(x, affine) for x, affine in zip(call[:3], scaling.affines, strict=True))
        keys, values = _write(heads, key, ArrayId.QK, tokens_of), _write(heads, value, ArrayId.AV, tokens_of)
        memory = None
        if hardware.protection.is_on:
            no_padding = torch.zeros(heads.n_batch, heads.n_tokens, dtype=torch.bool, device=heads.device)
            memory = remember(key, value, positions, no_padding if padding is None else padding, 0, hardware, scaling)
        tiles = [
            SubTile(
                number=number,
                tokens=tokens,
                times=tokens,
                keys=keys[number],
                values=values[number],
                padding=None if padding is None else padding[:, tokens],
                sink=None if memory is None else memory.sink[:, tokens],
            )
            for number, tokens in enumerate(tokens_of)
        ]
        pulses = dac(query, hardware.input_dac)  # q̂ [B, H, T, D]
        exact = None if memory is None else ideal_pulses(query, hardware)
        out, seen = read_arrays(
            heads, pulses, 0, positions, tiles, score_gain=scaling.score, memory=memory, digital_pulses=exact
        )
        if padding is not None:
            out = out.masked_fill(padding[:, None, :, None], 0.0)
        return out.to(call.query.dtype), seen


def _write(heads: Heads, x: Tensor, array: ArrayId, tokens_of: list[Tensor]) -> list[Operands]:
    """Store scaled keys or values `[B, H_kv, T, D]`: per sub-tile, the operands `[B, H, S, D]` of its tokens."""
    operands = heads.written(x, array, torch.arange(heads.n_tokens, device=x.device))[1]
    return [
        list(of_tile) for of_tile in zip(*(_by_tile(heads, operand, tokens_of) for operand in operands), strict=True)
    ]


def _by_tile(heads: Heads, operand: Tensor | float, tiles: list[Tensor]) -> list[Tensor] | list[float]:
    """One operand of all tokens → one per sub-tile, each K/V head repeated for the query heads of its group."""
    if not isinstance(operand, Tensor):
        return [operand] * len(tiles)
    operand = heads.for_query_heads(operand, dim=-3)
    if heads.n_tokens > heads.hardware.array.window:  # slots have been reused: bring the tokens of a sub-tile together
        operand = operand.index_select(-2, torch.cat(tiles))
    return list(operand.split([len(tokens) for tokens in tiles], dim=-2))


def _tile_tokens(n_tokens: int, array: Array, device: torch.device) -> list[Tensor]:
    """Absolute positions of the tokens that pass through each sub-tile, for the sub-tiles that any token reaches."""
    first = [tile * array.rows for tile in range(n_tiles_reached(n_tokens, array))]
    runs = [
        [torch.arange(s, min(s + array.rows, n_tokens), device=device) for s in range(f, n_tokens, array.window)]
        for f in first
    ]
    return [torch.cat(run) for run in runs]


def _assemble(seen: list[Seen], out: Tensor, array: Array) -> Details:
    """Put what each sub-tile has seen back in the order of absolute positions."""
    n_batch, n_heads, n_tokens, head_size = out.shape
    S, phi = (seen[0].phi.new_zeros(n_batch, n_heads, n_tokens, n_tokens) for _ in range(2))
    A = seen[0].phi.new_zeros(n_batch, n_heads, n_tokens, len(seen), head_size)
    for number, s in enumerate(seen):
        start = n_tokens - s.phi.shape[-2]
        S[..., start:, s.tile.tokens] = s.fill.masked_fill(~s.visible, 0.0) * array.saturation_qk
        phi[..., start:, s.tile.tokens] = s.phi
        A[..., start:, number, :] = s.counts
    return Details(S=S, phi=phi, A=A)
