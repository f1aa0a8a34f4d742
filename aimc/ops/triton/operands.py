"""What the kernels of the arrays are given, and the way back from their gradients: launches of
:mod:`aimc.ops.triton.writes`."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from aimc.ops.effects.noise import ArrayId
from aimc.ops.frozen import KernelTables
from aimc.ops.heads import Heads
from aimc.ops.scaling import Affine
from aimc.ops.triton.alignment import aligned
from aimc.ops.triton.plan import CellKind, Plan
from aimc.ops.triton.spec import Source, Written
from aimc.ops.triton.translation import span


class Given:
    """Keys or values `[B, H_kv, T, D]`, or queries, in front of their scaler and converter."""

    def __init__(self, x: Tensor, affine: Affine | None) -> None:
        self.x = aligned(x if x.stride(-1) == 1 else x.contiguous())
        self.affine = None if affine is None else Affine(*(plain(a) for a in affine))

    def source(self) -> Source:
        """For a kernel."""
        (of_batch, of_head, of_token, _), (n_batch, n_heads, n_tokens, _) = self.x.stride(), self.x.shape
        scale, offset = self.affine or (None, None)
        return Source(self.x, of_batch, of_head, of_token, n_batch, n_heads, n_tokens, scale, offset)

    def gradient(self) -> Tensor:
        """Room for the gradient of x, `[B, T, H, D]` in its dtype."""
        batch, heads, tokens, size = self.x.shape
        return torch.empty(batch, tokens, heads, size, dtype=self.x.dtype, device=self.x.device)


class Cells(NamedTuple):
    """The cells of one array, and what is written to them."""

    given: Given
    kind: CellKind
    written: Written

    @classmethod
    def of(cls, array: ArrayId, given: Given, heads: Heads, tables: KernelTables, plan: Plan, draws: Tensor) -> Cells:
        """Those of a call; `draws` are of its write noise."""
        kind, cell, table = plan.cells[array], heads.cell, tables.coefficients[array]
        if table is None:
            table = numbers(tuple(cell.coefficients), heads.device)
        written = Written(
            table,
            table.stride(0),
            heads.decay_per_token,
            tables.leak_rates[array],
            plan.half_length,
            heads.hardware.noise.write_v,
            cell.surrogate_slope,
            draws,
            heads.layer,
        )
        return cls(given, kind, written)


class Before(NamedTuple):
    """What stands in front of the arrays."""

    plan: Plan
    query: Given
    full_scale: Tensor
    """Of the first array of each head, `[H]`."""
    keys: Cells
    values: Cells


class Operands(NamedTuple):
    """What the kernels of the arrays multiply, in the dtype of their products."""

    pulses: Tensor
    """Pulse widths over the full scale of the first array, `[B, H, T, D]`."""
    keys: Tensor
    """What the powers of the queries' decay multiply, `[P, B, H_kv, T, D]`: powers from the first present one to the
    last, those between that are absent left unwritten."""
    values: Tensor


def operands_of(before: Before) -> Operands:
    """Of one call."""
    from aimc.ops.triton.writes import write_kernel

    plan, query, full_scale, *cells = before
    dtype, device = plan.dtype, plan.device
    pulses = torch.empty(query.x.shape, dtype=dtype, device=device)
    stacks = [torch.empty(span(of.kind.powers.present), *of.given.x.shape, dtype=dtype, device=device) for of in cells]
    if pulses.numel():
        each = [(of.given.source(), of.written, stack) for of, stack in zip(cells, stacks, strict=True)]
        specs = plan.pulses, *(of.kind.present for of in cells)
        args = query.source(), full_scale, pulses, *itertools.chain(*each)
        plan.launch(write_kernel, plan.grid, *args, *specs)
    return Operands(pulses, *stacks)


def gradients_of_given(before: Before, grads: tuple[Tensor, Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """From the gradients of the pulses and of the graded operands of both arrays, laid out as :class:`Operands`, to
    those of query, key and value, `[B, H, T, D]`, and of their scalers, `[2, H]`."""
    from aimc.ops.triton.writes import gradient_at_converters

    plan, query, full_scale, keys, values = before
    all_given = query, keys.given, values.given
    rooms = [given.gradient() for given in all_given]
    n_blocks, n_heads, n_batch = plan.grid
    room = torch.zeros if any(given.affine is None for given in all_given) else torch.empty
    sums = room(2, n_batch, n_heads, n_blocks, dtype=torch.float32, device=plan.device)
    if query.x.numel():
        how = full_scale, keys.written, values.written
        each = [(of.source(), *rest) for of, *rest in zip(all_given, how, grads, rooms, strict=True)]
        specs = plan.pulses, keys.kind.graded, values.kind.graded
        plan.launch(gradient_at_converters, plan.grid, *itertools.chain(*each), sums, *specs)
    of_scalers = sums.sum(dim=(1, 3)).split([given.x.shape[1] for given in all_given], dim=1)
    return [(d_x.transpose(1, 2), of) for d_x, of in zip(rooms, of_scalers, strict=True)]


def plain(x: Tensor) -> Tensor:
    """As a kernel reads it: float32, one number beside the other."""
    if x.dtype != torch.float32 or not x.is_contiguous():
        x = x.detach().float().contiguous()
    return aligned(x)


@functools.lru_cache(maxsize=64)
def numbers(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Few numbers on a device, float32, which nobody may change: brought there once, because bringing is waited for."""
    return torch.tensor(values, dtype=torch.float32, device=device)
