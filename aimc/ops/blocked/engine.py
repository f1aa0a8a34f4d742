"""Gain-cell attention in blocks, with its backward pass by hand: memory grows with the tokens, not with their square.

The walk is that of the eager operator, cut into short runs of queries: keys come one sub-tile at a time, charges,
pulses and counts of one such read live in a few work buffers that stay in the cache, and the backward pass computes
them again instead of keeping them. The scores above the diagonal and outside the window are never computed.

Where retention is spread from cell to cell (`noise.tau_spread`) a decay does not factor into query and key. Then cells
are read at a few moments of every R queries, with a bound of the error that is below float32's rounding; see
:mod:`aimc.ops.blocked.interpolation`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aimc.ops.blocked.reads import Read, groups, reads
from aimc.ops.blocked.stored import Cells, Stored
from aimc.ops.call import Call
from aimc.ops.effects.cell import powers_with_gradient, stored_gradient
from aimc.ops.effects.converters import adc_, dac
from aimc.ops.effects.noise import ArrayId
from aimc.ops.ring import visible
from aimc.ops.scaling import converter_gradient, scaled

WORK_BUFFER_BYTES = 4 * 2**20
"""Aimed size of one work buffer, a run of queries against one sub-tile: larger ones leave the cache, smaller ones cost
more calls."""
SPAN = 512
"""Tokens that are prepared together."""


def forward(call: Call) -> Tensor:
    """Digital sums `[B, T, H, D]` in the dtype of the query."""
    heads, array = call.heads, call.heads.hardware.array
    longest = array.rows if heads.leaks_apart else None
    out = call.query.new_empty(heads.n_batch, heads.n_tokens, heads.n_heads, heads.head_size)
    work = _Work(call)
    for start, stop in _runs(call):
        pulses = _pulses(call, start, stop)  # [B·H, T', D]
        total = torch.zeros_like(pulses)
        for tokens, neighbours in groups(reads(start, stop, heads.n_tokens, array), SPAN, longest):
            keys, values = Stored(call, ArrayId.QK, tokens), Stored(call, ArrayId.AV, tokens)
            for read, at in neighbours:
                queries = slice(read.start - start, read.stop - start)
                _, phi = work.first_array(read, pulses[:, queries], keys.cells(read, at))
                counts = work.second_array(read, phi, values.cells(read, at))
                total[:, queries] += adc_(counts, heads.hardware.readout)
        total = total.view(heads.n_batch, heads.n_heads, stop - start, heads.head_size)
        if call.key_padding is not None:
            total.masked_fill_(call.key_padding[:, None, start:stop, None], 0.0)
        out[:, start:stop] = total.transpose(1, 2)
    return out


def backward(call: Call, grad: Tensor) -> list[Tensor]:
    """Gradients of query, key and value in their dtypes, then of their scalers `[2, H]`, from that of the sums `[B, H,
    T, D]`."""
    heads, array = call.heads, call.heads.hardware.array
    longest = array.rows if heads.leaks_apart else None
    work = _Work(call)
    d_query = call.query.new_empty(heads.n_batch, heads.n_tokens, heads.n_heads, heads.head_size).transpose(1, 2)
    d_query_affine = grad.new_zeros(2, heads.n_heads, dtype=heads.dtype)
    d_key, d_value = _Gradient(call), _Gradient(call)
    for start, stop in _runs(call):
        pulses = _pulses(call, start, stop)
        upstream = grad[:, :, start:stop].to(heads.dtype)
        if call.key_padding is not None:
            upstream = upstream.masked_fill(call.key_padding[:, None, start:stop, None], 0.0)
        upstream = upstream.reshape(pulses.shape)
        d_pulses = torch.zeros_like(pulses)
        for tokens, neighbours in groups(reads(start, stop, heads.n_tokens, array), SPAN, longest):
            keys, values = Stored(call, ArrayId.QK, tokens), Stored(call, ArrayId.AV, tokens)
            for read, at in neighbours:
                queries = slice(read.start - start, read.stop - start)
                of_keys, of_values = keys.cells(read, at), values.cells(read, at)
                charge, phi = work.first_array(read, pulses[:, queries], of_keys)
                counts = work.second_array(read, phi, of_values)
                d_counts = work.clip_gradient(counts, upstream[:, queries])
                work.back_to_cells(of_values, work.phi(charge), d_counts)
                d_charge = work.back_through_second(d_counts, of_values).mul_(charge.eq_(work.phi(charge)))
                if of_keys.column_gain is not None:
                    d_charge.view(heads.n_batch, heads.n_heads, *d_charge.shape[1:]).mul_(1.0 + of_keys.column_gain)
                work.back_to_cells(of_keys, d_charge, pulses[:, queries], d_pulses[:, queries])
            d_key.add(keys)
            d_value.add(values)
        d_pulses = d_pulses.div_(array.saturation_qk).view(heads.n_batch, heads.n_heads, stop - start, heads.head_size)
        of_query = call.query[:, :, start:stop], call.scaling.query, heads.hardware.input_dac
        d_query[:, :, start:stop], of_scaler = converter_gradient(d_pulses, *of_query)
        d_query_affine += of_scaler
    d_inputs = [d_query, d_key.of_input.to(call.key.dtype), d_value.of_input.to(call.value.dtype)]
    return [*d_inputs, d_query_affine, d_key.of_scaler, d_value.of_scaler]


def _pulses(call: Call, start: int, stop: int) -> Tensor:
    """Pulses of a run of queries per charge that saturates the first array, `q̂ / S_sat`, `[B·H, T', D]`."""
    query = dac(scaled(call.query[:, :, start:stop], call.scaling.query), call.heads.hardware.input_dac)
    return query.reshape(-1, stop - start, call.heads.head_size).div(call.heads.hardware.array.saturation_qk)


def _runs(call: Call) -> Iterator[tuple[int, int]]:
    """Runs of queries, whole sub-tiles each, whose work buffers have the aimed size."""
    heads, rows = call.heads, call.heads.hardware.array.rows
    of_one_query = heads.n_batch * heads.n_heads * max(rows, heads.head_size) * heads.dtype.itemsize
    length = max(WORK_BUFFER_BYTES // of_one_query // rows, 1) * rows
    for start in range(0, heads.n_tokens, length):
        yield start, min(start + length, heads.n_tokens)


class _Work:
    """The work buffers of one call and the two arrays computed in them, for `[B·H, …]` and one read at a time."""

    def __init__(self, call: Call) -> None:
        self.heads = call.heads
        self.key_padding = call.key_padding
        self._buffers: dict[str, Tensor] = {}
        self._rows = torch.empty(0, dtype=torch.int64)  # queries and decay of the read at hand, set by the first array
        self._decay: Tensor | float = 1.0

    def first_array(self, read: Read, pulses: Tensor, keys: Cells) -> tuple[Tensor, Tensor]:
        """`S / S_sat` with −1 where a key is not visible, and φ: `[B·H, T', S]` each."""
        heads = self.heads
        rows = self._rows = torch.arange(read.start, read.stop, device=heads.device)
        decay = heads.decay(rows, keys.tokens) if keys.nodes is None else None
        self._decay = 1.0 if decay is None else decay  # [T', S]
        charge = self._charge("charge", keys.expand(pulses), keys.operands, n_cells=len(keys.tokens))
        by_head = charge.view(heads.n_batch, heads.n_heads, *charge.shape[1:])
        if keys.column_gain is not None:
            by_head.mul_(1.0 + keys.column_gain)
        if keys.column_offset is not None:
            by_head.add_(keys.column_offset)
        noise = heads.read_noise_qk(rows, keys.tokens)
        if noise is not None:
            by_head.add_(noise)
        if read.n_masked:
            seen = visible(rows[: read.n_masked], keys.tokens, heads.hardware.array.window)
            charge[:, : read.n_masked].masked_fill_(~seen, -1.0)
        if self.key_padding is not None:
            by_head.masked_fill_(self.key_padding[:, None, None, keys.tokens], -1.0)
        return charge, self.phi(charge)

    def phi(self, charge: Tensor) -> Tensor:
        """The charge-to-pulse circuit, `clip(S / S_sat, 0, 1)`, into its buffer."""
        return torch.clamp(charge, 0.0, 1.0, out=self._buffer("phi", *charge.shape[1:]))

    def second_array(self, read: Read, phi: Tensor, values: Cells) -> Tensor:
        """Charge of the sub-tile in full scales before its counter, `[B·H, T', D]`; `phi` is used up."""
        heads = self.heads
        counts = self._buffer("counts", phi.shape[1], next(o.shape[-1] for o in values.operands if o is not None))
        started, common = False, None
        for j, operand in enumerate(values.operands):
            width = phi.mul_(self._decay) if j > 0 else phi  # φ·r^j
            if operand is None:
                continue
            if _is_row(operand, width.shape[-1]):
                common = width.sum(dim=-1, keepdim=True) * operand
            else:
                _multiply(counts, width, operand, add=started)
                started = True
        if common is not None:
            counts.add_(common)
        counts = values.collapse(counts)
        by_head = counts.view(heads.n_batch, heads.n_heads, *counts.shape[1:])
        if values.column_offset is not None:
            by_head.add_(values.column_offset)
        noise = heads.read_noise_av(self._rows, read.tile)
        return counts if noise is None else by_head.add_(noise).flatten(0, 1)

    def clip_gradient(self, counts: Tensor, upstream: Tensor) -> Tensor:
        """Gradient of the counters' input, `[B·H, T', D]`: straight through inside their range; `counts` is used up."""
        readout, buffer = self.heads.hardware.readout, self._buffer("d_counts", *counts.shape[1:])
        inside = counts.eq_(torch.clamp(counts, readout.v_min, readout.v_max, out=buffer))  # 1 or 0
        return torch.mul(upstream, inside, out=buffer)

    def back_through_second(self, d_counts: Tensor, values: Cells) -> Tensor:
        """From the gradient of the sub-tile's charge to that of φ, `[B·H, T', S]`."""
        return self._charge("d_charge", values.expand(d_counts), values.operands, n_cells=len(values.tokens))

    def back_to_cells(self, cells: Cells, rows: Tensor, columns: Tensor, d_pulses: Tensor | None = None) -> None:
        """Gather, per power j, the gradient `(rows·r^j)ᵀ·columns` of the operand.

        Args:
            cells: that `rows` and `columns` meet at.
            rows: pulses or gradients on the bit lines, `[B·H, T', S]`; used up.
            columns: gradients or pulses on the features, `[B·H, T', D]`.
            d_pulses: `[B·H, T', D]`; what comes back to the pulses is added to it.
        """
        columns = cells.expand(columns)
        for j, operand in enumerate(cells.operands):
            share = rows.mul_(self._decay) if j > 0 else rows  # times r^j
            if cells.has_gradient(j):
                cells.gather(j, torch.bmm(share.mT, columns))
            if d_pulses is None or operand is None:
                continue
            if _is_row(operand, share.shape[-1]):
                d_pulses.add_(share.sum(dim=-1, keepdim=True) * operand)
            elif cells.nodes is not None:
                d_pulses.add_(cells.collapse(torch.bmm(share, operand)))
            else:
                d_pulses.baddbmm_(share, operand)

    def _charge(self, name: str, left: Tensor, operands: list[Tensor | None], n_cells: int) -> Tensor:
        """`Σ_j r^j·(left·operand_jᵀ)` by Horner's rule in the decay: no powers of it to keep."""
        charge = self._buffer(name, left.shape[1], n_cells)
        started = False
        for operand in reversed(operands):
            if started:
                charge.mul_(self._decay)
            if operand is None:
                continue
            if _is_row(operand, n_cells):
                charge.add_((left * operand).sum(dim=-1, keepdim=True))
            else:
                _multiply(charge, left, operand.mT, add=started)
                started = True
        return charge

    def _buffer(self, name: str, n_rows: int, n_columns: int) -> Tensor:
        """`[B·H, n_rows, n_columns]` of the named buffer, with what was left in it."""
        n_heads = self.heads.n_batch * self.heads.n_heads
        size = n_heads * n_rows * n_columns
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=self.heads.dtype, device=self.heads.device)
        return buffer[:size].view(n_heads, n_rows, n_columns)


