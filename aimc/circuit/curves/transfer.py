"""Fit a cell polynomial to a curve: measured, simulated or given as a formula."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike

from aimc.circuit.curves.regression import solve
from aimc.circuit.errors import CircuitError, CircuitWarning
from aimc.circuit.typing import FloatArray
from aimc.hardware import Cell

POOR_LSB = 0.5
"""A fit that misses by more than this many steps between storage levels puts a level where its neighbour should be."""
SLOPE_POINTS = 101
"""Voltages at which a monotone fit is held to rise."""
SLACK = 0.01
"""Part of the measured range by which a voltage may lie outside it: rounding of a grid's end is no extrapolation."""


@dataclass(slots=True, kw_only=True)
class TransferFit:
    """A polynomial `p(u) = Σ c_i·u^i` through a curve of charge against stored voltage, and how well it follows."""

    offset_v: float
    """Rest voltage V_o in volt; u = stored voltage − V_o."""
    coefficients: list[float]
    """c_0, c_1, … in charge units per volt^i, lowest power first."""
    standard_errors: list[float]
    """Of the coefficients, for independent errors of equal (weighted) size; NaN where a monotone fit was held by its
    constraint."""
    residuals: FloatArray
    """Charge minus fit, one per point that counts, in charge units."""
    linear_slope: float
    """Least-squares slope of the charge through the origin, in charge units per volt: what a surrogate gradient
    uses."""
    level_step: float | None
    """Charge between adjacent storage levels, full charge span / (n_levels − 1); None where no level count was
    given."""
    stored_range_v: tuple[float, float]
    """Smallest and largest stored voltage of the data, in volt; outside it the polynomial knows nothing."""

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
        """Largest residual as a fraction of the charge step between adjacent storage levels; None without a level
        count."""
        return None if self.level_step is None else self.max_error / self.level_step

    def __call__(self, stored_v: ArrayLike) -> FloatArray:
        """Charge at stored voltages in volt.

        Raises:
            CircuitError: a voltage outside the data.
        """
        stored = np.asarray(stored_v, dtype=np.float64)
        self._check_range(float(stored.min()), float(stored.max()))
        return np.asarray(Polynomial(self.coefficients)(stored - self.offset_v))

    def to_cell(self, supply_v: float, gradient: str = "exact", *, lowest_v: float = 0.0) -> Cell:
        """The fitted cell, ready for `Hardware.cell`.

        Args:
            supply_v: supply voltage in volt, at least `offset_v`; the largest voltage that will be stored.
            gradient: `exact`, or `linear` for the surrogate with :attr:`linear_slope`.
            lowest_v: the smallest voltage that will be stored, in volt.

        Raises:
            CircuitError: voltages from `lowest_v` to `supply_v` were not all measured.
            ConfigError: the cell refuses a value, for instance `linear` for a charge that falls with voltage.
        """
        self._check_range(lowest_v, supply_v)
        slope = {"surrogate_slope": self.linear_slope} if gradient == "linear" or self.linear_slope > 0 else {}
        return Cell(
            supply_v=supply_v, offset_v=self.offset_v, coefficients=list(self.coefficients), gradient=gradient, **slope
        )

    def _check_range(self, lowest_v: float, highest_v: float) -> None:
        low, high = self.stored_range_v
        slack = SLACK * (high - low)
        if lowest_v < low - slack or highest_v > high + slack:
            raise CircuitError(
                f"stored voltages from {lowest_v:g} to {highest_v:g} V, and the data end at {low:g} and {high:g} V: a"
                " polynomial runs away outside its data; measure the whole range, or store less (storage_dac.v_min,"
                " storage_dac.v_max, supply_v)"
            )


