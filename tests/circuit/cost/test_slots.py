"""Cost of slots: reading is attention's, writing is every slot's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aimc import presets
from aimc.circuit import CostParameters, ModelShape, attention_cost
from aimc.circuit.cost.slots import GATES, KINDS, MEMORY, REWRITING, UPDATE, slot_cost
from aimc.hardware import Array, ConfigError, Hardware

SHAPE = ModelShape(layers=2, query_heads=4, kv_heads=4, head_size=64)
P = CostParameters()


def machine(n_slots: int = 64) -> Hardware:
    hardware = presets.with_softmax(presets.gain_cell_cmos())
    return replace(hardware, array=Array(window=n_slots, rows=min(n_slots, 64)))


def test_a_pulsed_gate_writes_all_slots_and_reads_as_attention_does() -> None:
    cost, attention = slot_cost(SHAPE, machine()), attention_cost(SHAPE, machine())
    slots = 2 * 4 * 64
    assert cost.energy_j["writes"] == pytest.approx(2 * slots * 64 * P.write_energy_j)
    assert cost.energy_j["writes"] == pytest.approx(64 * attention.energy_j["writes"])
    assert cost.energy_j[GATES] == pytest.approx(slots * (63 * P.dac_energy_j_per_step + P.routing_energy_j))
    assert cost.latency_s["writes"] == pytest.approx(2 * 63e-9), "the longest gate, in both layers"
    same = ("first array", "second array", "DACs", "counters", "digital softmax")
    assert {name: cost.energy_j[name] for name in same} == {name: attention.energy_j[name] for name in same}
    assert cost.layer.energy_j.total == pytest.approx(cost.energy_j.total / 2)


def test_refreshing_costs_a_read_a_product_and_a_write_of_every_cell() -> None:
    refresh, pulse = slot_cost(SHAPE, machine(), gate="refresh"), slot_cost(SHAPE, machine())
    cells = 2 * 2 * 4 * 64 * 64
    of_read = (P.read_energy_qk_j + P.read_energy_av_j) / 2
    steps = 127 + 1  # levels of a signed converter of 256
    expected = cells * (of_read + steps * P.adc_energy_j_per_step + 2 * P.mac_energy_j)
    assert refresh.energy_j[REWRITING] == pytest.approx(expected)
    assert refresh.energy_j.total > 5 * pulse.energy_j.total
    assert refresh.latency_s.total > 3 * pulse.latency_s.total, "a row at a time"


def test_in_digital_the_slots_are_fetched_and_put_back() -> None:
    cost = slot_cost(SHAPE, machine(), gate="digital")
    numbers = 2 * 2 * 4 * 64 * 64
    assert cost.energy_j[UPDATE] == pytest.approx(2 * numbers * P.mac_energy_j)
    assert cost.energy_j[MEMORY] == pytest.approx(2 * numbers * 2 * P.sram_energy_j_per_byte)
    assert "first array" not in cost.energy_j


@pytest.mark.parametrize("gate", KINDS)
def test_it_grows_with_slots_and_not_with_the_text(gate: str) -> None:
    few, many = (slot_cost(SHAPE, machine(n), gate=gate).energy_j.total for n in (64, 256))
    assert 1.5 * few < many < 4.2 * few


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate": "sigmoid"}, "gate='sigmoid': unknown; use one of pulse, refresh, digital"),
        ({"gate_levels": 1}, "gate_levels=1: a pulse has at least two widths"),
        ({"shape": replace(SHAPE, kv_heads=2)}, "kv_heads=2, query_heads=4: each head writes slots of its own"),
        ({"hardware": presets.gain_cell_cmos()}, "activation='hard_sigmoid': .* use aimc.presets.with_softmax"),
    ],
)
def test_bad_input_is_told(changes: dict, message: str) -> None:
    given = {"shape": SHAPE, "hardware": machine()} | changes
    with pytest.raises((ValueError, ConfigError), match=message):
        slot_cost(given.pop("shape"), given.pop("hardware"), **given)
