"""Gain-cell attention, eager: docs/physics.md row by row, and the truth that every faster form is held to.

All positions are computed at once, equal to the ring buffer that takes one token after another. Because sub-tiles share
nothing but the digital sum (and the softmax, where there is one), the two arrays are walked sub-tile by sub-tile.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from aimc.ops.call import Call
from aimc.ops.effects.activation import Corrections, activation
from aimc.ops.effects.array import Decay, Operands, charge_av, charge_qk, summed
from aimc.ops.effects.cell import cell_operands
from aimc.ops.effects.columns import with_columns
from aimc.ops.effects.converters import adc, dac, storage_dac
from aimc.ops.effects.noise import ArrayId, with_noise
from aimc.ops.effects.normaliser import counted_pulse, reciprocal
from aimc.ops.effects.protection import (
    Memory,
    digital_charge,
    digital_pulses,
    digital_sum,
    has_memory,
    protected_tokens,
    remember,
)
from aimc.ops.effects.pruning import kept_in_memory, weights_of_kept
from aimc.ops.heads import Heads
from aimc.ops.ring import Contents, Earlier, sub_tiles, visible
from aimc.ops.scaling import scaled


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


@dataclass(slots=True)
class TileRead:
    """A sub-tile as its queries read it: the last T' of all, from the token on that first writes to it."""

    tile: Contents
    first: int
    """The first query that reads it."""
    visible: Tensor
    """Which keys a query reads here, broadcastable to `charge`."""
    charge: Tensor
    """`S / S_sat` with column errors and read noise, `[B, H, T', S]`."""
    decay: Decay
    """Of what the second array stores."""
    phi: Tensor = field(init=False)
    """Pulses into the second array, `[B, H, T', S]`."""
    counts: Tensor = field(init=False)
    """Counter values A, `[B, H, T', D]`; zero where the second array is not read."""


def eager_attention(call: Call, earlier: Earlier | None = None) -> tuple[Tensor, list[TileRead]]:
    """The table of docs/physics.md for the T tokens of a call.

    Args:
        call: checked arguments.
        earlier: what the tokens before have left in the arrays; None: the text begins here.

    Returns:
        Digital sum `[B, H, T, D]` in units of `array.saturation_av`, and how each sub-tile was read.
    """
    heads, scaling, padding, earlier = call.heads, call.scaling, call.key_padding, earlier or Earlier()
    hardware, array = heads.hardware, heads.hardware.array
    start, n_rows = earlier.n_tokens, array.rows
    rows = torch.arange(start, start + heads.n_tokens, device=heads.device)  # t, and s of what is written now
    times = rows.to(torch.float64) + earlier.waited if earlier.waited else rows

    # Scale
    query, key, value = (scaled(x, affine) for x, affine in zip(call[:3], scaling.affines, strict=True))
    # Input DAC
    pulses = dac(query, hardware.input_dac)  # q̂ [B, H, T, D]
    # Storage DAC, Write noise
    key_v, value_v = stored_v(heads, key, ArrayId.QK, rows), stored_v(heads, value, ArrayId.AV, rows)
    # Leakage: about its target a voltage only falls by a factor r, which is applied at every read below
    key_u, value_u = key_v - heads.cell.offset_v, value_v - heads.cell.offset_v
    # Cell transfer: charge per unit pulse, as what r^0, r^1, … multiply
    keys, values = operands(heads, key_u, ArrayId.QK, rows), operands(heads, value_u, ArrayId.AV, rows)
    norms = {"key_norm": scaling.key_norm, "value_norm": scaling.value_norm}
    contents = Contents(tokens=rows, times=times, keys=keys, values=values, padding=padding, **norms)
    memory = earlier.memory
    if has_memory(hardware):  # Protection, Pruning
        newest = remember(key, value, rows, padding, earlier.n_real, hardware, scaling)
        contents.sink, memory = newest.sink, newest if memory is None else memory.extended(newest)

    contents = contents if earlier.contents is None else earlier.contents.followed_by(contents)
    full_scale_qk, full_scale_av, full_scale_of_sum = heads.full_scales(scaling)  # S_sat, A_sat, of Σφ
    relative_pulses, reads = pulses / full_scale_qk, []
    for number, tile in enumerate(sub_tiles(contents, start, heads)):
        first = min(max(number * n_rows - start, 0), len(rows))  # it is not read before anything was written to it
        decay, decay_of_values = heads.decays(times[first:], tile.times, tile.tokens)
        # First array
        charge = charge_qk(relative_pulses[..., first:, :], tile.keys, decay)  # S / S_sat [B, H, T', S]
        # Column errors
        charge = with_columns(charge, *heads.column_errors_qk(tile.tokens))
        # Read noise
        charge = with_noise(charge, heads.read_noise_qk(rows[first:], tile.tokens))
        seen = visible(rows[first:], tile.tokens, array.window, tile.padding)
        if tile.sink is not None:  # Protection
            seen = seen & ~protected_tokens(rows[first:], tile.tokens, tile.sink, hardware.protection)
        reads.append(TileRead(tile, first, seen, charge, decay_of_values))

    charges, seen_keys = [read.charge for read in reads], [read.visible for read in reads]
    out, pulse = torch.zeros_like(pulses), pulses.new_zeros(*pulses.shape[:3], 1)
    if memory is not None:  # Protection
        exact = digital_charge(heads, digital_pulses(query, hardware), memory, full_scale_qk)
        in_memory = memory.visible(rows, hardware.protection)
        if hardware.activation == "pruned_softmax":  # Pruning
            return pruned(call, reads, memory, exact, in_memory), reads
        charges, seen_keys = [*charges, exact], [*seen_keys, in_memory]
    corrections = corrections_of(heads, reads, times, relative_pulses)
    # Charge-to-pulse, or softmax between converters
    widths, normaliser, lost = activation(heads, charges, seen_keys, scaling, len(reads), corrections)
    for number, (read, phi) in enumerate(zip(reads, widths, strict=False)):  # the memory's comes last
        # Second array
        counts = charge_av(phi, read.tile.values, read.decay) / full_scale_av  # A [B, H, T', D]
        # Column errors
        which = torch.tensor([number], device=heads.device)
        counts = with_columns(counts, *heads.column_errors_av(which))
        # Read noise
        counts = with_noise(counts, heads.read_noise_av(rows[read.first :], number))
        # Readout
        read.phi, read.counts = phi, adc(counts, hardware.readout)
        # Digital sum
        out[..., read.first :, :] += read.counts * (full_scale_av / array.saturation_av)
        if hardware.normaliser.is_on:  # Normaliser column
            of_tile = phi.sum(dim=-1, keepdim=True)
            pulse[..., read.first :, :] += counted_pulse(heads, of_tile, full_scale_of_sum, rows[read.first :], which)
    if corrections is not None:  # Corrections
        out = out + lost * (heads.cell.coefficients[0] / array.saturation_av)
    if memory is not None:  # Protection
        out = out + digital_sum(heads, widths[-1], memory)
    if hardware.normaliser.is_on:
        pulse = pulse if memory is None else pulse + widths[-1].sum(dim=-1, keepdim=True)
        normaliser = reciprocal(heads, pulse, full_scale_of_sum)
    out = out if normaliser is None else out * normaliser
    return out if padding is None else out.masked_fill(padding[:, None, :, None], 0.0), reads


