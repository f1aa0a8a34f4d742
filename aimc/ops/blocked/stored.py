"""Tokens as the blocked operator holds them: written to one array, prepared in runs, met by one read after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aimc.ops.blocked.interpolation import Nodes, nodes, nodes_needed
from aimc.ops.blocked.reads import Read
from aimc.ops.call import Call
from aimc.ops.eager import stored_v
from aimc.ops.effects.array import decayed, summed
from aimc.ops.effects.cell import cell_operands, powers_with_gradient
from aimc.ops.effects.leakage import own_decay
from aimc.ops.effects.noise import ArrayId
from aimc.ops.heads import Heads
from aimc.ops.scaling import scaled


@dataclass(slots=True, kw_only=True)
class Cells:
    """The cells of one sub-tile, as one read meets them."""

    operands: list[Tensor | None]
    """Per power of the decay, `[B·H, S, D]`, or a row `[B·H, 1, D]` where all cells are alike; None: the power is
    absent."""
    tokens: Tensor
    """Positions of the tokens in them, `[S]`."""
    column_gain: Tensor | None
    """Of the first array's columns, `[H, 1, S]`; None: none, or already part of the operands."""
    column_offset: Tensor | None
    """`[H, 1, S]` in the first array, `[H, 1, D]` in the second; None: none."""
    gradients: dict[int, list[Tensor]]
    """Where the gradients `[B·H, S, D]` of the operands that have one are gathered, per power."""
    nodes: Nodes | None = None
    """When the cells are read, if each leaks at a rate of its own; then the operand is that of all nodes, `[B·H, S,
    K·D]`."""
    decays: Tensor | None = None
    """Of each cell at the nodes, `[K, H, S, D]`."""
    continued: bool = False
    """Whether the last gradients in `gradients` are those of these cells, by queries before."""

    def expand(self, x: Tensor) -> Tensor:
        """What the queries put on, `[B·H, T', D]`, as it meets the operands."""
        return x if self.nodes is None else self.nodes.expand(x)

    def collapse(self, x: Tensor) -> Tensor:
        """The transpose of :meth:`expand`."""
        return x if self.nodes is None else self.nodes.collapse(x)

    def leak(self, rates: Tensor, at: Nodes) -> None:
        """Evaluate the powers of the decay at the nodes, each cell at its own rate `[H, S, D]`."""
        self.nodes = at
        self.decays = own_decay(rates, at.times[:, None] - self.tokens).transpose(0, 1)
        operands = [
            0.0 if o is None else o.unflatten(0, (-1, len(rates)))[:, None] for o in self.operands
        ]  # [B, 1, H, S or 1, D]
        by_node = decayed(operands, self.decays)  # [B, K, H, S, D]
        self.operands = [by_node.permute(0, 2, 3, 1, 4).flatten(-2).flatten(0, 1)]

    def has_gradient(self, j: int) -> bool:
        """Whether what comes back to the operand number j goes on to the stored voltages."""
        return j in self.gradients or self.nodes is not None

    def gather(self, j: int, grad: Tensor) -> None:
        """Take in the gradient of the operand number j, shaped like it."""
        if self.decays is None:
            self.gradients[j].append(grad)
            return
        n, n_heads, n_cells, size = self.decays.shape
        by_node = grad.view(-1, n_heads, n_cells, n, size).permute(0, 3, 1, 2, 4)  # [B, K, H, S, D]
        for power, gathered in self.gradients.items():
            of_power = (by_node * self.decays**power).sum(dim=1).flatten(0, 1)
            if self.continued:
                gathered[-1] += of_power
            else:
                gathered.append(of_power)


