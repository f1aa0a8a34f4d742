"""Cost of static tiles: the published figures come out again, and layers add up."""

from __future__ import annotations

import math

import pytest

from aimc.circuit.cost.static import TileParameters, hermes_chip, hermes_core, static_cost


@pytest.mark.parametrize(
    ("parameters", "tops", "tops_per_w"),
    [(hermes_core(), 1.008, 10.5), (hermes_chip(), 63.1 / 64, 9.76), (hermes_chip(read_phases=4), 16.1 / 64, 2.48)],
)
def test_published_figures_come_out_again(parameters: TileParameters, tops: float, tops_per_w: float) -> None:
    cost = static_cost((256, 256), parameters)
    assert 2 * cost.n_macs / cost.latency_s == pytest.approx(tops * 1e12)
    assert 2 / cost.energy_per_mac_j == pytest.approx(tops_per_w * 1e12)
    assert cost.utilisation == 1.0 and cost.n_tiles == 1


def test_the_core_takes_130_ns_and_about_0_6_square_millimetres() -> None:
    core = hermes_core()
    assert core.mvm_latency_s == pytest.approx(130e-9, rel=0.01)
    assert core.area_m2 == pytest.approx(0.634e-6, rel=0.01)
    assert core.mvm_energy_j / 256**2 == pytest.approx(0.19e-12, rel=0.01)


def test_layers_add_up() -> None:
    core = hermes_core()
    one, two = static_cost((300, 257), core), static_cost([(300, 257), (256, 256)], core)
    assert one.n_tiles == 4 and two.n_tiles == 5
    assert one.energy_j["partial sums"] == pytest.approx(257 * core.partial_sum_energy_j)
    assert two.total_energy_j == pytest.approx(one.total_energy_j + core.mvm_energy_j)
    assert (
        two.latency_s == 2 * one.latency_s
        and static_cost([(300, 257), (256, 256)], core, n_steps=1).latency_s == one.latency_s
    )
    assert two.area_m2 == 5 * core.area_m2
    assert one.utilisation == pytest.approx(300 * 257 / (4 * 256**2))
    assert two.tokens_per_j == pytest.approx(1 / two.total_energy_j) and two.tokens_per_s < two.pipelined_tokens_per_s


def test_free_tiles_cost_nothing() -> None:
    cost = static_cost((10, 10), TileParameters())
    assert cost.total_energy_j == 0.0 and math.isinf(cost.tokens_per_s) and math.isinf(cost.tokens_per_j)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="in_features, out_features"):
        static_cost([], hermes_core())
    with pytest.raises(ValueError, match="both at least 1"):
        static_cost((0, 4), hermes_core())
    with pytest.raises(ValueError, match="n_steps=3"):
        static_cost([(4, 4)], hermes_core(), n_steps=3)
    with pytest.raises(ValueError, match="read_phases=2"):
        hermes_chip(read_phases=2)
    with pytest.raises(ValueError, match="mvm_energy_j=-1"):
        TileParameters(mvm_energy_j=-1.0)
    with pytest.raises(ValueError, match="n_inputs=0"):
        TileParameters(n_inputs=0)