def corrections_of(heads: Heads, reads: list[TileRead], times: Tensor, relative_pulses: Tensor) -> Corrections | None:
    """What digital logic makes up for in the sub-tiles, read at the `times` `[T]`; None: nothing."""
    if not heads.corrects:
        return None
    norms = [(read.tile.key_norm, read.tile.value_norm) for read in reads]
    read_at, written = [times[read.first :] for read in reads], [read.tile.times for read in reads]
    return heads.corrections(read_at, written, norms, relative_pulses)


def pruned(call: Call, reads: list[TileRead], memory: Memory, exact: Tensor, protected: Tensor) -> Tensor:
    """Digital attention of the tokens that the arrays have selected, and of the protected ones: the digital sum `[B, H,
    T, D]`.

    Args:
        call: that of the operator.
        reads: how each sub-tile was read; their pulses are set, for inspection.
        memory: the digital copy of M tokens.
        exact: their scores in full scales, `[B, H, T, M]`.
        protected: which of them are attended to whatever the arrays say, broadcastable.
    """
    heads, padding = call.heads, call.key_padding
    charges, visible, firsts = ([getattr(read, name) for read in reads] for name in ("charge", "visible", "first"))
    at = [torch.searchsorted(memory.tokens, read.tile.tokens) for read in reads]
    kept, scores = kept_in_memory(heads, charges, visible, firsts, at, exact, call.scaling.threshold, padding)
    weights = weights_of_kept(heads, scores, kept | protected, call.scaling)
    for read, columns in zip(reads, at, strict=True):
        read.phi, read.counts = weights[..., read.first :, columns], torch.zeros_like(exact[..., read.first :, :1])
    out = digital_sum(heads, weights, memory)
    return out if padding is None else out.masked_fill(padding[:, None, :, None], 0.0)


def stored_v(heads: Heads, x: Tensor, array: ArrayId, tokens: Tensor) -> Tensor:
    """Voltages that are written for scaled keys or values `[B, H_kv, S, D]` of the tokens `[S]`."""
    return with_noise(storage_dac(x, heads.hardware), heads.write_noise(array, tokens))


def operands(heads: Heads, u: Tensor, array: ArrayId, tokens: Tensor) -> Operands:
    """What cells that hold voltages `u` about their leak target do to a pulse, `[B, H_kv, S, D]` per power of the decay
    (without leakage all powers stay as they are: one sum)."""
    powers = cell_operands(u, heads.cell, heads.coefficients(array, tokens))
    return powers if heads.decay_per_token else [summed(powers)]


def details_of(reads: list[TileRead], out: Tensor, full_scale_qk: Tensor | float) -> Details:
    """Put what happened in each sub-tile back in the order of absolute positions."""
    n_batch, n_heads, n_tokens, head_size = out.shape
    S, phi = (reads[0].charge.new_zeros(n_batch, n_heads, n_tokens, n_tokens) for _ in range(2))
    A = reads[0].charge.new_zeros(n_batch, n_heads, n_tokens, len(reads), head_size)
    for number, read in enumerate(reads):
        S[..., read.first :, read.tile.tokens] = read.charge.masked_fill(~read.visible, 0.0) * full_scale_qk
        phi[..., read.first :, read.tile.tokens] = read.phi
        A[..., read.first :, number, :] = read.counts
    return Details(S=S, phi=phi, A=A)