class Stored:
    """Tokens written to one array, and what their cells do to a pulse.

    Args:
        ranges: runs of tokens (first, one past the last), prepared together.
    """

    def __init__(self, call: Call, array: ArrayId, ranges: list[tuple[int, int]]) -> None:
        heads, hardware = call.heads, call.heads.hardware
        source, self.affine = (call.key, call.scaling.key) if array == ArrayId.QK else (call.value, call.scaling.value)
        self.array = array
        self.ranges = ranges
        self.n_nodes = nodes_needed(hardware) or 0  # with None the call does not come here, see aimc.ops.attention
        self.tokens = torch.cat([torch.arange(first, behind, device=heads.device) for first, behind in ranges])
        raw = [source[:, :, first:behind] for first, behind in ranges]
        self.raw = raw[0] if len(raw) == 1 else torch.cat(raw, dim=2)  # [B, H_kv, S, D]
        self.u = stored_v(heads, scaled(self.raw, self.affine), array, self.tokens) - heads.cell.offset_v
        self.gain, self.offset_v = heads.mismatch(array, self.tokens)
        rates = heads.leak_rates(array, self.tokens)
        self.rates = None if rates is None else heads.for_query_heads(rates, dim=0)  # [H, S, D]
        self.column_gain, self.column_offset = self._column_errors(heads, array)
        self.scale: Tensor | float = 1.0  # of a cell's charge, beyond the cell itself
        if (
            array == ArrayId.AV
        ):  # a column of the second array is a feature of every cell in it, so its gain is folded into the cells
            self.scale = (1.0 if self.column_gain is None else 1.0 + self.column_gain) / hardware.array.saturation_av
            self.column_gain = None
        operands = cell_operands(self.u, heads.cell, gain=self.gain, offset_v=self.offset_v)
        leaks = heads.decay_per_token > 0
        self.operands = [self._per_head(heads, operand) for operand in (operands if leaks else [summed(operands)])]
        self.gradients: dict[int, list[Tensor]] = {j: [] for j in (powers_with_gradient(heads.cell) if leaks else [0])}

    def _column_errors(self, heads: Heads, array: ArrayId) -> tuple[Tensor | None, Tensor | None]:
        """Per token: `[H, 1, S]` for the first array, `[H, S, D]` for the second; None: none."""
        if array == ArrayId.QK:
            return heads.column_errors_qk(self.tokens)
        sizes = heads.hardware.array
        of_tiles = heads.column_errors_av(torch.arange(sizes.n_tiles, device=heads.device))
        at = self.tokens % sizes.window // sizes.rows
        gain, offset = (None if of_tile is None else of_tile.index_select(1, at) for of_tile in of_tiles)
        return gain, offset

    def _per_head(self, heads: Heads, operand: Tensor | float) -> Tensor | None:
        """`[B·H, S or 1, D]` from an operand of all K/V heads."""
        if isinstance(operand, float):
            if operand == 0.0:
                return None
            operand = self.u.new_full((1, 1, heads.head_size), operand)
        else:
            operand = heads.for_query_heads(operand, dim=-3)
        operand = operand * self.scale
        return operand.expand(heads.n_batch, heads.n_heads, *operand.shape[-2:]).flatten(0, 1)

    def cells(self, read: Read, at: int) -> Cells:
        """Those that one read, or a part of it, meets; their tokens begin at the index `at`."""
        part = slice(at, at + read.n_tokens)
        operands = [o if o is None or o.shape[1] == 1 else o[:, part] for o in self.operands]
        offset = self.column_offset
        if offset is not None:  # one per token in the first array; the same for all tokens of a sub-tile in the second
            offset = offset[..., part] if self.array == ArrayId.QK else offset[:, at : at + 1]
        gain = None if self.column_gain is None else self.column_gain[..., part]
        tokens = self.tokens[part]
        cells = Cells(
            operands=operands,
            tokens=tokens,
            column_gain=gain,
            column_offset=offset,
            gradients=self.gradients,
            continued=read.continued,
        )
        if self.rates is not None:
            cells.leak(self.rates[:, part], nodes(read.start, read.stop, self.n_nodes, self.u.device, self.u.dtype))
        return cells
