from dataclasses import replace

import numpy as np
import pytest

from aimc.circuit import CircuitError, Transistor, fit_transistor, read_sweep
from tests.circuit.curves.test_sweep import IGZO, igzo

TRUE = Transistor(
    width_m=1e-6,
    length_m=0.5e-6,
    threshold_v=0.31,
    slope_factor=1.45,
    specific_current_a=3e-8,
    power=2.3,
    has_body=False,
)
GATE, DRAIN = (x.ravel() for x in np.meshgrid(np.linspace(-0.2, 1.5, 35), [0.05, 0.5, 1.0]))


def test_a_transistor_is_recovered():
    start = replace(TRUE, threshold_v=0.6, slope_factor=1.1, specific_current_a=1e-6, power=2.0)
    found = fit_transistor(GATE, DRAIN, TRUE.current(GATE, 0.0, DRAIN), start=start)
    for name in ("threshold_v", "slope_factor", "specific_current_a", "power"):
        assert getattr(found.transistor, name) == pytest.approx(getattr(TRUE, name), rel=1e-4), name
    assert found.rms_decades < 1e-5


def test_a_p_type_is_told_by_its_magnitudes():
    true = replace(TRUE, polarity="p")
    start = replace(true, threshold_v=0.6, slope_factor=1.1, specific_current_a=1e-6, power=2.0)
    found = fit_transistor(GATE, DRAIN, np.abs(true.current(-GATE, 0.0, -DRAIN)), start=start)
    for name in ("threshold_v", "slope_factor", "specific_current_a", "power"):
        assert getattr(found.transistor, name) == pytest.approx(getattr(TRUE, name), rel=1e-4), name


def test_parameters_are_those_of_the_reference_temperature():
    current = TRUE.current(GATE, 0.0, DRAIN, temperature_k=400.0)
    found = fit_transistor(
        GATE, DRAIN, current, start=replace(TRUE, threshold_v=0.5), free=("threshold_v",), temperature_k=400.0
    )
    assert found.transistor.threshold_v == pytest.approx(0.31, abs=1e-6)


def test_noise_is_averaged():
    rng = np.random.default_rng(0)
    current = TRUE.current(GATE, 0.0, DRAIN) * np.exp(0.1 * rng.standard_normal(GATE.shape))
    found = fit_transistor(
        GATE, DRAIN, current, start=replace(TRUE, threshold_v=0.5, specific_current_a=1e-7, power=2.0)
    )
    assert found.transistor.threshold_v == pytest.approx(0.31, abs=0.03)
    assert found.rms_decades == pytest.approx(0.1 / np.log(10), rel=0.2)


@igzo
def test_igzo_simulation():
    """The v1.1 simulated transfer curves over six decades, by one thin-film transistor."""
    sweep = read_sweep(
        IGZO / "results" / "spice_idvg_v11.csv",
        stored="Vg_V",
        output={"Id_Vd01_A_spice": 0.1, "Id_Vd1_A_spice": 1.0},
        sign=-1,
    )
    seen = sweep.output > 1e-12
    start = Transistor(width_m=157e-9, length_m=55e-9, threshold_v=0.4, slope_factor=1.8, has_body=False)
    found = fit_transistor(sweep.stored_v[seen], sweep.read[seen], sweep.output[seen], start=start)
    assert found.rms_decades < 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"current_a": np.where(np.arange(105) == 7, -1.0, 1e-6)}, "row 7"),
        ({"drain_v": DRAIN[:5]}, "equal length"),
        ({"free": ("width_m",)}, "width_m cannot be told"),
        ({"gate_v": GATE[:3], "drain_v": DRAIN[:3], "current_a": np.ones(3)}, "3 points for 4 parameters"),
    ],
)
def test_curves_that_cannot_be_fitted(change, message):
    with pytest.raises(CircuitError, match=message):
        fit_transistor(**({"gate_v": GATE, "drain_v": DRAIN, "current_a": np.full(105, 1e-6), "start": TRUE} | change))
