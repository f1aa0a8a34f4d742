"""Where a converter's levels lie when they are not evenly spaced: at equal steps of a cell's charge, or as listed.

With equal charge, the number x in the storage range stands for the charge at the same place between those of the ends,
`p(V) = p(v_min) + (x − v_min)/(v_max − v_min)·(p(v_max) − p(v_min))`, and V is what is written: a lookup in the writing
DAC, after which the curved cell acts as a straight line of x.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from aimc.hardware import Cell, Converter, Hardware

TABLE = 4097
"""Points of the tabulated curve that Newton's method starts from: two steps are then exact to float64's rounding."""


class Curve:
    """The charge of a cell between the ends of a storage DAC's range, and its inverse.

    Args:
        coefficients: of the cell, about its rest.
        low: lower end of the range about rest, in volt.
        high: upper end, likewise.
    """

    def __init__(self, coefficients: tuple[float, ...], low: float, high: float) -> None:
        self.coefficients, self.low, self.span = coefficients, low, high - low
        self.bottom = _horner(torch.tensor(low, dtype=torch.float64), coefficients).item()
        self.rise = _horner(torch.tensor(high, dtype=torch.float64), coefficients).item() - self.bottom
        self.slopes = tuple(i * c for i, c in enumerate(coefficients))[1:]
        shares = torch.linspace(0.0, 1.0, TABLE, dtype=torch.float64)
        below, above = torch.full_like(shares, low), torch.full_like(shares, high)
        for _ in range(60):  # bisection: the charge rises, and nothing else is known of it
            middle = (below + above) / 2
            less = self.share(middle) < shares
            below, above = torch.where(less, middle, below), torch.where(less, above, middle)
        self.table = (below + above) / 2

    def share(self, u: Tensor) -> Tensor:
        """Place of the charge at the voltage `u` about rest between the ends, from 0 to 1."""
        return (_horner(u, self.coefficients) - self.bottom) / self.rise

    def slope(self, u: Tensor) -> Tensor:
        """Of :meth:`share`, per volt."""
        return (
            _horner(u, self.slopes) / self.rise if len(self.slopes) > 1 else u.new_full((), self.slopes[0]) / self.rise
        )

    def voltage(self, share: Tensor) -> Tensor:
        """The voltage about rest whose charge has this place: the inverse of :meth:`share`."""
        place = share.clamp(0.0, 1.0) * (TABLE - 1)
        at = place.to(torch.int64).clamp_(max=TABLE - 2)
        table = _table_like(self, share.dtype, share.device)
        u = torch.lerp(table[at], table[at + 1], place - at)
        for _ in range(2):
            u = u - (self.share(u) - share) / self.slope(u)
        return u


@functools.lru_cache(maxsize=64)
def _table_like(curve: Curve, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Brought to a device once, because bringing is waited for."""
    return curve.table.to(device, dtype)


@functools.lru_cache(maxsize=64)
def _curve(coefficients: tuple[float, ...], low: float, high: float) -> Curve:
    return Curve(coefficients, low, high)


def curve_of(converter: Converter, cell: Cell) -> Curve:
    """The curve of a storage DAC with equal charge."""
    rest = cell.offset_v
    return _curve(tuple(cell.coefficients), converter.v_min - rest, converter.v_max - rest)


def to_equal_charge(x: Tensor, converter: Converter, cell: Cell) -> Tensor:
    """The voltage for a number `x` in the storage range, any shape, in volt; without gradient."""
    span = converter.v_max - converter.v_min
    voltage = curve_of(converter, cell).voltage((x - converter.v_min) / span) + cell.offset_v
    return voltage.clamp_(converter.v_min, converter.v_max)


def from_equal_charge(voltage: Tensor, converter: Converter, cell: Cell) -> Tensor:
    """The inverse of :func:`to_equal_charge`."""
    span = converter.v_max - converter.v_min
    return converter.v_min + span * curve_of(converter, cell).share(voltage - cell.offset_v)


def line_of(hardware: Hardware) -> tuple[float, float]:
    """The straight line that stands for a cell, charge over the number x about rest: `c_0 + c_1·(x − V_o)`, or what the
    cell is where its levels lie at equal charge. Offset in signal units, slope in signal units per volt."""
    cell, dac = hardware.cell, hardware.storage_dac
    if dac.spacing != "equal_charge":
        return cell.coefficients[0], cell.coefficients[1]
    curve = curve_of(dac, cell)
    slope = curve.rise / curve.span
    return curve.bottom - slope * curve.low, slope


def storage_slope(level: Tensor, converter: Converter, cell: Cell) -> Tensor | None:
    """Slope of voltage over number at the voltages `level`; None: one, everywhere. It is what the rounding is
    straight-through about."""
    if converter.spacing != "equal_charge":
        return None
    span = converter.v_max - converter.v_min
    return 1.0 / (span * curve_of(converter, cell).slope(level - cell.offset_v))


@functools.lru_cache(maxsize=256)
def _sorted_levels(positions: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    levels = torch.tensor(positions, dtype=torch.float64)
    return levels.to(device, dtype), ((levels[1:] + levels[:-1]) / 2).to(device, dtype)


def to_listed(x: Tensor, converter: Converter) -> Tensor:
    """The nearest of the listed levels; halfway, the lower."""
    assert converter.positions is not None  # listed spacing has them
    levels, thresholds = _sorted_levels(tuple(converter.positions), x.dtype, x.device)
    return levels[torch.bucketize(x, thresholds)]


def _horner(u: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value = u * coefficients[-1] + coefficients[-2]
    for c in reversed(coefficients[:-2]):
        value = value * u + c
    return value
