"""The emulator on a circuit's hardware against the circuit itself."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from aimc import Chip, gain_cell_attention, presets
from aimc.circuit import (
    CircuitError,
    CircuitWarning,
    FullScales,
    fit_retention,
    fit_transfer,
    noise_budget,
    oxide_cell,
    retention,
    silicon_cell,
    to_hardware,
)
from aimc.circuit.hardware import pulse_nonlinearity, signal_unit
from aimc.hardware import ConfigError, Hardware, Noise

CELL = silicon_cell()
UNIT_C = signal_unit(CELL, presets.gain_cell_cmos())


def single_cell(stored_v: float, *, pulse: float = 1.0, n_draws: int = 1, **changes) -> torch.Tensor:
    """Charge in coulomb that the first array gives for one cell of the circuit; D = 1, one draw a batch row."""
    hardware = to_hardware(CELL, degree=9)
    off = {
        "input_dac": replace(hardware.input_dac, n_levels=None, inl=0.0),
        "storage_dac": replace(hardware.storage_dac, n_levels=None),
    }
    # a full scale at which neither array clips
    array = replace(hardware.array, saturation_qk=1e3, saturation_av=1e3)
    hardware = replace(
        hardware, array=array, **({"noise": Noise(), "leakage": replace(hardware.leakage, tau_s=None)} | off | changes)
    )
    q, k = (
        torch.full((n_draws, 1, 1, 1), pulse, dtype=torch.float64),
        torch.full((n_draws, 1, 1, 1), stored_v, dtype=torch.float64),
    )
    _, details = gain_cell_attention(
        q, k, k, hardware, chip=Chip(seed=0), generator=torch.Generator().manual_seed(0), details=True
    )
    return details.S.flatten() * UNIT_C


@pytest.mark.parametrize("stored_v", [0.0, 0.2, 0.45, 0.7, 0.9])
@pytest.mark.parametrize("pulse", [0.25, 1.0])
def test_charge_of_one_cell(stored_v, pulse):
    ideal = replace(CELL, read_line_time_s=0.0)
    expected = float(ideal.read_charge(stored_v, pulse * CELL.pulse_max_s))
    scale = float(CELL.read_charge(CELL.supply_v))
    # the emulator's charge is that of the longest pulse, edges included, in proportion to the width
    edge = float(CELL.effective_width(CELL.pulse_max_s)) / CELL.pulse_max_s
    assert float(single_cell(stored_v, pulse=pulse)) == pytest.approx(expected * edge, abs=1e-3 * scale)


def test_silicon_cell_is_the_published_polynomial():
    cell = to_hardware(CELL).cell
    np.testing.assert_allclose(cell.coefficients[1::2], presets.CMOS_COEFFICIENTS[1::2], rtol=0.02)
    assert cell.surrogate_slope == pytest.approx(presets.LINEAR_SLOPE, rel=0.01)


def test_write_noise_in_the_emulator_is_kt_over_c():
    charges = single_cell(0.6, n_draws=20000, noise=Noise(write_v=CELL.write_noise()))
    expected = CELL.write_noise() * float(CELL.transconductance(0.6)) * float(CELL.effective_width(CELL.pulse_max_s))
    assert float(charges.std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * 20000) + 0.01)


def chips(n_chips: int, stored_v: float, **noise: float) -> np.ndarray:
    """Charges in coulomb of single cells at one voltage, all slots and features of a few chips."""
    hardware = to_hardware(CELL, degree=9)
    hardware = replace(hardware, noise=Noise(**noise), leakage=replace(hardware.leakage, tau_s=None), backend="eager")
    hardware = replace(
        hardware,
        storage_dac=replace(hardware.storage_dac, n_levels=None),
        array=replace(hardware.array, saturation_qk=1e3),
    )
    values = []
    for seed in range(n_chips):
        # one feature is pulsed: S is then the charge of one cell a slot
        q = torch.zeros(1, 4, 256, 8, dtype=torch.float64)
        q[..., 0] = 1.0
        k = torch.full_like(q, stored_v)
        _, details = gain_cell_attention(q, k, k, hardware, chip=Chip(seed=seed), details=True)
        values.append(details.S[0, :, -1].flatten().numpy() * UNIT_C)
    return np.concatenate(values)


@pytest.mark.parametrize("stored_v", [0.0, 0.45, 0.9])
def test_mismatch_in_the_emulator_is_the_circuits(stored_v):
    noise, width = to_hardware(CELL).noise, float(CELL.effective_width(CELL.pulse_max_s))
    charges = chips(12, stored_v, mismatch_offset_v=noise.mismatch_offset_v, mismatch_gain=noise.mismatch_gain)
    spread = CELL.current_spread(np.array([0.0, stored_v, 0.9])) * width
    assert charges.std() == pytest.approx(spread[1], abs=0.25 * spread.max())


@pytest.mark.parametrize("array", ["qk", "av"])
def test_read_noise_in_the_emulator_is_the_circuits(array):
    hardware = to_hardware(CELL, head_size=32, mean_pulse=0.4)
    noise = Noise(**{f"read_{array}": getattr(hardware.noise, f"read_{array}")})
    clean = replace(hardware, noise=Noise(), readout=replace(hardware.readout, n_levels=None))
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.rand(4, 4, 64, 32, generator=generator, dtype=torch.float64) * 0.9 for _ in range(3))
    seen = [
        gain_cell_attention(q, k, v, h, generator=torch.Generator().manual_seed(2), details=True)[1]
        for h in (clean, replace(clean, noise=noise))
    ]
    a, b = (d.S[..., -1, :] if array == "qk" else d.A[..., -1, :, :] for d in seen)
    full_c = UNIT_C * (hardware.array.saturation_qk if array == "qk" else hardware.array.saturation_av)
    drawn_c = float((b - a).std()) * (UNIT_C if array == "qk" else full_c)
    n_cells = 32 if array == "qk" else hardware.array.rows
    by_cells = n_cells * 0.4 * np.mean(CELL.read_noise_charge(CELL.stored_grid()) ** 2)
    by_integrator = 1.380649e-23 * 300.0 * full_c / 0.45
    assert drawn_c == pytest.approx(math.sqrt(by_cells + by_integrator), rel=4 / math.sqrt(2 * a.numel()) + 0.01)


def test_leakage_of_the_emulator_is_the_circuits():
    """One token is written and read 64 token times long: its charge follows the circuit's voltage on its way to 0.1
    V."""
    leaky = replace(CELL, leak_conductance_s=2 * CELL.leak_conductance_s, leak_target_v=0.1)
    base = presets.gain_cell_cmos()
    base = replace(base, array=replace(base.array, window=64), leakage=replace(base.leakage, token_time_s=20e-6))
    hardware = to_hardware(leaky, base, degree=9)
    assert hardware.leakage.tau_s == pytest.approx(2.5e-3, rel=1e-3) and hardware.leakage.target_v == pytest.approx(
        0.1, abs=1e-3
    )
    ideal = {name: replace(getattr(hardware, name), n_levels=None) for name in ("input_dac", "storage_dac")}
    ideal["input_dac"] = replace(ideal["input_dac"], inl=0.0)
    hardware = replace(hardware, noise=Noise(), array=replace(hardware.array, saturation_qk=1e3), **ideal)
    q = torch.ones(1, 1, 64, 1, dtype=torch.float64)
    _, details = gain_cell_attention(q, 0.8 * q, 0.8 * q, hardware, details=True)
    seen = details.S[0, 0, :, 0].numpy() * signal_unit(leaky, base, degree=9)
    times = np.arange(64) * 20e-6
    voltages = 0.1 + 0.7 * np.exp(-times / 2.5e-3)
    np.testing.assert_allclose(seen, leaky.read_charge(voltages), atol=2e-3 * float(leaky.read_charge(0.9)))
    held = retention(leaky, times[-1], n_starts=10).traces_v[8]  # which starts at 0.8 V
    np.testing.assert_allclose(held[-1], voltages[-1], atol=1e-4)


def test_a_wider_transistor_matches_better_and_costs_more():
    def widened(times):
        return replace(
            CELL,
            capacitance_f=2e-14,
            **{n: replace(getattr(CELL, n), width_m=times * getattr(CELL, n).width_m) for n in ("read_n", "read_p")},
        )

    narrow, wide = widened(1.0), widened(4.0)
    assert wide.mean_read_energy() == pytest.approx(4 * narrow.mean_read_energy(), rel=1e-6)
    one, two = to_hardware(narrow).noise, to_hardware(wide).noise
    assert two.mismatch_offset_v == pytest.approx(one.mismatch_offset_v / 2, rel=1e-4)
    assert two.mismatch_gain == pytest.approx(one.mismatch_gain / 2, rel=1e-4)
    np.testing.assert_allclose(
        to_hardware(wide).cell.coefficients, to_hardware(narrow).cell.coefficients, rtol=1e-6, atol=1e-9
    )


def test_fixed_full_scales_let_a_stronger_cell_fill_them_sooner():
    scales = FullScales(qk_c=80 * UNIT_C, av_c=40 * UNIT_C)
    same = to_hardware(CELL, full_scales=scales)
    np.testing.assert_allclose(same.cell.coefficients, to_hardware(CELL).cell.coefficients, rtol=1e-9, atol=1e-12)
    strong = to_hardware(replace(CELL, pulse_max_s=2 * CELL.pulse_max_s, read_line_time_s=0.0), full_scales=scales)
    edge = float(CELL.effective_width(CELL.pulse_max_s)) / CELL.pulse_max_s
    np.testing.assert_allclose(
        strong.cell.coefficients[1::2], 2 / edge * np.array(same.cell.coefficients[1::2]), rtol=1e-9
    )
    assert (strong.array.saturation_qk, strong.array.saturation_av) == (80.0, pytest.approx(40.0))


def test_another_supply_moves_the_storage_range_along():
    hardware = to_hardware(oxide_cell())
    assert (hardware.storage_dac.v_min, hardware.storage_dac.v_max, hardware.cell.offset_v) == (0.0, 1.2, 0.6)
    assert hardware.storage_dac.n_levels == 8
    assert Hardware.from_dict(hardware.to_dict()) == hardware


def test_edges_of_the_read_line_become_nonlinearity():
    assert pulse_nonlinearity(replace(CELL, read_line_time_s=0.0)) == 0.0
    slow = replace(CELL, read_line_time_s=0.2e-9)
    assert -0.2 / 15 < pulse_nonlinearity(slow) < -0.8 * 0.2 / 15  # about one time constant
    assert to_hardware(slow).input_dac.inl == pulse_nonlinearity(slow)
    slower = replace(CELL, read_line_time_s=5e-9)  # a third of the pulse, so that the longest one loses, too
    line = slower.effective_width(np.array([3e-9, slower.pulse_max_s]))
    assert pulse_nonlinearity(slower) <= line[0] / line[1] - 0.2 < -0.1, "of the effect that its coefficients have"


def test_a_fitted_curve_becomes_hardware():
    stored = np.linspace(0.4, 1.6, 40)
    fit = fit_transfer(stored, 1e-6 * np.exp(stored), offset_v=1.0, n_levels=8)
    times = np.linspace(0, 1e-3, 30)
    held = fit_retention(times, 0.5 + 0.5 * np.exp(-times / 4e-3))
    hardware = to_hardware(fit, held=held)
    assert (hardware.storage_dac.v_min, hardware.storage_dac.v_max, hardware.cell.supply_v) == (0.4, 1.6, 1.6)
    assert hardware.leakage.tau_s == pytest.approx(4e-3, rel=1e-4)
    # in units of the published cell's straight line
    assert hardware.cell.surrogate_slope * 1.2 == pytest.approx(presets.LINEAR_SLOPE * 0.9, rel=0.01)
    with pytest.raises(CircuitError, match="plain exponentials"):
        to_hardware(fit, held=fit_retention(times, 0.5 + 0.5 * np.exp(-((times / 4e-3) ** 0.7)), stretched=True))
    with pytest.raises(CircuitError, match="use dataclasses.replace"):
        to_hardware(CELL, supply_v=1.0)


def test_a_droop_too_straight_for_its_target_is_refused():
    """At a target of its own, far away, it has a retention of its own."""
    stored = np.linspace(0.4, 1.6, 40)
    fit = fit_transfer(stored, 1e-6 * np.exp(stored), offset_v=1.0)
    times = np.linspace(0, 0.2, 30)
    trace = -10.0 + 11.2 * np.exp(-times / 11.0)
    with pytest.raises(
        CircuitError, match=r"held.target_v=-.* lies outside of 0 to 1.6 V.*fit_retention\(…, target_v=…\)"
    ):
        to_hardware(fit, held=fit_retention(times, trace))
    slow = to_hardware(fit, held=fit_retention(times, trace, target_v=0.4)).leakage
    assert (1.2 - 0.4) / slow.tau_s == pytest.approx(11.2 / 11.0, rel=0.2)  # about as fast, at the beginning


def test_the_range_that_is_stored_is_full_scale():
    """A fitted curve of 0 to 2 V of which 0 to 1 V is stored gives as much signal as the published cell at the ends of
    its range."""
    stored = np.linspace(0.0, 2.0, 41)
    hardware = to_hardware(fit_transfer(stored, 3e-6 * (stored - 0.5), offset_v=0.5, degree=1), supply_v=1.0)
    assert hardware.cell.coefficients[1] * 0.5 == pytest.approx(presets.LINEAR_SLOPE * 0.45, rel=0.01)
    assert Hardware.from_dict(hardware.to_dict()) == hardware


def test_a_narrower_storage_range_keeps_its_place():
    base = presets.gain_cell_cmos()
    base.storage_dac = replace(base.storage_dac, v_min=0.1, v_max=0.8)
    for source in (CELL, fit_transfer(np.linspace(0, 0.9, 30), np.linspace(-1, 1, 30), offset_v=0.45)):
        dac = to_hardware(source, base).storage_dac
        assert (dac.v_min, dac.v_max) == (pytest.approx(0.1), pytest.approx(0.8))


def test_listed_levels_keep_their_places():
    base = presets.gain_cell_cmos()
    positions = [0.0, 0.2, 0.45, 0.9]
    base.storage_dac = replace(base.storage_dac, n_levels=4, spacing="listed", positions=positions)
    assert to_hardware(oxide_cell(), base).storage_dac.positions == pytest.approx([v * 1.2 / 0.9 for v in positions])


def test_a_falling_curve_is_refused():
    stored = np.linspace(0.0, 0.9, 20)
    with pytest.raises(CircuitError, match="sign=-1"):
        to_hardware(fit_transfer(stored, -3 * (stored - 0.45), offset_v=0.45))


def test_a_poor_curve_is_said_in_the_levels_of_the_hardware():
    stored = np.linspace(0.0, 0.9, 60)
    with pytest.warns(CircuitWarning, match=r"by up to [1-9]\.\d\d LSB"):
        to_hardware(fit_transfer(stored, np.tanh(20 * (stored - 0.45)), offset_v=0.45, degree=1))


def test_a_signed_pulse_has_no_bow():
    hardware = to_hardware(CELL, presets.with_softmax(presets.gain_cell_cmos()))
    assert hardware.input_dac.inl == 0.0


def test_longer_pulses_into_the_second_array_average_its_noise():
    short, long = (to_hardware(CELL, phi_pulse_s=t).noise for t in (15e-9, 60e-9))
    assert long.read_qk == short.read_qk
    assert long.read_av == pytest.approx(short.read_av / 2, rel=0.01)


def test_budget_is_sorted_and_in_levels():
    lines = noise_budget(CELL, to_hardware(CELL))
    assert [line.volt for line in lines] == sorted((line.volt for line in lines), reverse=True)
    by_name = {line.name: line for line in lines}
    assert by_name["kT/C write noise"].lsb == pytest.approx(CELL.write_noise() / (0.9 / 7))
    assert by_name["leakage over the window"].volt == pytest.approx(
        0.45 * (1 - math.exp(-1024 * 7.8e-7 / 5e-3)), rel=1e-3
    )


def test_a_step_is_that_of_the_range_that_is_stored():
    hardware = to_hardware(CELL)
    narrow = replace(hardware, storage_dac=replace(hardware.storage_dac, v_min=0.3, v_max=0.6))
    for wide, found in zip(noise_budget(CELL, hardware), noise_budget(CELL, narrow), strict=True):
        assert (found.volt, found.lsb) == pytest.approx((wide.volt, 3 * wide.lsb))


def test_the_shortest_signed_pulse_is_one_of_half_the_levels():
    """Of 128 levels of either sign, 63 steps: 0.24 ns, which is longer than this line needs."""
    signed = presets.with_softmax(presets.gain_cell_cmos(), input_levels=128)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_hardware(replace(CELL, read_line_time_s=0.05e-9), signed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leak_conductance_s": 6e-15 / 3e-4}, "retention 0.0003 s is short .* lost 93%"),
        ({"write_pulse_s": 1e-12}, "too short to settle: a write misses"),
        ({"read_line_time_s": 1e-9}, "shortest pulse, 1e-09 s"),
        ({"supply_v": 0.3, "read_v": 0.3}, "below the threshold"),
        ({"supply_v": 0.5}, "read lines stand at -0.2 and 0.7 V"),
        ({"write_gate_off_v": 0.1, "hold_v": 0.0, "leak_conductance_s": 0.0}, "does not forget as an exponential"),
    ],
)
def test_what_hurts_the_model_is_said(change, message):
    with pytest.warns(CircuitWarning, match=message):
        to_hardware(replace(CELL, **change))


def test_a_good_cell_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_hardware(CELL)
        to_hardware(oxide_cell())


def test_a_cell_that_cannot_be_read_is_refused():
    oxide = oxide_cell()
    with pytest.raises(CircuitError, match="less than the noise .* never turn on"):
        to_hardware(replace(oxide, supply_v=0.2, read_n=replace(oxide.read_n, threshold_v=1.6)))
    with pytest.raises(CircuitError, match="does not rise"):
        to_hardware(replace(oxide, read_n=replace(oxide.read_n, threshold_v=40.0)))


def test_a_token_time_that_is_left_open_is_asked_for():
    left_open = presets.gain_cell_cmos()
    left_open.leakage = replace(left_open.leakage, token_time_s=None)
    with pytest.raises(ConfigError, match="leakage.token_time_s=None: .*leaves it open; give it in second"):
        to_hardware(CELL, left_open)
