import numpy as np
import pytest

from aimc import presets
from aimc.circuit import CircuitError, CircuitWarning, choose_degree, collapse, fit_surface, fit_transfer

STORED, READ = (v.ravel() for v in np.meshgrid(np.linspace(0.0, 0.9, 25), np.linspace(0.3, 1.2, 15)))


def published(u, x):
    return sum(c * u**i * x**j for (i, j), c in presets.CMOS_SURFACE.items())


def test_the_published_ten_coefficients_in_the_published_four_out():
    np.testing.assert_allclose(collapse(presets.CMOS_SURFACE, 0.9), presets.CMOS_COEFFICIENTS, rtol=1e-9)
    fit = fit_surface(STORED, READ, published(STORED - 0.45, READ), offset_v=0.45, zero_at_zero_pulse=False, n_levels=8)
    assert len(fit.coefficients) == 10
    for term, c in presets.CMOS_SURFACE.items():
        assert fit.coefficients[term] == pytest.approx(c, abs=1e-9), term
    np.testing.assert_allclose(fit.at(0.9), presets.CMOS_COEFFICIENTS, atol=1e-9)
    assert fit.max_error_lsb < 1e-9
    np.testing.assert_allclose(fit.to_cell(0.9, 0.9).coefficients, presets.CMOS_COEFFICIENTS, atol=1e-9)


def true_surface(u, x):
    return x * (2.0 + 9.0 * u - 3.0 * u**2) + x**2 * (1.0 + 4.0 * u)


def test_coefficients_lie_within_their_standard_errors():
    truth = {(0, 1): 2.0, (1, 1): 9.0, (2, 1): -3.0, (0, 2): 1.0, (1, 2): 4.0, (0, 3): 0.0}
    rng, pulls = np.random.default_rng(3), []
    for _ in range(150):
        y = true_surface(STORED - 0.45, READ) + 0.05 * rng.standard_normal(STORED.shape)
        fit = fit_surface(STORED, READ, y, offset_v=0.45)
        pulls += [(fit.coefficients[term] - c) / fit.standard_errors[term] for term, c in truth.items()]
    assert abs(np.mean(pulls)) < 0.15 and 0.9 < np.std(pulls) < 1.1


def test_a_curve_in_noise_lies_within_its_standard_errors():
    stored, truth = np.linspace(0, 0.9, 60), np.array([0.5, 13.6, -2.6, 46.0])
    rng, pulls = np.random.default_rng(4), []
    for _ in range(200):
        y = np.polynomial.polynomial.polyval(stored - 0.45, truth) + 0.1 * rng.standard_normal(stored.shape)
        fit = fit_transfer(stored, y, offset_v=0.45)
        pulls.append((np.array(fit.coefficients) - truth) / np.array(fit.standard_errors))
    assert np.abs(np.mean(pulls, axis=0)).max() < 0.25 and 0.85 < np.std(pulls) < 1.15


def test_weights_take_the_noisy_points_back():
    stored, rng = np.linspace(0, 0.9, 40), np.random.default_rng(5)
    y = 3 * (stored - 0.45)
    y[::2] += rng.standard_normal(20)
    fit = fit_transfer(stored, y, offset_v=0.45, degree=1, weights=np.where(np.arange(40) % 2, 1.0, 0.0))
    np.testing.assert_allclose(fit.coefficients, [0.0, 3.0], atol=1e-12)


def test_a_dropped_point_counts_for_nothing():
    stored = np.linspace(0, 0.9, 40)
    y = 3 * (stored - 0.45) + 0.01 * np.sin(90 * stored)
    far, wrong = np.append(stored, 1.8), np.append(y, 99.0)
    weights = np.append(np.ones(40), 0.0)
    kept = fit_transfer(far, wrong, offset_v=0.45, n_levels=8, weights=weights)
    alone = fit_transfer(stored, y, offset_v=0.45, n_levels=8)
    for name in ("coefficients", "standard_errors", "max_error", "linear_slope", "level_step", "stored_range_v"):
        np.testing.assert_allclose(getattr(kept, name), getattr(alone, name), rtol=1e-9, err_msg=name)
    with pytest.raises(CircuitError, match="data end at 0 and 0.9 V"):
        kept(1.8)
    read = np.tile([0.4, 0.7, 1.0], 14)[:41]
    surface = fit_surface(far, read, wrong, offset_v=0.45, weights=weights)
    assert surface.stored_range_v == pytest.approx((0.0, 0.9)) and len(surface.residuals) == 40
    with pytest.raises(CircuitError, match="weights of shape"):
        fit_surface(far, read, wrong, offset_v=0.45, weights=-weights)


