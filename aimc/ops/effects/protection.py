"""Protected tokens: the first and the newest are kept in a digital memory beside the arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from aimc.hardware import Hardware, Protection
from aimc.ops.effects.cell import transfer
from aimc.ops.effects.converters import quantize, storage_dac
from aimc.ops.effects.levels import line_of
from aimc.ops.scaling import Affine, Scaling, scaled

if TYPE_CHECKING:
    from aimc.ops.heads import Heads


class Memory(NamedTuple):
    """The digital memory of one layer: M tokens, those that are protected from any query still to come, and maybe
    others."""

    tokens: Tensor
    """Positions, `[M]`."""
    keys: Tensor
    """Charge that an ideal cell would give per unit pulse, in signal units, `[B, H_kv, M, D]`."""
    values: Tensor
    """Likewise."""
    sink: Tensor
    """Which are among the first of their text, `[B, M]`."""
    padding: Tensor
    """Which are padding, `[B, M]`."""

    def visible(self, rows: Tensor, protection: Protection) -> Tensor:
        """Which of them the queries at `rows` `[T]` read from here: `[B, 1, T, M]`."""
        protected = protected_tokens(rows, self.tokens, self.sink, protection)
        return protected & (self.tokens <= rows[:, None]) & ~self.padding[:, None, None, :]

    def extended(self, other: Memory) -> Memory:
        """This and newer tokens."""
        dims = (0, 2, 2, 1, 1)
        return Memory(*(torch.cat(pair, dim=dim) for *pair, dim in zip(self, other, dims, strict=True)))

    def without_lost(self, newest: int, hardware: Hardware) -> Memory:
        """Only what a query behind the position `newest` can read."""
        keep = self.sink.any(dim=0) | (self.tokens > newest - newest_in_memory(hardware))
        return Memory(
            self.tokens[keep], self.keys[:, :, keep], self.values[:, :, keep], self.sink[:, keep], self.padding[:, keep]
        )

    def select(self, rows: Tensor) -> Memory:
        """Other rows of the batch."""
        return Memory(self.tokens, *(x.index_select(0, rows) for x in self[1:]))


def remember(
    key: Tensor,
    value: Tensor,
    tokens: Tensor,
    padding: Tensor | None,
    n_before: Tensor | int,
    hardware: Hardware,
    scaling: Scaling,
) -> Memory:
    """A memory of the tokens `[T]`.

    Args:
        key: scaled, `[B, H_kv, T, D]`.
        value: likewise.
        tokens: their positions, `[T]`.
        padding: bool `[B, T]`; None: none is.
        n_before: real tokens before these, `[B]` or one number.
        hardware: says how many are protected, and what the memory holds.
        scaling: the lines that stand for cells.
    """
    if padding is None:
        padding = torch.zeros(len(key), len(tokens), dtype=torch.bool, device=key.device)
    sink = sink_tokens(padding, n_before, hardware.protection)
    keys = undivided(ideal_charge(key, hardware, scaling.memory_key), scaling.key_norm, hardware)
    values = undivided(ideal_charge(value, hardware, scaling.memory_value), scaling.value_norm, hardware)
    return Memory(tokens, keys, values, sink, padding)


def protected_tokens(rows: Tensor, tokens: Tensor, sink: Tensor, protection: Protection) -> Tensor:
    """Which tokens `[S]` are digital for the queries at `rows` `[T]`: bool `[B, 1, T, S]`; `sink` is `[B, S]`."""
    return sink[:, None, None, :] | (rows[:, None] - tokens < protection.n_recent)


def sink_tokens(padding: Tensor, n_before: Tensor | int, protection: Protection) -> Tensor:
    """Which of the tokens are among the first `n_sink` of their text.

    Args:
        padding: bool `[B, T]`.
        n_before: real tokens before these, `[B]` or one number.
        protection: how many.
    """
    rank = (~padding).cumsum(dim=1) + (n_before[:, None] if isinstance(n_before, Tensor) else n_before)
    return ~padding & (rank <= protection.n_sink)


def ideal_charge(x: Tensor, hardware: Hardware, line: Affine | None) -> Tensor:
    """What a digital memory holds for a scaled key or value `[B, H_kv, T, D]`: charge per unit pulse, in signal units.

    With `hard_sigmoid` it is what a cell without noise, mismatch and leakage gives, behind a straight converter, levels
    and clip included: the model was trained on that. With a softmax a straight line stands for the cell, without levels
    and clip: the model's own arithmetic.
    """
    cell = hardware.cell
    if not hardware.has_softmax:
        return transfer(storage_dac(x, hardware, straight=True) - cell.offset_v, cell)
    if line is None:
        offset, slope = line_of(hardware)
        return offset + slope * (x - cell.offset_v)
    return scaled(x - cell.offset_v, line)


def undivided(charge: Tensor, norm: Tensor | None, hardware: Hardware) -> Tensor:
    """The charge that a token would give had it not been divided by its norm `[B, H_kv, T]`, counted from that of
    resting cells; None: it was not."""
    return charge if norm is None else (charge - hardware.cell.coefficients[0]) * norm[..., None]


def has_memory(hardware: Hardware) -> bool:
    """Whether any token is kept in digital: protected, or copied for when the arrays select it."""
    return hardware.protection.is_on or hardware.activation == "pruned_softmax"


def newest_in_memory(hardware: Hardware) -> int:
    """How many of the newest tokens the memory has to hold."""
    selectable = hardware.array.window if hardware.activation == "pruned_softmax" else 0
    return max(selectable, hardware.protection.n_recent)


def digital_pulses(x: Tensor, hardware: Hardware) -> Tensor:
    """What multiplies :func:`ideal_charge`, from a scaled query `[B, H, T, D]`."""
    return x if hardware.has_softmax else quantize(x, hardware.input_dac)


def digital_charge(heads: Heads, pulses: Tensor, memory: Memory, full_scale: Tensor | float) -> Tensor:
    """What stands for `S / S_sat` of the protected tokens, `[B, H, T, M]`, from :func:`digital_pulses`; `full_scale`
    is S_sat of the heads."""
    return pulses / full_scale @ heads.for_query_heads(memory.keys, dim=1).mT


def digital_sum(heads: Heads, widths: Tensor, memory: Memory) -> Tensor:
    """What the protected tokens add to the digital sum, `[B, H, T, D]` in units of `array.saturation_av`, from `[B, H,
    T, M]`."""
    return widths @ heads.for_query_heads(memory.values, dim=1) / heads.hardware.array.saturation_av
