"""Units and sizes of a gain cell, against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from aimc.circuit import (
    CircuitError,
    oxide_cell,
    retention,
    settling_error,
    silicon_cell,
    tau_spread,
    write_time_constant,
)
from aimc.circuit.physics.gain_cell import GainCell
from aimc.circuit.physics.storage import channel_leakage, leakage_current
from aimc.circuit.physics.transistor import ELEMENTARY_CHARGE, Transistor
from aimc.hardware import ConfigError

WIRE = Transistor(width_m=1e-7, length_m=1e-7, threshold_v=0.3, oxide_f_m2=0.01)


def film_cell(**changes) -> GainCell:
    """Films without body, whose square law can be written down: β = 1e-3·0.02·(W/L)."""
    film = Transistor(
        width_m=1e-7,
        length_m=1e-6,
        threshold_v=-2.0,
        slope_factor=1.0,
        mobility_m2_v_s=1e-3,
        oxide_f_m2=0.02,
        has_body=False,
    )
    values = {
        "supply_v": 1.0,
        "capacitance_f": 4e-15,
        "write": WIRE,
        "read_n": film,
        "read_v": 10.0,
        "pulse_max_s": 10e-9,
    }
    values |= {"write_pulse_s": 5e-9, "write_gate_on_v": 2.5, "write_gate_off_v": -5.0}
    return GainCell(**(values | changes))


@pytest.mark.parametrize(
    ("capacitance_f", "temperature_k", "by_hand_v"),
    [
        (1e-15, 300.0, 2.0351e-3),  # √(1.380649e-23·300/1e-15) = √4.14195e-6
        (6e-15, 300.0, 0.83085e-3),  # √6.90325e-7
        (20e-15, 400.0, 0.52548e-3),  # √2.76130e-7
    ],
)
def test_write_noise_is_kt_over_c(capacitance_f, temperature_k, by_hand_v):
    cell = replace(silicon_cell(), capacitance_f=max(capacitance_f, 6e-15), temperature_k=temperature_k)
    if capacitance_f < 6e-15:
        cell = film_cell(
            capacitance_f=capacitance_f, read_n=replace(film_cell().read_n, length_m=2e-7), temperature_k=temperature_k
        )
    assert cell.write_noise() == pytest.approx(by_hand_v, rel=1e-4)


@pytest.mark.parametrize(
    ("capacitance_f", "conductance_s", "by_hand_s"),
    [(6e-15, 1.2e-12, 5e-3), (2.5e-15, 1e-12, 2.5e-3), (10e-15, 2e-15, 5.0)],  # τ = C/g
)
def test_retention_of_a_conductance(capacitance_f, conductance_s, by_hand_s):
    cell = film_cell(capacitance_f=capacitance_f, leak_conductance_s=conductance_s, leak_target_v=0.25)
    held = retention(cell, by_hand_s)
    assert held.fit.tau_s == pytest.approx(by_hand_s, rel=1e-4)
    assert held.fit.target_v == pytest.approx(0.25, abs=1e-5)
    assert held.fit.max_error_v < 1e-5
    np.testing.assert_allclose(held.traces_v[:, -1], 0.25 + (held.traces_v[:, 0] - 0.25) / math.e, atol=1e-6)


def test_retention_of_a_channel_in_weak_inversion_is_a_constant_current():
    # a channel far from equilibrium saturates: the voltage falls in a straight line, ΔV = I·t/C
    cell = film_cell(write=replace(WIRE, threshold_v=0.3), write_gate_off_v=0.0, hold_v=0.0)
    current = float(leakage_current(cell, 1.0))
    assert current == pytest.approx(float(cell.write.specific_current() * math.exp(-0.3 / (1.3 * 0.0258520))), rel=0.02)
    held = retention(cell, 0.2 * cell.capacitance_f / current)
    assert held.traces_v[-1, 0] - held.traces_v[-1, -1] == pytest.approx(0.2, rel=1e-3)
    assert 0 <= held.fit.target_v <= cell.supply_v  # as the emulator needs it
    assert held.fit.max_error_v > 0.01  # a straight line is no exponential, and the fit says so


@pytest.mark.parametrize(
    ("width_m", "width_s", "stored_v", "by_hand_c"),
    [
        # Q = t·β/2·((V − V_T)² − (V_o − V_T)²), V_T = −2, V_o = 0.5, β = 2e-5·W/L
        (1e-7, 10e-9, 1.0, 10e-9 * 1e-6 * (9.0 - 6.25)),
        (2e-7, 4e-9, 0.0, 4e-9 * 2e-6 * (4.0 - 6.25)),
        (0.5e-7, 1e-9, 0.75, 1e-9 * 0.5e-6 * (7.5625 - 6.25)),
    ],
)
def test_read_charge(width_m, width_s, stored_v, by_hand_c):
    cell = film_cell(read_n=replace(film_cell().read_n, width_m=width_m))
    assert float(cell.read_charge(stored_v, width_s)) == pytest.approx(by_hand_c, rel=0.02)


def test_a_read_line_takes_one_time_constant_from_a_long_pulse():
    cell = film_cell(read_line_time_s=1e-10)
    assert float(cell.effective_width(10e-9)) == pytest.approx(10e-9 - 1e-10, rel=1e-6)
    assert float(cell.effective_width(1e-13)) == pytest.approx(1e-26 / 2 / 1e-10, rel=1e-3)  # t²/2τ


@pytest.mark.parametrize("cell", [silicon_cell(), oxide_cell()], ids=["silicon", "oxide"])
def test_technologies(cell):
    stored = cell.stored_grid(901)
    assert float(cell.read_current(cell.rest_v)) == pytest.approx(0.0, abs=1e-9)
    assert (np.diff(cell.read_current(stored)) > 0).all()
    np.testing.assert_array_equal(cell.read_current(stored, 0.0), 0.0)  # no pulse, no charge
    assert (np.diff(cell.read_current(cell.supply_v, np.linspace(0, cell.read_v, 20))) > 0).all()
    slope = np.gradient(cell.read_current(stored), stored)[1:-1]
    np.testing.assert_allclose(cell.transconductance(stored)[1:-1], slope, rtol=0.01)
    assert settling_error(cell) < cell.supply_v / 7 / 10


def test_silicon_cell_is_near_the_published_one():
    cell = silicon_cell()
    assert cell.mean_read_energy() == pytest.approx(1120e-12 / (1024 * 64), rel=0.1)
    held = retention(cell, 1024 * 12 * 65e-9).fit
    assert held.tau_s == pytest.approx(5e-3, rel=0.01) and held.target_v == pytest.approx(0.45, abs=1e-3)


def test_write_settles_as_the_time_constant_says():
    slow = replace(silicon_cell(), write_gate_on_v=1.5)
    tau = write_time_constant(slow, 0.9)
    late, later = (settling_error(replace(slow, write_pulse_s=t)) for t in (8 * tau, 10 * tau))
    assert math.log(late / later) / 2 == pytest.approx(1.0, rel=0.05)
    assert settling_error(replace(slow, write_pulse_s=1e-13)) > 0.5


def test_write_energy():
    cell = film_cell(line_f=1e-15)
    assert cell.write_energy() == pytest.approx(5e-15 * 1.0 / 6 + 0.01 * 1e-14 * 7.5**2)


def test_read_noise_of_a_weak_current_is_poisson():
    # σ² = e·Q of the cell's current
    cell = film_cell(read_n=replace(film_cell().read_n, threshold_v=1.3))
    sink, _ = cell.branch_currents(0.8)
    expected = math.sqrt(ELEMENTARY_CHARGE * sink * 10e-9)
    assert float(cell.read_noise_charge(0.8)) == pytest.approx(expected, rel=0.02)


def test_mismatch_of_a_single_transistor():
    matched = film_cell()
    assert matched.mismatch() == (0.0, 0.0) and tau_spread(matched) == 0
    spread = film_cell(read_n=replace(matched.read_n, pelgrom_threshold_v_m=3e-9, pelgrom_gain_m=0.0))
    assert spread.mismatch() == pytest.approx(
        (0.0, 3e-9 / math.sqrt(1e-13)), abs=1e-9
    )  # a shifted threshold is a shifted voltage
    factors = film_cell(read_n=replace(matched.read_n, pelgrom_gain_m=1e-8))
    sink, _ = factors.branch_currents(0.8)
    assert float(factors.current_spread(0.8)) == pytest.approx(float(sink) * 1e-8 / math.sqrt(1e-13))


@pytest.mark.parametrize("cell", [silicon_cell(), oxide_cell()], ids=["silicon", "oxide"])
def test_mismatch_against_drawn_transistors(cell):
    """The circuit's own spread is that of drawn transistors everywhere; the emulator's two numbers follow where cells
    carry current."""
    rng, stored, currents = np.random.default_rng(0), np.linspace(0, cell.supply_v, 5), []

    def drawn(transistor):
        threshold = transistor.threshold_v + transistor.threshold_spread_v * rng.standard_normal()
        mobility = transistor.mobility_m2_v_s * max(1 + transistor.gain_spread * rng.standard_normal(), 0.1)
        return replace(transistor, threshold_v=threshold, mobility_m2_v_s=mobility)

    _, reference = cell.branch_currents(stored)
    for _ in range(1500):
        other = replace(cell, read_n=drawn(cell.read_n), read_p=None if cell.read_p is None else drawn(cell.read_p))
        sink, source = other.branch_currents(stored)
        currents.append(sink - (reference if cell.read_p is None else source))
    spread = np.std(currents, axis=0)
    np.testing.assert_allclose(
        cell.current_spread(stored), spread, rtol=0.1, atol=0.01 * spread.max()
    )  # to first order in the thresholds
    gain, offset_v = cell.mismatch()
    emulated = np.hypot(gain * cell.read_current(stored), offset_v * cell.transconductance(stored))
    np.testing.assert_allclose(emulated, spread, atol=0.25 * spread.max())


def test_spread_of_retention_against_drawn_transistors():
    write = replace(WIRE, threshold_v=0.25, pelgrom_threshold_v_m=2e-9)
    cell, rng = film_cell(write=write, write_gate_off_v=-0.3, hold_v=0.5), np.random.default_rng(1)
    drawn = [
        float(
            np.abs(
                channel_leakage(
                    replace(cell, write=replace(write, threshold_v=0.25 + write.threshold_spread_v * x)), 1.0
                )
            )
        )
        for x in rng.standard_normal(3000)
    ]
    assert np.std(np.log(drawn)) == pytest.approx(tau_spread(cell), rel=0.06)
    half = replace(cell, leak_conductance_s=float(np.abs(channel_leakage(cell, [0.0, 1.0])).sum()))
    assert tau_spread(half) == pytest.approx(tau_spread(cell) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"supply_v": -0.9}, "supply_v=-0.9"),
        ({"capacitance_f": 1e-18}, "gates of the read stage alone"),
        ({"pulse_max_s": 0.0}, "pulse_max_s=0.0"),
        ({"leak_conductance_s": -1e-12}, "leak_conductance_s"),
        ({"write_gate_on_v": float("inf")}, "write_gate_on_v=inf"),
        ({"read_p": WIRE}, "read_p.polarity='n'"),
        ({"read_n": replace(WIRE, polarity="p")}, "read_n.polarity='p'"),
    ],
)
def test_what_no_cell_is(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(silicon_cell(), **change)


def test_a_cell_that_does_not_leak_has_no_time_constant():
    with pytest.raises(CircuitError, match="no voltage changes"):
        retention(film_cell(), 1e-6)
