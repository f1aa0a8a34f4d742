"""Fit the surface of charge over stored voltage and read voltage (or pulse width), and cut it at one of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from aimc.circuit.curves.regression import solve
from aimc.circuit.curves.transfer import POOR_LSB, SLACK, SLOPE_POINTS, checked_weights, poor_fit
from aimc.circuit.errors import CircuitError, CircuitWarning
from aimc.circuit.typing import FloatArray
from aimc.hardware import Cell


@dataclass(slots=True, kw_only=True)
class SurfaceFit:
    """`q(u, x) = Σ C_ij·u^i·x^j`, u the stored voltage about rest and x the read voltage in volt or the pulse width."""

    offset_v: float
    """Rest voltage V_o in volt."""
    coefficients: dict[tuple[int, int], float]
    """C_ij by (i, j)."""
    standard_errors: dict[tuple[int, int], float]
    """Of each, for independent errors of equal (weighted) size; NaN where a monotone fit was held by its constraint."""
    residuals: FloatArray
    """Data minus fit, one per point."""
    level_step: float | None
    """Charge between adjacent storage levels at the largest read, span / (n_levels − 1); None where no level count was
    given."""
    stored_range_v: tuple[float, float]
    """Smallest and largest stored voltage of the data, in volt."""
    read_range: tuple[float, float]
    """Smallest and largest read of the data (0 is among them where a surface is zero at zero pulse)."""

    @property
    def rms(self) -> float:
        """Root mean square of the residuals."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    @property
    def max_error_lsb(self) -> float | None:
        """Largest residual in charge steps between storage levels; None without a level count."""
        return None if self.level_step is None else float(np.abs(self.residuals).max()) / self.level_step

    def __call__(self, stored_v: ArrayLike, read: ArrayLike) -> FloatArray:
        """Charge at stored voltages in volt and reads, which broadcast.

        Raises:
            CircuitError: a point outside the data.
        """
        stored, x = np.asarray(stored_v, dtype=np.float64), np.asarray(read, dtype=np.float64)
        self._check("stored voltages in volt", stored, self.stored_range_v)
        self._check("reads", x, self.read_range)
        u = stored - self.offset_v
        return sum(
            (c * u**i * x**j for (i, j), c in self.coefficients.items()), start=np.zeros(np.broadcast(u, x).shape)
        )

    def at(self, read: float) -> list[float]:
        """The cell at one read: `c_i = Σ_j C_ij·x^j`, lowest power first, in charge units per volt^i.

        Raises:
            CircuitError: a read outside the data.
        """
        self._check("reads", np.array(read), self.read_range)
        return collapse(self.coefficients, read)

    def to_cell(self, supply_v: float, read: float, *, lowest_v: float = 0.0) -> Cell:
        """The cell at one read, ready for `Hardware.cell`, where stored voltages from `lowest_v` to `supply_v` were
        measured."""
        self._check("stored voltages in volt", np.array([lowest_v, supply_v]), self.stored_range_v)
        return Cell(supply_v=supply_v, offset_v=self.offset_v, coefficients=self.at(read))

    @staticmethod
    def _check(what: str, values: FloatArray, known: tuple[float, float]) -> None:
        low, high = known
        slack = SLACK * (high - low)
        if values.size and (values.min() < low - slack or values.max() > high + slack):
            raise CircuitError(
                f"{what} from {values.min():g} to {values.max():g}, and the data end at {low:g} and {high:g}: a"
                " polynomial runs away outside its data; measure there too, or stay inside"
            )


def collapse(coefficients: dict[tuple[int, int], float], read: float) -> list[float]:
    """`c_i = Σ_j C_ij·x^j` of a surface at one read voltage or width, lowest power first."""
    degree = max(i for i, _ in coefficients)
    return [sum(c * read**j for (i, j), c in coefficients.items() if i == power) for power in range(degree + 1)]