def fit_transfer(
    stored_v: ArrayLike,
    charge: ArrayLike | Callable[[FloatArray], ArrayLike],
    *,
    offset_v: float,
    degree: int = 3,
    n_levels: int | None = None,
    weights: ArrayLike | None = None,
    monotone: bool = False,
) -> TransferFit:
    """Least-squares polynomial of charge in the voltage about rest.

    Args:
        stored_v: stored voltages in volt, one dimension; at least `degree + 1` distinct ones.
        charge: charge (or current) per unit pulse at those voltages, same length, in any unit; or a function of `u =
            stored_v − offset_v`.
        offset_v: rest voltage V_o in volt.
        degree: degree of the polynomial, at least 1. Three describes the published silicon cell.
        n_levels: storage levels, to state the error in charge steps; None: do not.
        weights: of the squared errors, one per point, not negative, 0 drops a point; None: all alike.
        monotone: hold the polynomial to rise (or to fall) over the data's range, as a cell's charge does.

    Returns:
        Coefficients, residuals and error measures. A :class:`CircuitWarning` says when the fit is too poor for
        `n_levels`.

    Raises:
        ValueError: what cannot be fitted: lengths that differ, values that are not finite, too few points, degree below
            1.
    """
    u = np.asarray(stored_v, dtype=np.float64) - offset_v
    y = np.asarray(charge(u) if callable(charge) else charge, dtype=np.float64)
    _check_points(u, y, degree, n_levels)
    weight = checked_weights(weights, y)
    if weight is not None:
        u, y, weight = (x[weight > 0] for x in (u, y, weight))
        _check_points(u, y, degree, n_levels)
    coefficients, errors = _fit(u, y, degree, weight, monotone)
    fit = TransferFit(
        offset_v=float(offset_v),
        coefficients=coefficients.tolist(),
        standard_errors=errors.tolist(),
        residuals=y - Polynomial(coefficients)(u),
        linear_slope=float(np.average(u * y, weights=weight) / np.average(u * u, weights=weight)),
        level_step=None if n_levels is None else float(np.ptp(y)) / (n_levels - 1),
        stored_range_v=(float(u.min() + offset_v), float(u.max() + offset_v)),
    )
    if fit.max_error_lsb is not None and fit.max_error_lsb > POOR_LSB:
        warnings.warn(poor_fit(fit.max_error_lsb, f"a polynomial of degree {degree}"), CircuitWarning, stacklevel=2)
    return fit


def poor_fit(error_lsb: float, what: str) -> str:
    """What is said of a fit that misses by so many steps between storage levels."""
    return (
        f"{what} misses the data by up to {error_lsb:.2f} LSB of storage, so the emulated cell confuses levels that the"
        " real one tells apart; try a higher degree (aimc.circuit.choose_degree picks one), a smaller range of stored"
        " voltages, or look for outliers in the residuals"
    )


def _fit(
    u: FloatArray, y: FloatArray, degree: int, weights: FloatArray | None, monotone: bool
) -> tuple[FloatArray, FloatArray]:
    """Coefficients and their standard errors; solved on an axis scaled to one, which keeps high degrees well
    conditioned."""
    reach = float(np.abs(u).max())
    powers = reach ** np.arange(degree + 1)
    slopes = None
    if monotone:
        grid = np.linspace(u.min(), u.max(), SLOPE_POINTS) / reach
        rising = np.sign(np.polyfit(u, y, 1)[0]) or 1.0
        slopes = rising * np.vander(grid, degree + 1, increasing=True)[:, :-1] * np.arange(1, degree + 1)
        slopes = np.hstack([np.zeros((len(grid), 1)), slopes])
    solution = solve(np.vander(u / reach, degree + 1, increasing=True), y, weights, slopes)
    return solution.coefficients / powers, solution.standard_errors / powers


