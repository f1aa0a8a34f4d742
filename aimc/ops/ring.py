"""The ring buffer and its sub-tiles: which tokens share one, which of them a query sees, and what the cells hold.

Token s sits in slot `s mod W`, sub-tile `slot // R`. Eager operator, decoder and blocked operator share it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aimc.hardware import Array
from aimc.ops.effects.array import Operands
from aimc.ops.effects.protection import Memory
from aimc.ops.heads import Heads

KNOWN = ("padding", "sink", "key_norm", "value_norm")
"""What is known of tokens beside what their cells hold; tokens are the last dimension."""


@dataclass(slots=True, kw_only=True)
class Contents:
    """Tokens in the cells of both arrays, and what these cells do to a pulse."""

    tokens: Tensor
    """Positions in the text, `[S]`."""
    times: Tensor
    """When they were written, in token times, `[S]`; equal to `tokens` where no time passes between tokens."""
    keys: Operands
    """Per power of the decay, `[B, H_kv, S, D]` (in a sub-tile `[B, H, S, D]`) or a number."""
    values: Operands
    """Likewise."""
    padding: Tensor | None = None
    """Bool `[B, S]`; None: no padding."""
    sink: Tensor | None = None
    """Which tokens are digital for ever, `[B, S]`; None: no protection."""
    key_norm: Tensor | None = None
    """By what keys were divided, `[B, H_kv, S]`; None: by one."""
    value_norm: Tensor | None = None
    """Likewise for values."""

    def followed_by(self, new: Contents) -> Contents:
        """These tokens and newer ones."""
        return Contents(
            tokens=torch.cat([self.tokens, new.tokens]),
            times=torch.cat([self.times, new.times]),
            keys=[_joined(*pair) for pair in zip(self.keys, new.keys, strict=True)],
            values=[_joined(*pair) for pair in zip(self.values, new.values, strict=True)],
            padding=_joined_known(self.padding, new.padding),
            sink=_joined_known(self.sink, new.sink),
            key_norm=_joined_known(self.key_norm, new.key_norm),
            value_norm=_joined_known(self.value_norm, new.value_norm),
        )


@dataclass(slots=True, kw_only=True)
class Earlier:
    """What the tokens before a piece of text have left behind; by default there were none."""

    n_tokens: int = 0
    """Tokens written so far."""
    waited: float = 0.0
    """Time in which no token came, in token times."""
    n_real: Tensor | int = 0
    """Tokens that are not padding, `[B]` or one number."""
    contents: Contents | None = None
    """The last W of them, in the order of their slots."""
    memory: Memory | None = None
    """Of the protected tokens."""


def visible(rows: Tensor, tokens: Tensor, window: int, padding: Tensor | None = None) -> Tensor:
    """Which tokens `[S]` the queries at `rows` `[T']` see: `[T', S]`; with their padding `[B, S]`,
    `[B, 1, T', S]`."""
    seen = (tokens <= rows[:, None]) & (rows[:, None] - tokens < window)
    return seen if padding is None else seen & ~padding[:, None, None, :]


def n_tiles_reached(n_tokens: int, array: Array) -> int:
    """Sub-tiles that any of `n_tokens` tokens is written to."""
    return -(-min(n_tokens, array.window) // array.rows)


def by_sub_tile(phi: Tensor, array: Array, n_tiles: int) -> Tensor:
    """Pulses by absolute key position `[B, H, T, S]`, 0 where a key is not visible, summed over the tokens that each of
    the first J sub-tiles holds: `[B, H, T, J]`."""
    tile = torch.arange(phi.shape[-1], device=phi.device) % array.window // array.rows
    return phi.new_zeros(*phi.shape[:3], n_tiles).index_add_(-1, tile, phi)


def sub_tiles(contents: Contents, n_earlier: int, heads: Heads) -> list[Contents]:
    """Contents of each sub-tile that is in use, as query heads meet them.

    Args:
        contents: what is held of the `n_earlier` tokens before, in the order of slots, then the new tokens in theirs.
        n_earlier: tokens of the text before the new ones.
        heads: sizes and hardware.
    """
    array, stop = heads.hardware.array, n_earlier + heads.n_tokens

    def written(tile: int, n_tokens: int) -> int:
        """How many of the first tokens of a text are written to a sub-tile."""
        rounds, rest = divmod(n_tokens, array.window)
        return rounds * array.rows + min(max(rest - tile * array.rows, 0), array.rows)

    sizes = [
        min(written(tile, n_earlier), array.rows) + written(tile, stop) - written(tile, n_earlier)
        for tile in range(n_tiles_reached(stop, array))
    ]
    order = None  # tokens that follow each other in one pass over the slots need no sorting
    if n_earlier or stop > array.window:
        order = torch.argsort(contents.tokens % array.window // array.rows, stable=True)

    def split(x: Tensor, dim: int) -> list[Tensor]:
        return list((x if order is None else x.index_select(dim, order)).split(sizes, dim=dim))

    def split_operand(x: Tensor | float) -> list[Tensor] | list[float]:
        return split(heads.for_query_heads(x, dim=-3), -2) if isinstance(x, Tensor) else [x] * len(sizes)

    def split_known(x: Tensor | None) -> list[Tensor] | list[None]:
        return [None] * len(sizes) if x is None else split(x, -1)

    parts = zip(
        split(contents.tokens, 0),
        split(contents.times, 0),
        zip(*map(split_operand, contents.keys), strict=True),
        zip(*map(split_operand, contents.values), strict=True),
        split_known(contents.padding),
        *map(split_known, (contents.sink, contents.key_norm, contents.value_norm)),
        strict=True,
    )
    return [
        Contents(
            tokens=tokens, times=times, keys=list(keys), values=list(values), **dict(zip(KNOWN, known, strict=True))
        )
        for tokens, times, keys, values, *known in parts
    ]


def _joined(old: Tensor | float, new: Tensor | float) -> Tensor | float:
    return torch.cat([old, new], dim=-2) if isinstance(old, Tensor) and isinstance(new, Tensor) else old


def _joined_known(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    return None if old is None or new is None else torch.cat([old, new], dim=-1)
