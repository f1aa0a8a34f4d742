"""One array of gain cells: pulses times stored voltages give charge.

Stored values come as the operands of :func:`aimc.ops.cell.cell_operands`, one per power of the decay. Without leakage every decay
is 1 and the operands add up to the charge per unit pulse, so one matrix product is the whole array. With leakage each power
decays at its own rate and needs a product of its own.
"""

from __future__ import annotations

import operator
from functools import reduce

from torch import Tensor

Operands = list[Tensor | float]


def charge_qk(pulses: Tensor, operands: Operands, decay: Tensor | None) -> Tensor:
    """First array: `S_ts = Σ_j r_ts^j · Σ_d pulse_td · operand_j,sd`.

    Args:
        pulses: pulse widths `[..., T, D]`, as fractions of the longest pulse.
        operands: per power, `[..., S, D]` or a number, in signal units; at least one is a tensor.
        decay: `r_ts = exp(−λ(t−s))`, `[T, S]`; None: no leakage.

    Returns:
        Charge in signal units, `[..., T, S]`.
    """
    if decay is None:
        return pulses @ together(operands).mT
    # Horner's rule in the decay: one product of size T×S per power, and no powers of the decay to keep.
    charge = pulses.new_zeros(())
    for operand in reversed(operands):
        charge = charge * decay if charge.ndim else charge
        if isinstance(operand, Tensor):
            charge = charge + pulses @ operand.mT
        elif operand != 0.0:
            charge = charge + operand * pulses.sum(dim=-1, keepdim=True)
    return charge


def charge_av(pulses: Tensor, operands: Operands, decay: Tensor | None) -> Tensor:
    """Second array, one sub-tile: `A_td = Σ_s pulse_ts · Σ_j r_ts^j · operand_j,sd`.

    Args:
        pulses: pulse widths `[..., T, S]` from the charge-to-pulse circuits.
        operands: per power, `[..., S, D]` or a number, in signal units; at least one is a tensor.
        decay: `r_ts`, `[T, S]`; None: no leakage.

    Returns:
        Charge of the sub-tile in signal units, `[..., T, D]`.
    """
    if decay is None:
        return pulses @ together(operands)
    charge = pulses.new_zeros(())
    for j, operand in enumerate(operands):
        pulses = pulses * decay if j > 0 else pulses  # Φ_ts·r_ts^j
        if isinstance(operand, Tensor):
            charge = charge + pulses @ operand
        elif operand != 0.0:
            charge = charge + operand * pulses.sum(dim=-1, keepdim=True)
    return charge


def together(operands: Operands) -> Tensor:
    """Sum of the operands, numbers last: they stand for the same number in every cell."""
    of_cells = reduce(operator.add, (o for o in operands if isinstance(o, Tensor)))
    numbers = sum(o for o in operands if not isinstance(o, Tensor))
    return of_cells + numbers if numbers else of_cells