def test_zero_pulse_gives_zero_charge():
    fit = fit_surface(STORED, READ, true_surface(STORED - 0.45, READ), offset_v=0.45)
    np.testing.assert_array_equal(fit(np.linspace(0, 0.9, 5), 0.0), 0.0)


@pytest.mark.parametrize("sign", [1, -1])
def test_monotone_where_the_data_is(sign):
    stored = np.linspace(0.0, 0.9, 13)
    y = sign * (np.tanh(14 * (stored - 0.3)) + 0.01 * np.cos(60 * stored))
    free = fit_transfer(stored, y, offset_v=0.45, degree=7)
    held = fit_transfer(stored, y, offset_v=0.45, degree=7, monotone=True)
    grid = np.linspace(0, 0.9, 400)
    assert (sign * np.diff(free(grid))).min() < -1e-4
    assert (sign * np.diff(held(grid))).min() > -1e-4
    assert free.rms < held.rms < 3 * free.rms + 0.1
    assert np.isnan(held.standard_errors).all()


def test_monotone_surface():
    y = READ * np.tanh(14 * (STORED - 0.3))
    held = fit_surface(STORED, READ, y, offset_v=0.45, degree=7, read_degree=1, monotone=True)
    for read in (0.3, 0.7, 1.2):
        assert np.diff(held(np.linspace(0, 0.9, 200), read)).min() > -1e-4


def test_cross_validation_finds_the_degree():
    stored, rng = np.linspace(0, 0.9, 80), np.random.default_rng(6)
    u = stored - 0.45
    degree, errors = choose_degree(stored, u + 30 * u**3 + 0.02 * rng.standard_normal(80), offset_v=0.45)
    assert degree == 3 and errors[1] > 5 * errors[3]
    assert errors[3] == pytest.approx(0.02, rel=0.3)
    few = np.linspace(0, 0.9, 4)
    assert choose_degree(few, few - 0.45, offset_v=0.45)[0] == 1, "fewer points than folds"


def test_extrapolation_is_refused():
    fit = fit_surface(STORED, READ, true_surface(STORED - 0.45, READ), offset_v=0.45)
    with pytest.raises(CircuitError, match="the data end at 0 and 0.9"):
        fit(1.2, 0.9)
    with pytest.raises(CircuitError, match="reads from 2 to 2"):
        fit.at(2.0)
    curve = fit_transfer(np.linspace(0.2, 0.9, 20), np.linspace(0.2, 0.9, 20), offset_v=0.45)
    with pytest.raises(CircuitError, match="store less"):
        curve.to_cell(0.9)
    assert curve.to_cell(0.9, lowest_v=0.2).supply_v == 0.9
    with pytest.raises(CircuitError, match="runs away"):
        curve([0.5, 1.0])


def test_a_poor_fit_says_by_how_many_lsb():
    with pytest.warns(CircuitWarning, match=r"by up to \d\.\d\d LSB .*higher degree"):
        fit_transfer(np.linspace(0, 0.9, 30), lambda u: u**3, offset_v=0.45, degree=1, n_levels=8)
    with pytest.warns(CircuitWarning, match="LSB"):
        fit_surface(STORED, READ, READ * (STORED - 0.45) ** 3, offset_v=0.45, degree=2, n_levels=8)


@pytest.mark.parametrize(
    ("stored", "read", "charge", "kwargs", "message"),
    [
        ([0.1, 0.2], [1.0], [1.0, 2.0], {}, "equal length"),
        ([0.1, 0.2], [1.0, float("nan")], [1.0, 2.0], {}, "row 1 of 2"),
        ([0.1, 0.2, 0.3], [1.0, 1.0, 1.0], [1.0, 2.0, 3.0], {}, "determine"),
        ([0.1, 0.2, 0.3], [1.0, 1.0, 1.0], [1.0, 2.0, 3.0], {"degree": 0}, "degree=0"),
        ([0.1, 0.2, 0.3], [1.0, 1.0, 1.0], [1.0, 2.0, 3.0], {"degree": 1}, "no term depends"),
    ],
)
def test_surfaces_that_cannot_be_fitted(stored, read, charge, kwargs, message):
    with pytest.raises(CircuitError, match=message):
        fit_surface(stored, read, charge, offset_v=0.2, **kwargs)
