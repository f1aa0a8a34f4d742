"""The gain cell: charge per unit pulse as a polynomial of the stored voltage about its rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import comb

import torch
from torch import Tensor

from aimc.hardware import Cell, Hardware


def leaking_cell(hardware: Hardware) -> Cell:
    """The cell as it leaks: the same charge at the same voltage, written as a polynomial about the voltage that it
    leaks to.

    A voltage about its leak target V_t falls by a plain factor, `V(Δ) − V_t = r·(V(0) − V_t)`, so a cell that leaks to
    another voltage than its rest V_o is one whose rest is V_t and whose coefficients are `c'_j = Σ_{i>=j}
    c_i·C(i,j)·(V_t − V_o)^(i−j)` (Taylor's shift). The surrogate gradient is a slope and does not depend on where zero
    is.

    Returns:
        `hardware.cell` itself where it leaks to its rest or not at all.
    """
    cell, target_v = hardware.cell, hardware.leakage.target_v
    if target_v is None or target_v == cell.offset_v or not hardware.leakage.decay_per_token:
        return cell
    shift, powers = target_v - cell.offset_v, range(len(cell.coefficients))
    coefficients = [sum(cell.coefficients[i] * comb(i, j) * shift ** (i - j) for i in powers[j:]) for j in powers]
    return replace(cell, offset_v=target_v, coefficients=coefficients)


def transfer(u: Tensor, cell: Cell) -> Tensor:
    """`p(u) = Σ_i c_i·u^i` by Horner's rule, with the gradient that `cell.gradient` chooses.

    Args:
        u: stored voltage about the rest voltage, in volt, any shape.
        cell: coefficients and gradient; `linear` backpropagates `surrogate_slope·u` instead of p.

    Returns:
        Charge per unit pulse in signal units, the shape of `u`.
    """
    if cell.gradient == "linear":
        return _polynomial(u.detach(), cell.coefficients) + _surrogate(u, cell)
    return _polynomial(u, cell.coefficients)


def cell_coefficients(cell: Cell, gain: Tensor | None = None, offset_v: Tensor | None = None) -> list[Tensor | float]:
    """Coefficients of cells about their nominal rest, `κ_j = (1+g)·Σ_{i>=j} c_i·C(i,j)·δ^(i−j)`.

    Args:
        cell: the nominal one.
        gain: relative gain mismatch g of each cell; None: none.
        offset_v: offset mismatch δ of each in volt, by which its rest is shifted; None: none.

    Returns:
        One per power 0…n in signal units: a tensor, or a plain number where all cells share it.
    """
    coefficients: list[Tensor | float] = []
    for j in range(len(cell.coefficients)):
        taylor = [c * comb(i, j) for i, c in enumerate(cell.coefficients) if i >= j]
        shifted = taylor[0] if offset_v is None or len(taylor) == 1 else _polynomial(offset_v, taylor)
        coefficients.append(shifted if gain is None else _times(shifted, 1.0 + gain))
    return coefficients


def cell_operands(u0: Tensor, cell: Cell, coefficients: Sequence[Tensor | float] | None = None) -> list[Tensor | float]:
    """What the powers of the decay multiply, so that a leaky, mismatched cell is a short sum of products.

    With decay `r = exp(−λΔ)`, gain mismatch g and offset mismatch δ, the binomial theorem gives
    `(1+g)·p(u0·r + δ) = Σ_j r^j·operand_j` with `operand_j = κ_j·u0^j`.

    Args:
        u0: voltage about rest at the moment of writing, in volt, `[..., T, D]`.
        cell: the cell. With gradient `linear` the values stay exact, while `u0` receives the gradient of
            `surrogate_slope·r·u0` alone.
        coefficients: κ of :func:`cell_coefficients`, broadcastable to `u0`; None: the nominal cell's.

    Returns:
        One operand per power 0…n in signal units: a tensor, or a plain number where all cells share it (0.0: the power
        is absent).
    """
    stored = u0.detach() if cell.gradient == "linear" else u0
    operands: list[Tensor | float] = []
    power: Tensor | float = 1.0
    for coefficient in coefficients or cell.coefficients:
        operands.append(_times(power, coefficient))
        power = _times(power, stored)
    if cell.gradient == "linear" and u0.requires_grad:
        operands[1] = operands[1] + _surrogate(u0, cell)
    return operands


def stored_gradient(
    of_operands: dict[int, Tensor], u0: Tensor, cell: Cell, coefficients: Sequence[Tensor | float] | None = None
) -> Tensor:
    """The backward pass of :func:`cell_operands` by hand.

    Args:
        of_operands: gradient of the operand of each power in :func:`powers_with_gradient`, `[..., T, D]`; absent powers
            may be left out.
        u0, cell, coefficients: as they were given.

    Returns:
        The gradient of `u0`, `[..., T, D]`.
    """
    if cell.gradient == "linear":
        return cell.surrogate_slope * of_operands[1]
    coefficients = coefficients or cell.coefficients
    grad: Tensor | float = 0.0
    for j in reversed(powers_with_gradient(cell)):  # Horner's rule in u0 for Σ_j j·κ_j·u0^(j−1)·grad_j
        grad = _times(grad, u0) + _times(_times(float(j), coefficients[j]), of_operands.get(j, 0.0))
    return torch.as_tensor(grad, dtype=u0.dtype, device=u0.device).expand_as(u0)


def powers_with_gradient(cell: Cell) -> range:
    """Powers of the decay whose operand passes a gradient to the stored voltage."""
    return range(1, 2) if cell.gradient == "linear" else range(1, len(cell.coefficients))


def _times(a: Tensor | float, b: Tensor | float) -> Tensor | float:
    """`a·b`, keeping a plain zero plain: an absent power must cost no matrix product."""
    if isinstance(a, float) and a == 0.0 or isinstance(b, float) and b == 0.0:
        return 0.0
    return a * b


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    value = x * coefficients[-1] + coefficients[-2]
    for c in reversed(coefficients[:-2]):
        value = value * x + c
    return value


def _surrogate(u: Tensor, cell: Cell) -> Tensor:
    """Zero, with the gradient of `surrogate_slope·u`."""
    return cell.surrogate_slope * (u - u.detach())
