"""Attention, static tiles and the digital rest add up to a chip."""

from __future__ import annotations

import pytest

from aimc import presets
from aimc.circuit import ModelShape, attention_cost, chip_cost, hermes_chip, hermes_core, static_cost
from aimc.circuit.cost.model import digital_rest

GPT2, HARDWARE = ModelShape(), presets.gain_cell_cmos()


def test_the_layers_of_a_shape_are_its_macs() -> None:
    for shape in (GPT2, ModelShape(query_heads=12, kv_heads=4, mlp_matrices=3, mlp_width=2048)):
        assert sum(a * b for a, b in shape.linear_layers()) == shape.projection_macs + shape.mlp_macs
        assert sum(a * b for a, b in shape.linear_layers(head=True)) == shape.digital_macs


def test_the_whole_is_the_sum_of_its_parts() -> None:
    cost = chip_cost(GPT2, HARDWARE)
    attention, rest = attention_cost(GPT2, HARDWARE), digital_rest(GPT2)
    tiles = static_cost(GPT2.linear_layers(), hermes_chip(), n_steps=48)
    assert cost.energy_j == pytest.approx(attention.energy_j.total + tiles.total_energy_j + rest[0]["LM head"])
    assert cost.latency_s == pytest.approx(attention.latency_s.total + tiles.latency_s + rest[1]["LM head"])
    assert cost.area_m2 == pytest.approx(attention.area_m2.total + tiles.area_m2)
    assert cost.tokens_per_j == pytest.approx(1 / cost.energy_j) and cost.tokens_per_s == pytest.approx(
        1 / cost.latency_s
    )


def test_tiles_take_one_step_for_what_shares_an_input() -> None:
    per_step = hermes_chip().mvm_latency_s
    gated = ModelShape(mlp_matrices=3)
    assert chip_cost(gated, HARDWARE).static.latency_s == pytest.approx(12 * 4 * per_step)
    assert chip_cost(gated, HARDWARE, head_on_tiles=True).static.latency_s == pytest.approx((12 * 4 + 1) * per_step)


def test_the_head_is_on_tiles_or_digital() -> None:
    digital, analog = (chip_cost(GPT2, HARDWARE, head_on_tiles=on) for on in (False, True))
    assert list(digital.rest_energy_j) == ["LM head"] and not analog.rest_energy_j
    assert analog.static.n_macs - digital.static.n_macs == GPT2.lm_head_macs
    assert "LM head, digital" in str(digital) and "LM head" not in str(analog)


def test_what_is_not_on_tiles_is_paid_digitally() -> None:
    mlps = [(768, 3072), (3072, 768)] * 12
    cost, energy = chip_cost(GPT2, HARDWARE, layers=mlps), digital_rest(GPT2)[0]
    assert cost.rest_energy_j == pytest.approx(
        {"LM head": energy["LM head"], "other linear layers": energy["projections"]}
    )
    assert cost.energy_j > chip_cost(GPT2, HARDWARE).energy_j
    with pytest.raises(ValueError, match="weights more than the model"):
        chip_cost(GPT2, HARDWARE, layers=[*GPT2.linear_layers(), (50257, 768)])


def test_layers_that_were_converted_count() -> None:
    cost = chip_cost(GPT2, HARDWARE, tiles=hermes_core(), layers=[(768, 768)])
    assert (cost.static.n_tiles, cost.static.latency_s) == (9, pytest.approx(hermes_core().mvm_latency_s))
