import numpy as np
import pytest

from aimc import presets
from aimc.circuit import fit_transfer
from aimc.hardware import ConfigError, Hardware

STORED = np.linspace(0.0, 0.9, 41)


def test_a_cubic_is_recovered():
    charge = sum(c * (STORED - 0.45) ** i for i, c in enumerate(presets.CMOS_COEFFICIENTS))
    fit = fit_transfer(STORED, charge, offset_v=0.45, n_levels=8)
    np.testing.assert_allclose(fit.coefficients, presets.CMOS_COEFFICIENTS, rtol=1e-9)
    assert fit.max_error < 1e-10 and fit.rms <= fit.max_error and fit.max_error_lsb < 1e-10


@pytest.mark.parametrize(
    "curve", [lambda u: u**3, lambda u: u**5, lambda u: 1 / (1 + np.exp(-10 * u)), np.exp, np.tanh]
)
@pytest.mark.parametrize("degree", [3, 5, 7])
def test_formulas_of_any_shape_run(curve, degree):
    fit = fit_transfer(STORED, curve, offset_v=0.45, degree=degree, n_levels=8)
    assert len(fit.coefficients) == degree + 1 and fit.residuals.shape == STORED.shape
    u = STORED - 0.45
    np.testing.assert_allclose(
        np.polynomial.polynomial.polyval(u, fit.coefficients) + fit.residuals, curve(u), atol=1e-12
    )
    assert fit.max_error_lsb < 1.0
    Hardware(cell=fit.to_cell(0.9))


@pytest.mark.filterwarnings("ignore::aimc.circuit.CircuitWarning")
def test_error_in_steps_of_the_storage_levels():
    u = STORED - 0.45
    fit = fit_transfer(STORED, u**2 + u, offset_v=0.45, degree=1, n_levels=5)
    assert fit.max_error_lsb == pytest.approx(fit.max_error / (np.ptp(u**2 + u) / 4))
    assert fit.rms == pytest.approx(np.sqrt(np.mean(fit.residuals**2)))
    assert fit_transfer(STORED, u, offset_v=0.45).max_error_lsb is None


def test_cell_of_the_fit():
    cell = fit_transfer(STORED, lambda u: 19.3 * u, offset_v=0.45, degree=1).to_cell(0.9, gradient="linear")
    assert cell.coefficients == pytest.approx([0.0, 19.3], abs=1e-9) and cell.surrogate_slope == pytest.approx(19.3)
    assert (cell.supply_v, cell.offset_v, cell.gradient) == (0.9, 0.45, "linear")


def test_a_falling_curve_has_no_positive_surrogate():
    fit = fit_transfer(STORED, lambda u: -u, offset_v=0.45)
    assert fit.to_cell(0.9).coefficients[1] == pytest.approx(-1.0)
    with pytest.raises(ConfigError, match="surrogate_slope"):
        fit.to_cell(0.9, gradient="linear")


@pytest.mark.parametrize(
    ("stored", "charge", "kwargs", "message"),
    [
        ([0.1, 0.2, 0.3], [1.0, 2.0], {}, "equal length"),
        ([0.1, 0.2, 0.3, 0.4], [1.0, float("nan"), 2.0, 3.0], {}, "row 1 "),
        ([0.1, float("inf"), 0.3, 0.4], [1.0, 2.0, 2.0, 3.0], {}, "row 1 "),
        ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0], {}, "lower degree"),
        ([0.1, 0.1, 0.1, 0.3], [1.0, 2.0, 3.0, 4.0], {}, "distinct"),
        ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0], {"degree": 0}, "degree=0"),
        ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0], {"degree": 1, "n_levels": 1}, "n_levels=1"),
        ([0.1, 0.2, 0.3], [2.0, 2.0, 2.0], {"degree": 1}, "same at every voltage"),
    ],
)
def test_tables_that_cannot_be_fitted(stored, charge, kwargs, message):
    with pytest.raises(ValueError, match=message):
        fit_transfer(stored, charge, offset_v=0.2, **kwargs)
