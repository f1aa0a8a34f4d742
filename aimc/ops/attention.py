"""Gain-cell attention, eager: the truth that every faster implementation is held to.

It reads like the table in section 1 of the design: scaled q through the input DAC to pulses, k and v through the storage DAC into
two arrays, first array, charge-to-pulse circuit, second array, counters, digital sum. Because sub-tiles share nothing but the
digital sum, the walk is over sub-tiles, each with the slots of both arrays that belong to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from aimc.config import Array, Hardware
from aimc.ops.array import Operands, charge_av, charge_qk
from aimc.ops.cell import cell_operands
from aimc.ops.checks import check_attention
from aimc.ops.dispatch import choose_backend
from aimc.ops.fused import fused_attention
from aimc.ops.heads import Heads, n_tiles_reached
from aimc.ops.noise import ArrayId, Chip, draw_seed
from aimc.ops.quantize import quantize
from aimc.ops.scaling import Scaling, scaled


@dataclass(slots=True, kw_only=True)
class Details:
    """What happens inside, for inspection."""

    S: Tensor
    """Charge of the first array in signal units with column errors and read noise, `[B, H, T, T]`; 0 where a key is not visible."""
    phi: Tensor
    """Pulse widths into the second array as fractions of the longest, `[B, H, T, T]`, indexed by absolute key position."""
    A: Tensor
    """Counter values of the sub-tiles, `[B, H, T, J, D]`, J = sub-tiles that any token has reached; 0 before a sub-tile is in use."""


class _Seen(NamedTuple):
    """What one sub-tile has seen."""

    start: int
    tokens: Tensor
    fill: Tensor
    phi: Tensor
    counts: Tensor


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

    Token s is in slot `s mod W`, sub-tile `slot // R`; query t sees keys `t−W < s <= t`. A sub-tile takes part from the token that
    first writes to it; before that it is not read and adds neither offset nor noise. Padding tokens keep their slot (the machine
    has written something there) but get no pulse.

    Args:
        query: `[B, H, T, D]`, through its scaler, as pulse fractions (clipped to the input DAC's range).
        key: `[B, H_kv, T, D]`, through its scaler, in volt (clipped to the storage DAC's range). H is a multiple of H_kv; query
            head h reads K/V head `h // (H / H_kv)`.
        value: as `key`.
        hardware: cells, converters, arrays, leakage and noise; its `backend` chooses the implementation, all of which agree.
        scaling: the scalers of query, key and value, if they are still to be applied (fused with the converters); then the three
            are given as the model has them.
        key_padding: bool `[B, T]`, True where a token is padding; None: none is.
        chip: which chip and layer, needed for mismatch and column errors; its layer also keys the noise.
        generator: source of the one seed of this call's write and read noise; None: torch's global one. Untouched without noise.
        details: also return :class:`Details`; computed by the eager operator, whatever `hardware.backend` says.

    Returns:
        `[B, H, T, D]` in the dtype of `query`: the digital sum of the sub-tiles in units of `array.saturation_av`, before the
        output scaler; zero at padded positions. Computed in float32 (float64 for float64 queries), whatever autocast says.

    Raises:
        TypeError, ValueError, NotImplementedError: see :func:`aimc.ops.checks.check_attention`.
    """
    check_attention(query, key, value, hardware, key_padding, chip, scaling)
    seed = draw_seed(generator, query.device) if hardware.noise.is_fresh() else torch.zeros((), dtype=torch.int64, device=query.device)
    backend = "eager" if details else choose_backend(query, hardware)
    if backend != "eager":
        return fused_attention(query, key, value, hardware, scaling=scaling, key_padding=key_padding, chip=chip, seed=seed, engine=backend)
    out, trace = _eager(query, key, value, hardware, scaling or Scaling(None, None, None), key_padding, chip, seed, details)
    return (out, _assemble(trace, out, hardware.array)) if details else out


