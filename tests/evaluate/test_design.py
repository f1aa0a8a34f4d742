"""A design changes by path, and becomes hardware and cost together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aimc import presets
from aimc.circuit import CostParameters, ModelShape, attention_cost, silicon_cell, to_cost
from aimc.evaluate.design import Design
from aimc.hardware import ConfigError, Noise

SHAPE = ModelShape()


def test_the_published_design_is_the_published_point():
    hardware, cost = Design().realised(SHAPE)
    assert cost.head.energy_j.total == pytest.approx(6.15e-9, rel=0.01)
    assert cost.layer.latency_s.total == pytest.approx(65e-9, rel=0.01)
    assert cost.head.area_m2.total == pytest.approx(0.5e-6, rel=0.01)
    assert hardware.leakage.token_time_s == pytest.approx(12 * 65e-9, rel=0.01)


def test_paths_lead_into_nested_fields():
    design = Design(cell=silicon_cell())
    assert design.changed("cell.read_n.width_m", 7e-8).cell.read_n.width_m == 7e-8
    assert design.changed("hardware.readout.n_levels", 64).hardware.readout.n_levels == 64
    assert design.changed("costs.adder_energy_j", 1e-13).costs.adder_energy_j == 1e-13
    assert design == Design(cell=silicon_cell())  # which is left as it was


def test_a_function_changes_what_belongs_together():
    def supply(design: Design, supply_v: float) -> Design:
        return replace(design, cell=replace(design.cell, supply_v=supply_v, read_v=supply_v))

    changed = Design(cell=silicon_cell()).changed(supply, 0.8)
    assert (changed.cell.supply_v, changed.cell.read_v) == (0.8, 0.8)
    assert changed.realised(SHAPE)[0].storage_dac.v_max == 0.8


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("cell.colour", 1, "GainCell has no field 'colour'"),
        ("hardware.readout.n_levels.deeper", 1, "int has no field 'deeper'"),
        ("engine", 1, "it has cell, hardware, costs, degree, noise"),
        ("cell.supply_v", -1.0, "supply_v=-1.0"),
        ("hardware.array.window", 100, "multiple of the sub-tile"),
    ],
)
def test_what_cannot_be_changed(path, value, message):
    with pytest.raises(ConfigError, match=message):
        Design(cell=silicon_cell()).changed(path, value)


def test_a_path_into_a_circuit_that_is_not_there():
    with pytest.raises(ConfigError, match=r"no circuit; give one, Design\(cell=aimc.circuit.silicon_cell"):
        Design().changed("cell.supply_v", 0.8)


@pytest.mark.parametrize(
    "path", ["hardware.leakage.tau_s", "hardware.cell.coefficients", "hardware.noise.write_v", "costs.read_energy_qk_j"]
)
def test_what_the_circuit_decides_is_not_swept_beside_it(path):
    with pytest.raises(ConfigError, match="would be lost; change"):
        Design(cell=silicon_cell()).changed(path, 1.0)


def test_what_can_be_swept_without_a_circuit():
    assert Design().changed("hardware.leakage.tau_s", 1.0).hardware.leakage.tau_s == 1.0
    with pytest.raises(ConfigError, match="what latency comes of"):
        Design().changed("hardware.leakage.token_time_s", 1.0)
    with pytest.raises(ConfigError, match="never refreshed"):
        Design(costs=CostParameters(refresh_interval_s=1e-4)).realised(SHAPE)


def test_the_circuit_pays_its_reads():
    cell = silicon_cell()
    costs = to_cost(cell)
    assert costs.read_energy_qk_j == cell.mean_read_energy(0.5) and costs.write_energy_j == cell.write_energy()
    assert costs.cell_area_m2 == pytest.approx(max(5 * (0.08 * 0.7 + 0.24 * 0.7 + 0.01) * 1e-12, 6e-15 / 5e-3))
    assert to_cost(cell, CostParameters(adder_energy_j=1e-12)).adder_energy_j == 1e-12
    assert to_cost(replace(cell, write_pulse_s=50e-9)).write_latency_s == 50e-9, "a longer write takes longer"
    assert costs.write_latency_s == max(CostParameters().write_latency_s, cell.write_pulse_s)
    by_design = Design(cell=cell).realised(SHAPE)[1]
    assert by_design.energy_j == attention_cost(SHAPE, presets.gain_cell_cmos(), costs).energy_j
    wide = replace(
        cell,
        capacitance_f=2e-14,
        read_n=replace(cell.read_n, width_m=2.4e-7),
        read_p=replace(cell.read_p, width_m=7.2e-7),
    )
    assert Design(cell=wide).realised(SHAPE)[1].energy_j["first array"] == pytest.approx(
        3 * by_design.energy_j["first array"], rel=1e-6
    )


@pytest.mark.parametrize("cell", [None, silicon_cell()], ids=["polynomial", "circuit"])
def test_levels_lengthen_pulses_at_a_fixed_clock_and_pulses_lengthen_the_token(cell):
    design = Design(cell=cell)
    hardware, cost = design.realised(SHAPE)
    finer, dearer = design.changed("hardware.input_dac.n_levels", 31).realised(SHAPE)
    assert dearer.energy_j["first array"] == pytest.approx(2 * cost.energy_j["first array"], rel=1e-6)
    assert dearer.latency_s["first array"] - cost.latency_s["first array"] == pytest.approx(12 * 15e-9, rel=1e-6)
    assert finer.leakage.token_time_s - hardware.leakage.token_time_s == pytest.approx(12 * 15e-9, rel=1e-6)


def test_noise_of_the_circuit_can_be_left_out():
    noisy, quiet = (Design(cell=silicon_cell(), noise=noise).realised(SHAPE)[0] for noise in (True, False))
    assert noisy.noise.write_v > 0 and quiet.noise == Noise()
    assert quiet.cell == noisy.cell


def test_a_longer_pulse_of_the_circuit_is_a_slower_clock():
    design = Design(cell=silicon_cell())
    cost, slow = (d.realised(SHAPE)[1] for d in (design, design.changed("cell.pulse_max_s", 30e-9)))
    assert slow.energy_j["first array"] == pytest.approx(2 * cost.energy_j["first array"], rel=1e-6)
    assert slow.latency_s["counters"] == pytest.approx(2 * cost.latency_s["counters"], rel=1e-6)
