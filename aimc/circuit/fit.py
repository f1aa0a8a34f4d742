"""Fit a cell polynomial to a curve: measured, simulated or given as a formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike, NDArray

from aimc.config import Cell


@dataclass(slots=True, kw_only=True)
class TransferFit:
    """A polynomial `p(u) = Σ c_i·u^i` through a curve of charge against stored voltage, and how well it follows."""

    offset_v: float
    """Rest voltage V_o in volt; u = stored voltage − V_o."""
    coefficients: list[float]
    """c_0, c_1, … in charge units per volt^i, lowest power first."""
    residuals: NDArray[np.float64]
    """Charge minus fit, one per point, in charge units."""
    linear_slope: float
    """Least-squares slope of the charge through the origin, in charge units per volt: what a surrogate gradient uses."""
    level_step: float | None
    """Charge between adjacent storage levels, full charge span / (n_levels − 1); None where no level count was given."""

    @property
    def rms(self) -> float:
        """Root mean square of the residuals, in charge units."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    @property
    def max_error(self) -> float:
        """Largest residual, in charge units."""
        return float(np.max(np.abs(self.residuals)))

    @property
    def max_error_lsb(self) -> float | None:
        """Largest residual as a fraction of the charge step between adjacent storage levels; None without a level count."""
        return None if self.level_step is None else self.max_error / self.level_step

    def to_cell(self, supply_v: float, gradient: str = "exact") -> Cell:
        """The fitted cell, ready for `Hardware.cell`.

        Args:
            supply_v: supply voltage in volt, at least `offset_v`.
            gradient: `exact`, or `linear` for the surrogate with :attr:`linear_slope`.

        Raises:
            ConfigError: the cell refuses a value, for instance `linear` for a charge that falls with voltage.
        """
        slope = {"surrogate_slope": self.linear_slope} if gradient == "linear" or self.linear_slope > 0 else {}
        return Cell(supply_v=supply_v, offset_v=self.offset_v, coefficients=list(self.coefficients), gradient=gradient, **slope)


def fit_transfer(
    stored_v: ArrayLike,
    charge: ArrayLike | Callable[[NDArray[np.float64]], ArrayLike],
    *,
    offset_v: float,
    degree: int = 3,
    n_levels: int | None = None,
) -> TransferFit:
    """Least-squares polynomial of charge in the voltage about rest.

    Args:
        stored_v: stored voltages in volt, one dimension; at least `degree + 1` distinct ones.
        charge: charge per unit pulse at those voltages, same length, in any unit; or a function of `u = stored_v − offset_v`.
        offset_v: rest voltage V_o in volt.
        degree: degree of the polynomial, at least 1. Three describes the published silicon cell.
        n_levels: storage levels, to state the error in charge steps; None: do not.

    Returns:
        Coefficients, residuals and error measures.

    Raises:
        ValueError: what cannot be fitted: lengths that differ, values that are not finite, too few points, degree below 1.
    """
    u = np.asarray(stored_v, dtype=np.float64) - offset_v
    y = np.asarray(charge(u) if callable(charge) else charge, dtype=np.float64)
    _check_points(u, y, degree, n_levels)
    coefficients = np.zeros(degree + 1)
    fitted = Polynomial.fit(u, y, degree).convert().coef  # fitted on a scaled axis, which keeps high degrees well conditioned
    coefficients[: len(fitted)] = fitted
    return TransferFit(
        offset_v=float(offset_v),
        coefficients=coefficients.tolist(),
        residuals=y - Polynomial(coefficients)(u),
        linear_slope=float(np.sum(u * y) / np.sum(u * u)),
        level_step=None if n_levels is None else float(np.ptp(y)) / (n_levels - 1),
    )


def _check_points(u: NDArray[np.float64], y: NDArray[np.float64], degree: int, n_levels: int | None) -> None:
    if degree < 1:
        raise ValueError(f"degree={degree}: a polynomial below degree 1 does not depend on the stored voltage; use 1 or more")
    if n_levels is not None and n_levels < 2:
        raise ValueError(f"n_levels={n_levels}: a step needs two levels; use 2 or more, or None to leave the error in charge units")
    if u.ndim != 1 or y.shape != u.shape:
        raise ValueError(
            f"stored_v has shape {u.shape} and charge {y.shape}: each voltage needs its charge; give two lists of equal length"
        )
    bad = np.flatnonzero(~(np.isfinite(u) & np.isfinite(y)))
    if bad.size:
        row = int(bad[0])
        raise ValueError(
            f"row {row} of {len(u)} is not finite (stored_v − offset_v = {u[row]}, charge = {y[row]}), and one such point spoils the "
            f"whole fit; drop the {bad.size} such rows"
        )
    distinct = len(np.unique(u))
    if distinct < degree + 1:
        raise ValueError(
            f"{distinct} distinct voltages for degree={degree}: the {degree + 1} coefficients are not determined; "
            "measure more points or lower degree"
        )
    if np.ptp(y) == 0:
        raise ValueError("charge is the same at every voltage: such a cell stores nothing; check that the column is the right one")