def _eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hardware: Hardware,
    scaling: Scaling,
    key_padding: Tensor | None,
    chip: Chip | None,
    seed: Tensor,
    details: bool,
) -> tuple[Tensor, list[_Seen]]:
    """The table of the design, line by line, one sub-tile after another."""
    array = hardware.array
    heads = Heads(query, key, hardware, chip, seed)
    with torch.autocast(query.device.type, enabled=False):
        positions = torch.arange(heads.n_tokens, device=query.device)
        tiles = _tile_tokens(heads.n_tokens, array, query.device)
        pulses = quantize(scaled(query, scaling.query), hardware.input_dac)  # q̂ [B, H, T, D]
        keys = _write(heads, scaled(key, scaling.key), ArrayId.QK, tiles)
        values = _write(heads, scaled(value, scaling.value), ArrayId.AV, tiles)
        out = torch.zeros_like(pulses)
        trace = []
        for tile, tokens in enumerate(tiles):
            start = tile * array.rows  # the token that first writes to this sub-tile
            rows = positions[start:]
            ages, visible = heads.seen(rows, tokens, key_padding)
            decay = heads.decay(ages)  # [T', S]
            fill = charge_qk(pulses[..., start:, :] / array.saturation_qk, keys[tile], decay)  # S / S_sat [B, H, T', S]
            fill = _with_errors(fill, *heads.column_errors_qk(tokens), heads.read_noise_qk(rows, tokens))
            phi = fill.clamp(0.0, 1.0).masked_fill(~visible, 0.0)
            counts = charge_av(phi, values[tile], decay) / array.saturation_av  # A [B, H, T', D]
            counts = _with_errors(
                counts, *heads.column_errors_av(torch.tensor([tile], device=query.device)), heads.read_noise_av(rows, tile)
            )
            counts = quantize(counts, hardware.readout)
            out[..., start:, :] += counts
            if details:
                trace.append(_Seen(start, tokens, fill.masked_fill(~visible, 0.0), phi, counts))
        if key_padding is not None:
            out = out.masked_fill(key_padding[:, None, :, None], 0.0)
        return out.to(query.dtype), trace


def _write(heads: Heads, x: Tensor, array: ArrayId, tiles: list[Tensor]) -> list[Operands]:
    """Store scaled keys or values `[B, H_kv, T, D]`: per sub-tile, the operands `[B, H, S, D]` of its tokens."""
    positions = torch.arange(heads.n_tokens, device=x.device)
    gain, offset_v = heads.cell_errors(array, positions)
    operands = cell_operands(heads.stored_u(x, array, positions), heads.hardware.cell, gain=gain, offset_v=offset_v)
    return [list(of_tile) for of_tile in zip(*(_by_tile(heads, operand, tiles) for operand in operands), strict=True)]


def _by_tile(heads: Heads, operand: Tensor | float, tiles: list[Tensor]) -> list[Tensor] | list[float]:
    """One operand of all tokens → one per sub-tile, each K/V head repeated for the query heads of its group."""
    if not isinstance(operand, Tensor):
        return [operand] * len(tiles)
    operand = heads.for_query_heads(operand, dim=-3)
    if heads.n_tokens > heads.hardware.array.window:  # slots have been reused: bring the tokens of a sub-tile together
        operand = operand.index_select(-2, torch.cat(tiles))
    return list(operand.split([len(tokens) for tokens in tiles], dim=-2))


def _with_errors(x: Tensor, gain: Tensor | None, offset: Tensor | None, noise: Tensor | None) -> Tensor:
    """A column's readout: relative gain error, offset and read noise, in full scales."""
    x = x if gain is None else x * (1.0 + gain)
    x = x if offset is None else x + offset
    return x if noise is None else x + noise


def _tile_tokens(n_tokens: int, array: Array, device: torch.device) -> list[Tensor]:
    """Absolute positions of the tokens that pass through each sub-tile, for the sub-tiles that any token reaches."""
    first = [tile * array.rows for tile in range(n_tiles_reached(n_tokens, array))]
    runs = [[torch.arange(s, min(s + array.rows, n_tokens), device=device) for s in range(f, n_tokens, array.window)] for f in first]
    return [torch.cat(run) for run in runs]


def _assemble(trace: list[_Seen], out: Tensor, array: Array) -> Details:
    """Put what each sub-tile has seen back in the order of absolute positions."""
    n_batch, n_heads, n_tokens, head_size = out.shape
    S, phi = (trace[0].phi.new_zeros(n_batch, n_heads, n_tokens, n_tokens) for _ in range(2))
    A = trace[0].phi.new_zeros(n_batch, n_heads, n_tokens, len(trace), head_size)
    for tile, seen in enumerate(trace):
        S[..., seen.start :, seen.tokens] = seen.fill * array.saturation_qk
        phi[..., seen.start :, seen.tokens] = seen.phi
        A[..., seen.start :, tile, :] = seen.counts
    return Details(S=S, phi=phi, A=A)