def fit_surface(
    stored_v: ArrayLike,
    read: ArrayLike,
    charge: ArrayLike,
    *,
    offset_v: float,
    degree: int = 3,
    read_degree: int | None = None,
    n_levels: int | None = None,
    weights: ArrayLike | None = None,
    zero_at_zero_pulse: bool = True,
    monotone: bool = False,
) -> SurfaceFit:
    """Least-squares polynomial surface.

    Args:
        stored_v: stored voltages in volt, `[N]`.
        read: read voltages in volt, or pulse widths, `[N]`.
        charge: charge or current, `[N]`, in any unit.
        offset_v: rest voltage V_o in volt.
        degree: of the stored voltage.
        read_degree: of the read, each term independently; None: terms of total degree up to `degree`, as published (ten
            of degree 3).
        n_levels: storage levels, to state the error in charge steps; None: do not.
        weights: of the squared errors, `[N]`, not negative, 0 drops a point; None: all alike.
        zero_at_zero_pulse: leave out the terms without the read, so that no pulse gives no charge. Of total degree 3
            six are left then, and the cube of the stored voltage is not among them: give `read_degree` for a cubic
            cell.
        monotone: hold the surface to rise with the stored voltage at every read of the data.

    Raises:
        CircuitError: points that cannot be fitted; the message says which row.
    """
    u, x, y = (np.asarray(v, dtype=np.float64) for v in (stored_v, read, charge))
    _check(u, x, y, degree)
    u = u - offset_v
    weight = checked_weights(weights, y)
    if weight is not None:
        u, x, y, weight = (points[weight > 0] for points in (u, x, y, weight))
        if not len(y):
            raise CircuitError("weights: all are 0, so no point is left; give some of them more")
    first = 1 if zero_at_zero_pulse else 0
    last = degree if read_degree is None else read_degree
    terms = [
        (i, j) for i in range(degree + 1) for j in range(first, last + 1) if read_degree is not None or i + j <= degree
    ]
    if not any(i for i, _ in terms):
        raise CircuitError(
            f"degree={degree}, read_degree={read_degree}: no term depends on the stored voltage; raise the degree"
        )
    unit_u, unit_x = float(np.abs(u).max()) or 1.0, float(np.abs(x).max()) or 1.0
    units = np.array([unit_u**i * unit_x**j for i, j in terms])

    def basis(a: FloatArray, b: FloatArray) -> FloatArray:
        return np.stack([(a / unit_u) ** i * (b / unit_x) ** j for i, j in terms], axis=1)

    slopes = None
    if monotone:
        reads, grid = np.unique(x[x != 0]), np.linspace(u.min(), u.max(), SLOPE_POINTS)
        a, b = (v.ravel() / unit for v, unit in zip(np.meshgrid(grid, reads), (unit_u, unit_x), strict=True))
        slopes = np.stack([i * a ** max(i - 1, 0) * b**j for i, j in terms], axis=1)
    solution = solve(basis(u, x), y, weight, slopes)
    at_longest = y[x == x.max()]
    fit = SurfaceFit(
        offset_v=float(offset_v),
        coefficients=dict(zip(terms, (solution.coefficients / units).tolist(), strict=True)),
        standard_errors=dict(zip(terms, (solution.standard_errors / units).tolist(), strict=True)),
        residuals=y - basis(u, x) @ solution.coefficients,
        level_step=None if n_levels is None else float(np.ptp(at_longest)) / (n_levels - 1),
        stored_range_v=(float(u.min() + offset_v), float(u.max() + offset_v)),
        read_range=(min(float(x.min()), 0.0) if zero_at_zero_pulse else float(x.min()), float(x.max())),
    )
    if fit.max_error_lsb is not None and fit.max_error_lsb > POOR_LSB:
        warnings.warn(poor_fit(fit.max_error_lsb, f"a surface of degree {degree}"), CircuitWarning, stacklevel=2)
    return fit


def _check(u: FloatArray, x: FloatArray, y: FloatArray, degree: int) -> None:
    if degree < 1:
        raise CircuitError(
            f"degree={degree}: a surface below degree 1 does not depend on the stored voltage; use 1 or more"
        )
    if not (u.ndim == 1 and u.shape == x.shape == y.shape):
        raise CircuitError(
            f"stored_v {u.shape}, read {x.shape}, charge {y.shape}: one of each a point; give three lists of equal"
            " length"
        )
    bad = np.flatnonzero(~(np.isfinite(u) & np.isfinite(x) & np.isfinite(y)))
    if bad.size:
        raise CircuitError(
            f"row {int(bad[0])} of {len(u)} is not finite, and one such point spoils the whole fit; drop the {bad.size}"
            " such rows"
        )