def choose_degree(
    stored_v: ArrayLike,
    charge: ArrayLike,
    *,
    offset_v: float,
    degrees: range = range(1, 8),
    n_folds: int = 5,
    seed: int = 0,
) -> tuple[int, dict[int, float]]:
    """The degree that a cross-validation prefers: the lowest whose held-out error is within one standard error of the
    best.

    Args:
        stored_v: stored voltages in volt, one dimension.
        charge: at those voltages, same length.
        offset_v: rest voltage in volt.
        degrees: which are tried.
        n_folds: parts of the data, each held out once; of fewer points as many as there are.
        seed: of the division into parts.

    Returns:
        The degree, and the held-out root mean square error of each that the points determine, in charge units.

    Raises:
        CircuitError: no degree can be tried.
    """
    stored, y = np.asarray(stored_v, dtype=np.float64), np.asarray(charge, dtype=np.float64)
    _check_points(stored - offset_v, y, 1, None)
    n_folds = min(n_folds, len(y))
    fold_of = np.random.default_rng(seed).permutation(len(y)) % n_folds
    errors: dict[int, FloatArray] = {}
    for degree in degrees:
        if len(np.unique(stored)) - max(int((fold_of == fold).sum()) for fold in range(n_folds)) < degree + 1:
            break
        errors[degree] = np.array(
            [held_out_error(stored, y, fold_of == fold, offset_v=offset_v, degree=degree) for fold in range(n_folds)]
        )
    if not errors:
        raise CircuitError(
            f"{len(y)} points in {n_folds} folds determine no degree of {list(degrees)}; measure more, or use fewer"
            " folds"
        )
    mean_squares = {degree: float(np.mean(e**2)) for degree, e in errors.items()}
    best = min(mean_squares, key=mean_squares.__getitem__)
    limit = mean_squares[best] + float(np.std(errors[best] ** 2, ddof=1) / np.sqrt(n_folds))
    chosen = min(degree for degree, value in mean_squares.items() if value <= limit)
    return chosen, {degree: float(np.sqrt(value)) for degree, value in mean_squares.items()}


def held_out_error(
    stored_v: ArrayLike, charge: ArrayLike, held_out: ArrayLike, *, offset_v: float, degree: int
) -> float:
    """Root mean square error, in charge units, on points that a fit to the others has not seen; bool `held_out` marks
    them."""
    u, y, out = (
        np.asarray(stored_v, dtype=np.float64) - offset_v,
        np.asarray(charge, dtype=np.float64),
        np.asarray(held_out, dtype=bool),
    )
    coefficients, _ = _fit(u[~out], y[~out], degree, None, False)
    return float(np.sqrt(np.mean((y[out] - Polynomial(coefficients)(u[out])) ** 2)))


def checked_weights(weights: ArrayLike | None, y: FloatArray) -> FloatArray | None:
    """Weights `[N]` of the points `y`; None: all alike.

    Raises:
        CircuitError: of another number, not finite, or negative.
    """
    if weights is None:
        return None
    weight = np.asarray(weights, dtype=np.float64)
    if weight.shape != y.shape or not np.isfinite(weight).all() or (weight < 0).any():
        raise CircuitError(
            f"weights of shape {weight.shape} for {y.shape} points: one finite number that is not negative each; 0"
            " drops a point"
        )
    return weight


def _check_points(u: FloatArray, y: FloatArray, degree: int, n_levels: int | None) -> None:
    if degree < 1:
        raise CircuitError(
            f"degree={degree}: a polynomial below degree 1 does not depend on the stored voltage; use 1 or more"
        )
    if n_levels is not None and n_levels < 2:
        raise CircuitError(
            f"n_levels={n_levels}: a step needs two levels; use 2 or more, or None to leave the error in charge units"
        )
    if u.ndim != 1 or y.shape != u.shape:
        raise CircuitError(
            f"stored_v has shape {u.shape} and charge {y.shape}: each voltage needs its charge; give two lists of equal"
            " length"
        )
    bad = np.flatnonzero(~(np.isfinite(u) & np.isfinite(y)))
    if bad.size:
        row = int(bad[0])
        raise CircuitError(
            f"row {row} of {len(u)} is not finite (stored_v − offset_v = {u[row]}, charge = {y[row]}), and one such"
            f" point spoils the whole fit; drop the {bad.size} such rows"
        )
    distinct = len(np.unique(u))
    if distinct < degree + 1:
        raise CircuitError(
            f"{distinct} distinct voltages for degree={degree}: the {degree + 1} coefficients are not determined; "
            "measure more points or lower degree"
        )
    if np.ptp(y) == 0:
        raise CircuitError(
            "charge is the same at every voltage: such a cell stores nothing; check that the column is the right one"
        )
