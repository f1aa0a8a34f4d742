"""Gain-cell attention, eager: the truth that every faster implementation is held to.

It reads like the table in section 1 of the design: scaled q through the input DAC to pulses, k and v through the storage DAC into
two arrays, first array, charge-to-pulse circuit, second array, counters, digital sum. Because sub-tiles share nothing but the
digital sum, the walk is over sub-tiles, each with the slots of both arrays that belong to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aimc.config import Array, Hardware
from aimc.ops.array import Operands, charge_av, charge_qk
from aimc.ops.cell import cell_operands
from aimc.ops.checks import check_attention
from aimc.ops.leakage import age, decay_factor
from aimc.ops.noise import ArrayId, Chip, draw_seed, read_noise_av, read_noise_qk, write_noise
from aimc.ops.quantize import quantize


@dataclass(slots=True, kw_only=True)
class Details:
    """What happens inside, for inspection."""

    S: Tensor
    """Charge of the first array in signal units with column errors and read noise, `[B, H, T, T]`; 0 where a key is not visible."""
    phi: Tensor
    """Pulse widths into the second array as fractions of the longest, `[B, H, T, T]`, indexed by absolute key position."""
    A: Tensor
    """Counter values of the sub-tiles, `[B, H, T, J, D]`, J = sub-tiles that any token has reached; 0 before a sub-tile is in use."""


def gain_cell_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hardware: Hardware,
    *,
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
        hardware: cells, converters, arrays, leakage and noise.
        key_padding: bool `[B, T]`, True where a token is padding; None: none is.
        chip: which chip and layer, needed for mismatch and column errors; its layer also keys the noise.
        generator: source of the one seed of this call's write and read noise; None: torch's global one. Untouched without noise.
        details: also return :class:`Details`.

    Returns:
        `[B, H, T, D]` in the dtype of `query`: the digital sum of the sub-tiles in units of `array.saturation_av`, before the
        output scaler; zero at padded positions. Computed in float32 (float64 for float64 queries), whatever autocast says.

    Raises:
        TypeError, ValueError, NotImplementedError: see :func:`aimc.ops.checks.check_attention`.
    """
    check_attention(query, key, value, hardware, key_padding, chip)
    with torch.autocast(query.device.type, enabled=False):
        head = _Heads(query, key, hardware, chip, generator)
        pulses = quantize(query.to(head.dtype), hardware.input_dac)  # q̂ [B, H, T, D]
        keys = head.write(key, ArrayId.QK)
        values = head.write(value, ArrayId.AV)
        out = torch.zeros_like(pulses)
        trace = []
        for tile, tokens in enumerate(head.tiles):
            start = tile * hardware.array.rows  # the token that first writes to this sub-tile
            rows = head.positions[start:]
            ages = age(rows, tokens)  # [T', S]
            decay = decay_factor(ages, hardware.leakage.decay_per_token, dtype=head.dtype) if hardware.leakage.decay_per_token else None
            visible = (tokens <= rows[:, None]) & (ages < hardware.array.window)
            if key_padding is not None:
                visible = visible & ~key_padding[:, None, None, tokens]  # [B, 1, T', S]
            fill = head.read_qk(pulses[..., start:, :], keys[tile], decay, rows, tokens)  # S / S_sat [B, H, T', S]
            phi = fill.clamp(0.0, 1.0).masked_fill(~visible, 0.0)
            counts = head.read_av(phi, values[tile], decay, rows, tile)  # A [B, H, T', D]
            out[..., start:, :] += counts
            if details:
                trace.append((start, tokens, fill.masked_fill(~visible, 0.0), phi, counts))
        if key_padding is not None:
            out = out.masked_fill(key_padding[:, None, :, None], 0.0)
        out = out.to(query.dtype)
        return (out, _assemble(trace, pulses, hardware.array)) if details else out


