"""Both arrays for one run of queries, forward and back: matrix products of what queries put on and what cells hold.

P = B·H_kv arrays are read by G·T' rows each, the queries of the heads that share them.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from aimc.ops import compiled
from aimc.ops.blocked.activation import Columns, activation_of, inside
from aimc.ops.blocked.digital import DigitalRead
from aimc.ops.blocked.runs import Run
from aimc.ops.blocked.stored import Cells, Stored
from aimc.ops.call import Call
from aimc.ops.effects.converters import adc_
from aimc.ops.effects.noise import ArrayId
from aimc.ops.effects.normaliser import charge_of_sum, least_divisor
from aimc.ops.effects.protection import protected_tokens
from aimc.ops.effects.random import Lanes


class PulseRead(NamedTuple):
    """What the counters of the normaliser columns are given, and what they say."""

    charge: Tensor
    """In full scales, `[B, H, T', J]`."""
    total: Tensor
    """Σφ of all sub-tiles and of the digital memory, `[B, H, T', 1]`."""


class Reader:
    """The arrays of a call as its runs read them.

    Args:
        call: its tokens.
    """

    def __init__(self, call: Call) -> None:
        self.call, self.heads = call, call.heads
        self.activation = activation_of(call)
        self.n_arrays = self.heads.n_batch * self.heads.n_kv_heads
        full_scale = call.scaling.full_scale_av
        self.factor = None if full_scale is None else full_scale.detach().to(self.heads.dtype)  # A_sat of a head, [H]
        self._buffers: dict[str, Tensor] = {}
        self.features = torch.arange(self.heads.head_size, device=self.heads.device)

    @functools.cached_property
    def noise_qk(self) -> Lanes | None:
        """Of the first array, `[2, B, H, T, 1]`; None: none."""
        return self._lanes(ArrayId.QK)

    @functools.cached_property
    def noise_av(self) -> Lanes | None:
        """Of the second, likewise."""
        return self._lanes(ArrayId.AV)

    def _lanes(self, array: ArrayId) -> Lanes | None:
        return self.heads.read_lanes(array, torch.arange(self.heads.n_tokens, device=self.heads.device))

    @functools.cached_property
    def full_scale_of_sum(self) -> Tensor | float:
        """Pulses that fill the counters of the normaliser columns, a number or `[H, 1, 1]`."""
        return self.heads.full_scale_of_sum(self.call.scaling)

    @property
    def resting_output(self) -> float:
        """What a pulse draws from a resting cell, in units of `array.saturation_av`."""
        return self.heads.cell.coefficients[0] / self.heads.hardware.array.saturation_av

    def columns(self, run: Run, digital: DigitalRead | None, relative_pulses: Tensor) -> Columns:
        """What is known of the columns that a run reads, with pulses `[B, H, T', D]` over S_sat."""
        heads, scaling = self.heads, self.call.scaling
        corrections = None
        if heads.corrects:
            tokens = run.tokens
            at = tokens.clamp(max=heads.n_tokens - 1)
            of_columns = [
                None if x is None else x[..., at].to(heads.dtype) for x in (scaling.key_norm, scaling.value_norm)
            ]
            norms = (of_columns[0], of_columns[1])
            corrections = heads.corrections([run.rows], [tokens], [norms], relative_pulses)
        return Columns(run.n_columns, functools.partial(self.hide, run, digital), corrections)

    def left(self, pulses: Tensor, keys: Stored, cells: Cells) -> Tensor:
        """What meets the first array, `[P, G·T', n·D + e]`, of relative pulses `[P, G, T', D]`."""
        weights, extra = cells.weights, keys.n_extra
        if weights is None and not extra:
            return pulses.flatten(1, 2)
        n_terms, size = 1 if weights is None else weights.shape[1], pulses.shape[-1]
        left = self._buffer("left", *pulses.shape[:3], n_terms * size + extra)
        for i in range(n_terms):
            columns = left[..., i * size : (i + 1) * size]
            columns.copy_(pulses) if weights is None else torch.mul(pulses, weights[:, i, None], out=columns)
        at = n_terms * size
        left[..., at:] = 0.0
        if keys.has_constant_column:
            torch.sum(pulses, dim=-1, out=left[..., at])
        if keys.has_offset_column:
            left[..., at + keys.has_constant_column] = 1.0
        return left.flatten(1, 2)

    def charges(
        self, run: Run, left: Tensor, cells: Cells, digital: DigitalRead | None, digital_pulses: Tensor | None
    ) -> Tensor:
        """Charge of the first array in full scales, with column errors and read noise, and behind its columns that of
        the digital memory: `[B, H, T', S]`."""
        heads, n_rows = self.heads, run.stop - run.start
        n_digital = 0 if digital is None else len(digital.at)
        charge = self._buffer("charge", self.n_arrays, left.shape[1], run.n_columns + n_digital)
        at = 0
        for block in cells.blocks:
            columns = charge[..., at : at + block.matrix.shape[1]]
            torch.bmm(left, block.matrix.mT, out=columns)
            at += block.matrix.shape[1]
        if digital is not None and digital_pulses is not None:
            torch.bmm(digital_pulses, digital.keys.mT, out=charge[..., at:])
        by_head = charge.view(heads.n_batch, heads.n_heads, n_rows, -1)
        if self.noise_qk is not None:
            lanes = Lanes(self.noise_qk.state[..., run.start : run.stop, :])
            lanes.add_normal_(by_head[..., : run.n_columns], heads.hardware.noise.read_qk, run.tokens)
        return by_head

    def hide(self, run: Run, digital: DigitalRead | None, x: Tensor, number: float) -> None:
        """Put a number where a key is not visible, in a buffer `[B, H, T', S]` of a run."""
        heads, padding = self.heads, self.call.key_padding
        x[..., run.partly].masked_fill_(run.unseen, number)
        if padding is None and digital is None:
            return
        tokens = run.tokens.clamp(max=heads.n_tokens - 1)
        if padding is not None:
            x[..., : run.n_columns].masked_fill_(padding[:, None, None, tokens], number)
        if digital is None:
            return
        if heads.hardware.protection.is_on:
            protected = protected_tokens(run.rows, tokens, digital.sink[:, tokens], heads.hardware.protection)
            x[..., : run.n_columns].masked_fill_(protected, number)
        x[..., run.n_columns :].masked_fill_(~digital.protected, number)

    def counts(self, run: Run, widths: Tensor, values: Stored, cells: Cells) -> Tensor:
        """Charge of each sub-tile in full scales before its counter, `[P, J, G·T', D]`, from widths `[P, G·T', S]`."""
        heads, n_rows = self.heads, run.stop - run.start
        n_tiles = run.n_line // heads.hardware.array.rows
        counts = self._buffer("counts", self.n_arrays, n_tiles, widths.shape[1], heads.head_size)
        factors = self._row_factors(cells, n_rows)
        for block, of_block, phi in self._by_tile(run, cells, widths):
            total = counts if block is cells.blocks[0] else counts.new_empty(*phi.shape[:3], heads.head_size)
            constant = None
            if values.constant:
                constant = phi.sum(dim=-1, keepdim=True).mul_(values.constant)
                constant = constant if self.factor is None else constant.div_(self._of_heads(n_rows))
            # Array by array: views need not be copied, and the terms stay in the cache.
            for i, into in enumerate(total):
                if factors is None:
                    torch.bmm(phi[i], of_block[i], out=into)
                    continue
                terms = torch.bmm(phi[i], of_block[i], out=self._buffer("terms", *phi.shape[1:3], of_block.shape[-1]))
                _weighted_sum(terms, factors[i % len(factors)], None if constant is None else constant[i], into)
            if factors is None and constant is not None:
                total += constant
            if total is not counts:
                counts[:, n_tiles - total.shape[1] :] += total
        if values.column_offset is not None:
            first = (run.first - values.span.first) // heads.hardware.array.rows
            offset = values.column_offset[:, first : first + n_tiles, None]  # [H_kv, J, 1, D]
            counts.view(heads.n_batch, heads.n_kv_heads, *counts.shape[1:]).add_(offset)
        if self.noise_av is not None:
            groups, tiles = (heads.n_kv_heads, heads.group), self._tile_numbers(run)
            by_tile = counts.view(heads.n_batch, heads.n_kv_heads, n_tiles, heads.group, n_rows, -1).movedim(2, 0)
            lanes = Lanes(self.noise_av.state[..., run.start : run.stop, :].unflatten(2, groups))
            lanes = lanes.absorbing(tiles[:, None, None, None, None, None])
            lanes.add_normal_(by_tile, heads.hardware.noise.read_av, self.features)
        return counts

    def total(self, run: Run, counts: Tensor) -> Tensor:
        """Through the counters, which are overwritten, and added up: `[P, G·T', D]` in units of
        `array.saturation_av`."""
        adc_(counts, self.heads.hardware.readout)
        self._clear_unused(run, counts)
        total = counts.sum(dim=1)
        return total if self.factor is None else total.mul_(self._of_heads(run.stop - run.start)[:, 0])

    def pulse(self, run: Run, widths: Tensor) -> PulseRead:
        """What the normaliser columns read of the widths `[P, G·T', S]`."""
        heads, normaliser = self.heads, self.heads.hardware.normaliser
        line, *oldest = self._tiles_of(run, widths)
        sums = line.sum(dim=-1)  # [B, H, T', J]
        for of_last in oldest:
            sums[..., -of_last.shape[-2] :] += of_last.sum(dim=-1)
        charge = charge_of_sum(heads, sums, self.full_scale_of_sum, run.rows, self._tile_numbers(run))
        counted = adc_(charge.clone(), normaliser.counter)
        self._clear_unused(run, self._as_counts(counted))
        total = counted.sum(dim=-1, keepdim=True).mul_(self.full_scale_of_sum)
        if widths.shape[-1] > run.n_columns:
            total += widths[..., run.n_columns :].sum(dim=-1).view_as(total)
        return PulseRead(charge, total)

    def back_through_pulse(self, run: Run, pulse: PulseRead, of_normaliser: Tensor, out: Tensor) -> None:
        """Add what the normaliser's gradient `[B, H, T', 1]` says of the widths to their gradient `[P, G·T', S]`."""
        normaliser = self.heads.hardware.normaliser
        divides = pulse.total >= least_divisor(normaliser, self.full_scale_of_sum)
        of_total = (-of_normaliser / pulse.total.square()).masked_fill_(~divides, 0.0)
        grad = inside(pulse.charge, normaliser.counter.v_min, normaliser.counter.v_max).mul_(of_total)
        self._clear_unused(run, self._as_counts(grad))
        gain, _ = self.heads.column_errors_of_sum(self._tile_numbers(run))
        if gain is not None:
            grad.mul_(1.0 + gain.mT)
        for of_widths in self._tiles_of(run, out):
            of_widths += grad[..., -of_widths.shape[-2] :, None]
        if out.shape[-1] > run.n_columns:
            out[..., run.n_columns :] += of_total.view(*out.shape[:2], 1)

    def _tiles_of(self, run: Run, x: Tensor) -> list[Tensor]:
        """The columns of `[P, G·T', S]` as `[B, H, T', J, R]`: those of the line, and the oldest where there are any,
        which are in the last sub-tiles of the line."""
        by_head = x.view(self.heads.n_batch, self.heads.n_heads, run.stop - run.start, -1)
        parts = by_head[..., : run.n_line], by_head[..., run.n_line : run.n_columns]
        return [part.unflatten(-1, (-1, self.heads.hardware.array.rows)) for part in parts if part.shape[-1]]

    def _as_counts(self, x: Tensor) -> Tensor:
        """`[B, H, T', J]` seen as the counts of one feature, `[P, J, G·T', 1]`."""
        return x.view(self.n_arrays, -1, x.shape[-1]).mT[..., None]

    def _tile_numbers(self, run: Run) -> Tensor:
        """Those of the sub-tiles of a run's line, `[J]`."""
        array = self.heads.hardware.array
        return run.tokens[: run.n_line : array.rows] % array.window // array.rows

    def back_through_counters(self, run: Run, counts: Tensor, of_total: Tensor) -> Tensor:
        """From the gradient of :meth:`total` to that of :meth:`counts`, straight through inside the counters' range."""
        readout = self.heads.hardware.readout
        if self.factor is not None:
            of_total = of_total * self._of_heads(run.stop - run.start)[:, 0]
        grad = inside(counts, readout.v_min, readout.v_max).mul_(of_total[:, None])
        self._clear_unused(run, grad)
        return grad

    def back_through_second(
        self, run: Run, of_counts: Tensor, widths: Tensor, values: Stored, cells: Cells, out: Tensor
    ) -> None:
        """The gradient of the widths `[P, G·T', S]` into `out`, that of the values into `values`."""
        n_rows, size = run.stop - run.start, self.heads.head_size
        factors, grads = self._row_factors(cells, n_rows), of_counts
        if factors is not None:
            grads = self._buffer("grads", *of_counts.shape[:3], factors.shape[-1] * size)
            for i, factor in enumerate(factors[:, None].unbind(dim=-1)):
                torch.mul(of_counts, factor[..., None], out=grads[..., i * size : (i + 1) * size])
        into = [of_width for *_, of_width in self._by_tile(run, cells, out)]
        for (block, of_block, phi), of_phi in zip(self._by_tile(run, cells, widths), into, strict=True):
            n_tiles = phi.shape[1]
            upstream = grads[:, -n_tiles:].flatten(0, 1)
            of_phi.copy_(torch.bmm(upstream, of_block.flatten(0, 1).mT).view(phi.shape))
            if values.constant:
                of_sum = of_counts[:, -n_tiles:].sum(dim=-1, keepdim=True) * values.constant
                of_phi += of_sum if self.factor is None else of_sum / self._of_heads(n_rows)
            values.gather(block, phi.flatten(0, 1).mT, upstream)

    def back_through_first(self, of_charge: Tensor, left: Tensor, keys: Stored, cells: Cells) -> Tensor:
        """From the gradient of the columns' charge `[P, G·T', S]` to that of the relative pulses `[P, G·T', D]`, and of
        the keys into `keys`."""
        size, at, of_left = self.heads.head_size, 0, left.new_zeros(left.shape)
        n_terms = 1 if cells.weights is None else cells.weights.shape[1]
        for block in cells.blocks:
            of_block = of_charge[..., at : at + block.matrix.shape[1]]
            of_left.baddbmm_(of_block, block.matrix)
            keys.gather(block, of_block.mT, left[..., : n_terms * size])
            at += block.matrix.shape[1]
        if cells.weights is None:
            of_pulses = of_left[..., :size]
        else:
            weights = cells.weights.repeat(self.heads.group, 1)  # [G·T', n]
            of_terms = of_left[..., : n_terms * size].unflatten(-1, (n_terms, size))
            of_pulses = (of_terms * weights[..., None]).sum(dim=-2)
        return of_pulses + of_left[..., n_terms * size, None] if keys.has_constant_column else of_pulses

    def _by_tile(self, run: Run, cells: Cells, x: Tensor) -> list:
        """Per block: it, its matrix `[P, J, R, n·D]`, and its columns of `[P, G·T', S]` as `[P, J, G·T', R]`."""
        n_rows, at, found = self.heads.hardware.array.rows, 0, []
        for block in cells.blocks:
            n = block.matrix.shape[1]
            tiles = (n // n_rows, n_rows)
            columns = x[..., at : at + n].unflatten(-1, tiles).transpose(1, 2)
            found.append((block, block.matrix.unflatten(1, tiles), columns))
            at += n
        return found

    def _row_factors(self, cells: Cells, n_rows: int) -> Tensor | None:
        """What each term of the second array counts for a row, over the full scale of its head: `[P or 1, G·T', n]`;
        None: one term, and it counts one."""
        if cells.factors is None and not (cells.weights is None and self.factor is None):
            of_rows = 1.0 if self.factor is None else self._of_heads(n_rows)[:, 0].reciprocal()  # [P, G·T', 1]
            weights = 1.0 if cells.weights is None else cells.weights.repeat(self.heads.group, 1)[None]
            cells.factors = torch.as_tensor(of_rows * weights)
        return cells.factors

    def _of_heads(self, n_rows: int) -> Tensor:
        """A_sat of each row's head over the hardware's, `[P, 1, G·T', 1]`."""
        assert self.factor is not None  # the caller's condition
        of_rows = self.factor.view(self.heads.n_kv_heads, self.heads.group).repeat_interleave(n_rows, dim=1)
        return of_rows.repeat(self.heads.n_batch, 1)[:, None, :, None]

    def _clear_unused(self, run: Run, counts: Tensor) -> None:
        """A sub-tile is not read before anything was written to it."""
        rows = self.heads.hardware.array.rows
        if run.oldest is not None:
            return
        by_row = counts.unflatten(2, (self.heads.group, run.stop - run.start))
        for number in range(run.own + rows, run.behind, rows):
            by_row[:, (number - run.first) // rows, :, : number - run.start] = 0.0

    def _buffer(self, name: str, *shape: int) -> Tensor:
        """The named buffer with what was left in it."""
        size = 1
        for n in shape:
            size *= n
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=self.heads.dtype, device=self.heads.device)
        return buffer[:size].view(shape)


def _weighted_sum(terms: Tensor, factors: Tensor, constant: Tensor | None, out: Tensor) -> None:
    """Terms `[J, M, n·D]`, each times its factor of the row `[M, n]`, and a constant of the row `[J, M, 1]`, added up
    into `[J, M, D]`."""
    if (kernels := compiled.kernels_for(out)) is not None:
        kernels.weighted_sum(terms, factors, constant, out)
        return
    of_rows = factors[..., None].unbind(dim=1)
    parts = terms.split(out.shape[-1], dim=-1)
    torch.mul(parts[0], of_rows[0], out=out)
    for part, factor in zip(parts[1:], of_rows[1:], strict=True):
        out.addcmul_(part, factor)
    if constant is not None:
        out += constant
