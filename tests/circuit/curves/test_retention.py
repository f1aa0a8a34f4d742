import numpy as np
import pytest

from aimc.circuit import CircuitError, fit_retention

TIMES = np.linspace(0, 3e-3, 61)
STARTS = np.array([0.0, 0.3, 0.9])[:, None]


def test_an_exponential_is_recovered():
    fit = fit_retention(TIMES, 0.4 + (STARTS - 0.4) * np.exp(-TIMES / 5e-3), n_levels=8, span_v=0.9)
    assert (fit.tau_s, fit.target_v, fit.stretch) == (pytest.approx(5e-3, rel=1e-6), pytest.approx(0.4, abs=1e-7), 1.0)
    assert fit.max_error_v < 1e-8 and fit.max_error_lsb < 1e-6


def test_one_trace_with_a_known_target():
    fit = fit_retention(TIMES, 0.45 + 0.3 * np.exp(-TIMES / 20e-3), target_v=0.45)
    assert fit.tau_s == pytest.approx(20e-3, rel=1e-6) and fit.max_error_lsb is None


def test_a_stretched_exponential_is_recovered():
    traces = 0.2 + (STARTS - 0.2) * np.exp(-((TIMES / 2e-3) ** 0.6))
    fit = fit_retention(TIMES, traces, stretched=True)
    assert (fit.tau_s, fit.stretch, fit.target_v) == (
        pytest.approx(2e-3, rel=1e-4),
        pytest.approx(0.6, rel=1e-4),
        pytest.approx(0.2, abs=1e-5),
    )
    assert fit_retention(TIMES, traces).rms_v > 1e-3  # a plain one does not follow


def test_noise_moves_tau_within_its_standard_error():
    rng = np.random.default_rng(0)
    clean = 0.4 + (STARTS - 0.4) * np.exp(-TIMES / 5e-3)
    fits = [fit_retention(TIMES, clean + 2e-3 * rng.standard_normal(clean.shape)) for _ in range(200)]
    pulls = np.array([(fit.tau_s - 5e-3) / fit.tau_error_s for fit in fits])
    assert abs(pulls.mean()) < 0.25 and 0.85 < pulls.std() < 1.15


@pytest.mark.parametrize(
    ("times", "traces", "message"),
    [
        ([0, 1, 2, 3], [1, 2, 3], "one voltage a time"),
        ([0, 1, 2], [1, 2, 3], "at least 4"),
        ([0, 1, 1, 3], [4, 3, 2, 1], "row 2"),
        ([-1, 1, 2, 3], [4, 3, 2, 1], "row 0"),
        ([0, 1, 2, 3], [4, 3, float("nan"), 1], "row 2 is not finite"),
        ([0, 1, 2, 3], [1, 1, 1, 1], "no trace changes"),
    ],
)
def test_traces_that_cannot_be_fitted(times, traces, message):
    with pytest.raises(CircuitError, match=message):
        fit_retention(times, traces)