class _Heads:
    """The heads of one call: writing both arrays and reading them, with the noise and the chip that this call meets."""

    def __init__(self, query: Tensor, key: Tensor, hardware: Hardware, chip: Chip | None, generator: torch.Generator | None) -> None:
        noise = hardware.noise
        self.hardware = hardware
        self.chip = chip or Chip(seed=0)  # whether one was needed is checked before
        self.layer = self.chip.layer
        self.seed = draw_seed(generator, query.device) if noise.write_v or noise.read_qk or noise.read_av else 0
        self.dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.n_batch, self.n_heads, n_tokens, self.head_size = query.shape
        self.n_kv_heads = key.shape[1]
        self.positions = torch.arange(n_tokens, device=query.device)
        self.tiles = _tile_tokens(n_tokens, hardware.array, query.device)

    def write(self, x: Tensor, array: ArrayId) -> list[Operands]:
        """Store keys or values `[B, H_kv, T, D]`: per sub-tile, the operands `[B, H, S, D]` of its tokens."""
        noise, cell = self.hardware.noise, self.hardware.cell
        stored_v = quantize(x.to(self.dtype), self.hardware.storage_dac)
        if noise.write_v:
            unit = write_noise(self.seed, self.layer, array, self.n_batch, self.n_kv_heads, self.positions, self.head_size, self.dtype)
            stored_v = stored_v + noise.write_v * unit
        gain = offset_v = None
        cells = (array, self.n_kv_heads, self.positions % self.hardware.array.window, self.head_size, self.dtype)
        if noise.mismatch_gain:
            gain = noise.mismatch_gain * self.chip.cell_gain(*cells)
        if noise.mismatch_offset_v:
            offset_v = noise.mismatch_offset_v * self.chip.cell_offset(*cells)
        operands = cell_operands(stored_v - cell.offset_v, cell, gain=gain, offset_v=offset_v)
        return [list(of_tile) for of_tile in zip(*map(self._by_tile, operands), strict=True)]

    def _by_tile(self, operand: Tensor | float) -> list[Tensor] | list[float]:
        """One operand of all tokens → one per sub-tile, each K/V head repeated for the query heads of its group."""
        if not isinstance(operand, Tensor):
            return [operand] * len(self.tiles)
        operand = self._for_query_heads(operand, dim=-3)
        if len(self.positions) > self.hardware.array.window:  # slots have been reused: bring the tokens of a sub-tile together
            operand = operand.index_select(-2, torch.cat(self.tiles))
        return list(operand.split([len(tokens) for tokens in self.tiles], dim=-2))

    def _for_query_heads(self, x: Tensor, dim: int) -> Tensor:
        groups = self.n_heads // self.n_kv_heads
        return x if groups == 1 else x.repeat_interleave(groups, dim=dim)

    def read_qk(self, pulses: Tensor, operands: Operands, decay: Tensor | None, rows: Tensor, tokens: Tensor) -> Tensor:
        """First array with its column errors and read noise: `S / S_sat`, `[B, H, T', S]`."""
        noise = self.hardware.noise
        fill = charge_qk(pulses / self.hardware.array.saturation_qk, operands, decay)
        slots = tokens % self.hardware.array.window
        if noise.column_gain:
            gain = self.chip.column_gain_qk(self.n_kv_heads, slots, self.dtype)
            fill = fill * (1.0 + noise.column_gain * self._for_query_heads(gain, dim=0)[:, None])
        if noise.column_offset:
            offset = self.chip.column_offset_qk(self.n_kv_heads, slots, self.dtype)
            fill = fill + noise.column_offset * self._for_query_heads(offset, dim=0)[:, None]
        if noise.read_qk:
            fill = fill + noise.read_qk * read_noise_qk(self.seed, self.layer, self.n_batch, self.n_heads, rows, tokens, self.dtype)
        return fill

    def read_av(self, phi: Tensor, operands: Operands, decay: Tensor | None, rows: Tensor, tile: int) -> Tensor:
        """Second array, one sub-tile with its column errors, read noise and counter: `A`, `[B, H, T', D]`."""
        noise = self.hardware.noise
        counts = charge_av(phi, operands, decay) / self.hardware.array.saturation_av
        column = (self.n_kv_heads, torch.tensor([tile], device=phi.device), self.head_size, self.dtype)
        if noise.column_gain:
            counts = counts * (1.0 + noise.column_gain * self._for_query_heads(self.chip.column_gain_av(*column), dim=0))
        if noise.column_offset:
            counts = counts + noise.column_offset * self._for_query_heads(self.chip.column_offset_av(*column), dim=0)
        if noise.read_av:
            unit = read_noise_av(self.seed, self.layer, self.n_batch, self.n_heads, rows, tile, self.head_size, self.dtype)
            counts = counts + noise.read_av * unit
        return quantize(counts, self.hardware.readout)


def _tile_tokens(n_tokens: int, array: Array, device: torch.device) -> list[Tensor]:
    """Absolute positions of the tokens that pass through each sub-tile, for the sub-tiles that any token reaches."""
    first = range(0, min(n_tokens, array.window), array.rows)
    runs = [[torch.arange(s, min(s + array.rows, n_tokens), device=device) for s in range(f, n_tokens, array.window)] for f in first]
    return [torch.cat(run) for run in runs]


def _assemble(trace: list[tuple[int, Tensor, Tensor, Tensor, Tensor]], pulses: Tensor, array: Array) -> Details:
    """Put what each sub-tile has seen back in the order of absolute positions."""
    n_batch, n_heads, n_tokens, head_size = pulses.shape
    S, phi = (pulses.new_zeros(n_batch, n_heads, n_tokens, n_tokens) for _ in range(2))
    A = pulses.new_zeros(n_batch, n_heads, n_tokens, len(trace), head_size)
    for tile, (start, tokens, tile_fill, tile_phi, counts) in enumerate(trace):
        S[..., start:, tokens] = tile_fill * array.saturation_qk
        phi[..., start:, tokens] = tile_phi
        A[..., start:, tile, :] = counts
    return Details(S=S, phi=phi, A=A)
