"""One array of gain cells: pulses times stored voltages give charge.

Stored values come as the operands of :func:`aimc.ops.effects.cell.cell_operands`, one per power of the decay. Without
leakage every decay is 1 and the operands add up to the charge per unit pulse, so one matrix product is the whole array.
With leakage each power decays at its own rate and needs a product of its own. Where each cell has a retention time of
its own there is no product left: every cell's charge is computed for every read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from aimc.ops.effects.leakage import own_decay

Operands = list[Tensor | float]
MOST_CELL_READS = 2**22
"""Reads of single cells that are held at once where each cell decays at its own rate."""


class CellDecay(NamedTuple):
    """Decay of cells that leak at rates of their own, `r_tsd = exp(−λ_sd·age_ts)`."""

    ages: Tensor
    """In token times, `[T, S]`."""
    rates: Tensor
    """λ per token time, `[H, S, D]`."""


Decay = Tensor | CellDecay | None
"""`r_ts`, `[T, S]`, the same for all features; or of each cell; None: no leakage."""


def charge_qk(pulses: Tensor, operands: Operands, decay: Decay) -> Tensor:
    """First array: `S_ts = Σ_j r_ts^j · Σ_d pulse_td · operand_j,sd`.

    Args:
        pulses: pulse widths `[..., T, D]`, as fractions of the longest pulse.
        operands: per power, `[..., S, D]` or a number, in signal units; at least one is a tensor.
        decay: `r_ts = exp(−λ(t−s))`, `[T, S]`, or of each cell; None: no leakage.

    Returns:
        Charge in signal units, `[..., T, S]`.
    """
    if decay is None:
        return pulses @ summed(operands).mT
    if isinstance(decay, CellDecay):  # Σ_d pulse_td · Σ_j r_tsd^j · operand_j,sd
        return _by_cell(lambda x, cells: (cells @ x[..., None])[..., 0], pulses, operands, decay)
    # Horner's rule in the decay: one product of size T×S per power, and no powers of the decay to keep.
    charge = pulses.new_zeros(())
    for operand in reversed(operands):
        charge = charge * decay if charge.ndim else charge
        if isinstance(operand, Tensor):
            charge = charge + pulses @ operand.mT
        elif operand != 0.0:
            charge = charge + operand * pulses.sum(dim=-1, keepdim=True)
    return charge


def charge_av(pulses: Tensor, operands: Operands, decay: Decay) -> Tensor:
    """Second array, one sub-tile: `A_td = Σ_s pulse_ts · Σ_j r_ts^j · operand_j,sd`.

    Args:
        pulses: pulse widths `[..., T, S]` from the charge-to-pulse circuits.
        operands: per power, `[..., S, D]` or a number, in signal units; at least one is a tensor.
        decay: `r_ts`, `[T, S]`, or of each cell; None: no leakage.

    Returns:
        Charge of the sub-tile in signal units, `[..., T, D]`.
    """
    if decay is None:
        return pulses @ summed(operands)
    if isinstance(decay, CellDecay):  # Σ_s pulse_ts · Σ_j r_tsd^j · operand_j,sd
        return _by_cell(lambda x, cells: (x[..., None, :] @ cells)[..., 0, :], pulses, operands, decay)
    charge = pulses.new_zeros(())
    for j, operand in enumerate(operands):
        pulses = pulses * decay if j > 0 else pulses  # Φ_ts·r_ts^j
        if isinstance(operand, Tensor):
            charge = charge + pulses @ operand
        elif operand != 0.0:
            charge = charge + operand * pulses.sum(dim=-1, keepdim=True)
    return charge


def decayed(operands: Operands, decay: Tensor) -> Tensor:
    """Charge per unit pulse of cells at one moment, `Σ_j r^j·operand_j`, for a decay `r` that broadcasts with the
    operands."""
    charge: Tensor | float = 0.0
    for operand in reversed(operands):
        charge = charge * decay + operand
    return torch.as_tensor(charge)


def _by_cell(read: Callable[[Tensor, Tensor], Tensor], pulses: Tensor, operands: Operands, decay: CellDecay) -> Tensor:
    """Cells `[..., T, S, D]` that each decay on their own, read by pulses `[..., T, :]` in runs of queries, so that few
    are held at once."""

    def run(x: Tensor, ages: Tensor, *operands: Tensor | float) -> Tensor:
        cells = [o[..., None, :, :] if isinstance(o, Tensor) else o for o in operands]
        return read(x, decayed(cells, own_decay(decay.rates, ages)))

    n_cells = max(o.numel() for o in operands if isinstance(o, Tensor))
    length = max(MOST_CELL_READS // n_cells, 1)
    runs = list(zip(pulses.split(length, dim=-2), decay.ages.split(length), strict=True))
    if len(runs) == 1:
        return run(*runs[0], *operands)
    if not torch.is_grad_enabled():
        return torch.cat([run(x, ages, *operands) for x, ages in runs], dim=-2)
    # What a run holds is computed again in the backward pass; nothing in it is drawn.
    again = [checkpoint(run, x, ages, *operands, use_reentrant=False, preserve_rng_state=False) for x, ages in runs]
    return torch.cat(again, dim=-2)


def summed(operands: Operands) -> Tensor:
    """Sum of the operands, numbers last: they stand for the same number in every cell."""
    of_cells = reduce(operator.add, (o for o in operands if isinstance(o, Tensor)))
    numbers = sum(o for o in operands if not isinstance(o, Tensor))
    return of_cells + numbers if numbers else of_cells
