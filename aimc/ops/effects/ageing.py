"""Age compensation: digital logic knows how old a token is, and makes up for what it has nominally lost.

Chip by chip cells differ (`noise.tau_spread`, mismatch); what is made up for is the nominal loss alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from aimc.hardware import Converter, Hardware
from aimc.ops.effects.cell import leaking_cell
from aimc.ops.effects.levels import to_equal_charge

CHORD = 0.2
"""Distance from the middle of the storage range, in ranges, of the two numbers whose charges say how much is left."""
LEAST = 1e-3
"""What is lost beyond this share is not brought back."""


class Retained(NamedTuple):
    """What a cell nominally keeps of its signal, the difference from its charge at the leak target."""

    shares: tuple[float, ...]
    """a_1, a_2, …: `ρ(r) = Σ_i a_i·r^i` at a decay r of the voltage; they add up to one."""
    rest: float
    """Charge per unit pulse at the leak target, in signal units."""

    def of(self, decay: Tensor) -> Tensor:
        """ρ for decays of any shape."""
        share = torch.zeros_like(decay)
        for a in reversed(self.shares):
            share = (share + a) * decay
        return share.clamp(min=LEAST)


def retained(hardware: Hardware) -> Retained:
    """The slope of charge over number across the middle of the storage range, as it falls with the decay r:
    `ρ(r) = [p(V_t + r·(V₊ − V_t)) − p(V_t + r·(V₋ − V_t))] / [p(V₊) − p(V₋)]`."""
    cell, dac = leaking_cell(hardware), hardware.storage_dac
    middle, step = (dac.v_min + dac.v_max) / 2, CHORD * (dac.v_max - dac.v_min)
    high, low = (_voltage(middle + sign * step, dac, hardware) - cell.offset_v for sign in (1, -1))
    parts = [c * (high**i - low**i) for i, c in enumerate(cell.coefficients) if i]
    return Retained(tuple(part / sum(parts) for part in parts), cell.coefficients[0])


def _voltage(number: float, dac: Converter, hardware: Hardware) -> float:
    """Without levels and integral nonlinearity."""
    if dac.spacing != "equal_charge":
        return number
    return float(to_equal_charge(torch.tensor(number, dtype=torch.float64), dac, hardware.cell))