def _is_row(operand: Tensor, n_cells: int) -> bool:
    """Whether one row stands for all cells; then a sum does for a matrix product."""
    return operand.shape[1] == 1 != n_cells


def _multiply(out: Tensor, left: Tensor, right: Tensor, *, add: bool) -> None:
    if add:
        out.baddbmm_(left, right)
    else:
        torch.bmm(left, right, out=out)


class _Gradient:
    """Gradient of keys or values, gathered from all reads."""

    def __init__(self, call: Call) -> None:
        self.heads = call.heads
        shape = (self.heads.n_batch, self.heads.n_tokens, self.heads.n_kv_heads, self.heads.head_size)
        self.of_input = call.key.new_zeros(shape, dtype=self.heads.dtype).transpose(1, 2)
        self.of_scaler = self.of_input.new_zeros(2, self.heads.n_kv_heads)

    def add(self, stored: Stored) -> None:
        """Take what was gathered at the operands back through cell, converter and scaler."""
        heads, cell = self.heads, self.heads.cell
        of_cells = {j: self._of_cells(torch.cat(grads, dim=1), stored.scale) for j, grads in stored.gradients.items()}
        if 0 in of_cells:  # without leakage one operand is the sum of all
            of_cells = dict.fromkeys(powers_with_gradient(cell), of_cells[0])
        of_u = stored_gradient(of_cells, stored.u, cell, gain=stored.gain, offset_v=stored.offset_v)
        of_raw, of_scaler = converter_gradient(of_u, stored.raw, stored.affine, heads.hardware.storage_dac)
        self.of_scaler += of_scaler
        sizes = [behind - first for first, behind in stored.ranges]
        for (first, behind), part in zip(stored.ranges, of_raw.split(sizes, dim=2), strict=True):
            self.of_input[:, :, first:behind] += part

    def _of_cells(self, grad: Tensor, scale: Tensor | float) -> Tensor:
        """`[B·H, S, D]` for query heads → `[B, H_kv, S, D]` for the cells that a group shares."""
        heads = self.heads
        grad = grad.view(heads.n_batch, heads.n_heads, *grad.shape[1:]) * scale
        return grad if heads.group == 1 else grad.unflatten(1, (heads.n_kv_heads, heads.group)).sum(dim=2)
