"""The gain cell: what charge a stored voltage gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from aimc.hardware.checks import check_fields, require, require_choice, require_positive

GRADIENTS = ("exact", "linear")


@dataclass(slots=True, kw_only=True)
class Cell:
    """One gain cell: charge per unit pulse as a polynomial of the stored voltage about its rest, ``p(u) = Σ
    c_i·u^i``."""

    supply_v: float = 0.9
    """Supply V_DD in volt: the largest voltage that can be stored."""
    offset_v: float = 0.45
    """Rest voltage V_o in volt: where the cell gives (nearly) no charge, and to which it leaks unless
    `leakage.target_v` says otherwise."""
    coefficients: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """c_0, c_1, … in signal units per volt^i, lowest power first; any degree. Two numbers with c_0 = 0 are a linear
    cell."""
    gradient: str = "exact"
    """`exact`: the derivative of p; `linear`: the surrogate that treats the cell as `surrogate_slope·u` in the backward
    pass."""
    surrogate_slope: float = 1.0
    """Slope of the surrogate gradient in signal units per volt; used only where `gradient` is `linear`."""

    def __post_init__(self) -> None:
        check_fields(self, "cell")
        require_positive("cell.supply_v", self.supply_v, "volt")
        require(
            0 <= self.offset_v <= self.supply_v,
            "cell.offset_v",
            self.offset_v,
            f"must lie between 0 and cell.supply_v={self.supply_v}",
            "half the supply is usual",
        )
        require(
            len(self.coefficients) >= 2,
            "cell.coefficients",
            self.coefficients,
            "a cell needs at least c_0 and c_1",
            "give them lowest power first, or fit a curve with aimc.circuit.fit_transfer",
        )
        require(
            any(c != 0 for c in self.coefficients[1:]),
            "cell.coefficients",
            self.coefficients,
            "the charge does not depend on the stored voltage",
            "give at least one non-zero coefficient above c_0",
        )
        require_choice("cell.gradient", self.gradient, GRADIENTS)
        require_positive("cell.surrogate_slope", self.surrogate_slope, "signal units per volt")
