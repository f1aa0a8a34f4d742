"""The transistor against its limits, written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from aimc.circuit.physics.transistor import BOLTZMANN, ELEMENTARY_CHARGE, Transistor, thermal_voltage
from aimc.hardware import ConfigError

SQUARE = Transistor(
    width_m=1e-6, length_m=0.5e-6, threshold_v=0.45, slope_factor=1.35, mobility_m2_v_s=0.03, oxide_f_m2=0.02
)
FILM = replace(SQUARE, has_body=False)
U_T = thermal_voltage(300.0)
BETA = 0.03 * 0.02 * 2  # μ·C_ox·W/L


def test_thermal_voltage():
    assert pytest.approx(0.025852, rel=1e-4) == U_T


@pytest.mark.parametrize("transistor", [SQUARE, FILM], ids=["body", "film"])
def test_weak_inversion_slope(transistor):
    gate = np.array([0.05, 0.10])
    decades = np.diff(np.log10(transistor.current(gate, 0.0, 0.5)))[0]
    assert 0.05 / decades == pytest.approx(1.35 * U_T * math.log(10), rel=0.02)


def test_weak_inversion_against_the_drain_is_a_diode():
    voltages = np.array([0.5, 1.0, 2.0, 5.0]) * U_T
    currents = SQUARE.current(0.1, 0.0, voltages)
    np.testing.assert_allclose(currents / SQUARE.current(0.1, 0.0, 1.0), 1 - np.exp(-voltages / U_T), rtol=0.02)


def test_square_law_with_a_body():
    # 40 U_T of overdrive: β/(2n)·(V_G − V_T)²
    gate = 0.45 + np.array([1.0, 1.5, 2.0])
    np.testing.assert_allclose(SQUARE.current(gate, 0.0, 5.0), BETA / 2 / 1.35 * (gate - 0.45) ** 2, rtol=0.02)


def test_square_law_of_a_film():
    gate = 0.45 + np.array([1.0, 1.5, 2.0])
    np.testing.assert_allclose(FILM.current(gate, 0.0, 5.0), BETA / 2 * (gate - 0.45) ** 2, rtol=0.02)


def test_linear_region():
    # β·(V_G − V_T)·V_DS for a small drain voltage
    assert FILM.current(1.95, 0.0, 1e-3) == pytest.approx(BETA * 1.5 * 1e-3, rel=0.02)


def test_power_law():
    film = replace(FILM, power=2.6, specific_current_a=1e-8)
    gate = 0.45 + np.array([1.0, 2.0])
    assert np.diff(np.log(film.current(gate, 0.0, 10.0)))[0] / np.log(2) == pytest.approx(2.6, rel=0.02)
    weak = np.diff(np.log10(film.current(np.array([0.0, 0.05]), 0.0, 1.0)))[0]
    assert 0.05 / weak == pytest.approx(1.35 * U_T * math.log(10), rel=0.02)


@pytest.mark.parametrize("modulation", [0.0, 0.1])
@pytest.mark.parametrize("polarity", ["n", "p"])
@pytest.mark.parametrize("has_body", [True, False])
def test_continuous_monotone_and_symmetric(modulation, polarity, has_body):
    transistor = replace(SQUARE, channel_length_modulation_per_v=modulation, polarity=polarity, has_body=has_body)
    sign = 1 if polarity == "n" else -1
    drain = np.linspace(-1.2, 1.2, 4801) + 1.2  # about a source of 1.2 V
    for gate in np.linspace(-0.5, 3.0, 15):
        current = transistor.current(sign * gate, sign * 1.2, sign * drain)
        steps = sign * np.diff(current)
        assert (steps >= 0).all()  # monotone in the drain voltage
        assert (
            steps.max() <= 0.025 * np.abs(current).max()
        )  # half a millivolt changes it by at most exp(0.5 mV / U_T): no jump
        swapped = transistor.current(sign * gate, sign * drain, sign * 1.2)
        np.testing.assert_array_equal(swapped, -current)
    gates = np.linspace(-1, 3, 801)
    assert (sign * np.diff(transistor.current(sign * gates, 0.0, sign * 0.6)) > 0).all()
    assert transistor.current(sign * 1.0, sign * 0.3, sign * 0.3) == 0.0


def test_slope_is_continuous_at_zero_drain_voltage():
    transistor = replace(SQUARE, channel_length_modulation_per_v=0.2)
    _, left = transistor.conductances(1.0, 0.2, 0.2 - 1e-9)
    _, right = transistor.conductances(1.0, 0.2, 0.2 + 1e-9)
    assert left == pytest.approx(right, rel=1e-6)


@pytest.mark.parametrize("polarity", ["n", "p"])
@pytest.mark.parametrize("power", [2.0, 2.7])
def test_conductances_are_the_derivatives(polarity, power):
    transistor = replace(SQUARE, polarity=polarity, power=power, channel_length_modulation_per_v=0.1)
    sign, h = (1 if polarity == "n" else -1), 1e-6
    for gate, source, drain in [(0.2, 0.0, 0.5), (0.6, 0.0, 0.1), (1.2, 0.1, 0.9), (1.2, 0.5, 0.1)]:
        g, s, d = sign * gate, sign * source, sign * drain
        of_gate, of_drain = transistor.conductances(g, s, d)
        assert of_gate == pytest.approx(
            (transistor.current(g + h, s, d) - transistor.current(g - h, s, d)) / (2 * h), rel=1e-5
        )
        assert of_drain == pytest.approx(
            (transistor.current(g, s, d + h) - transistor.current(g, s, d - h)) / (2 * h), rel=1e-5
        )


@pytest.mark.parametrize("transistor", [SQUARE, FILM], ids=["body", "film"])
def test_noise_is_shot_noise_in_weak_and_thermal_noise_in_strong_inversion(transistor):
    share = 1.0 if transistor.has_body else 1 / 1.35  # of a film, whose slope factor comes of traps
    weak = transistor.current(0.1, 0.0, 0.5)
    assert transistor.noise_density(0.1, 0.0, 0.5) == pytest.approx(2 * ELEMENTARY_CHARGE * weak * share, rel=0.02)
    gate = 0.45 + 2.5
    source_conductance = BETA * (gate - 0.45)
    strong = 4 * BOLTZMANN * 300 * (2 / 3) * source_conductance
    assert transistor.noise_density(gate, 0.0, 5.0) == pytest.approx(strong, rel=0.03)


@pytest.mark.parametrize("power", [2.0, 2.4])
@pytest.mark.parametrize("has_body", [True, False])
def test_noise_without_a_drain_voltage_is_that_of_a_resistor(power, has_body):
    transistor = replace(SQUARE, power=power, has_body=has_body)
    for gate in (0.1, 0.45, 0.9, 3.0):
        _, conductance = transistor.conductances(gate, 0.0, 0.0)
        assert transistor.noise_density(gate, 0.0, 0.0) == pytest.approx(4 * BOLTZMANN * 300 * conductance, rel=1e-9)


def test_temperature_lowers_threshold_and_mobility():
    hot = replace(SQUARE, threshold_drift_v_k=1e-3, mobility_temperature_exponent=-1.5)
    assert hot.current(0.2, 0.0, 0.5, temperature_k=360) > 3 * hot.current(0.2, 0.0, 0.5)
    assert hot.current(3.0, 0.0, 3.0, temperature_k=360) < hot.current(3.0, 0.0, 3.0)


def test_specific_current_in_place_of_mobility():
    n_ut2 = 2 * 1.35 * 0.03 * 0.02 * U_T**2
    given = replace(SQUARE, specific_current_a=n_ut2)
    assert given.current(0.7, 0.0, 0.5) == pytest.approx(SQUARE.current(0.7, 0.0, 0.5), rel=1e-12)


def test_pelgrom():
    transistor = replace(SQUARE, pelgrom_threshold_v_m=2e-9, pelgrom_gain_m=1e-8)
    assert transistor.threshold_spread_v == pytest.approx(2e-9 / math.sqrt(0.5e-12))
    assert transistor.gain_spread == pytest.approx(1e-8 / math.sqrt(0.5e-12))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width_m": -1e-6}, "width_m=-1e-06"),
        ({"length_m": 0.0}, "length_m=0.0"),
        ({"slope_factor": 0.8}, "slope_factor=0.8"),
        ({"polarity": "x"}, "polarity='x'"),
        ({"power": 0.5}, "power=0.5"),
        ({"specific_current_a": -1.0}, "specific_current_a"),
        ({"pelgrom_gain_m": -1.0}, "pelgrom_gain_m"),
        ({"threshold_v": float("nan")}, "threshold_v=nan"),
    ],
)
def test_what_no_transistor_is(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(SQUARE, **change)
