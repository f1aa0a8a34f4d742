"""States in gain cells: each part by hand, what a turning state costs, shapes from configs; the published rows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from transformers import AutoConfig

from aimc import presets
from aimc.circuit import StateParameters, StateShape, digital_state, state_cost
from aimc.circuit.cost.parameters import CostParameters
from aimc.circuit.cost.related import CLAIMS, NOT_READ, state_rows
from aimc.circuit.cost.state import DECAY, PHASES, READS, STATE_COUNTERS, STATE_DACS, TAPS, UPDATES

SHAPE = StateShape(layers=2, channels=8, state_size=4, decays=8, taps=3)
HARDWARE, P, S = presets.gain_cell_cmos(2), CostParameters(), StateParameters()


def test_every_part_is_what_it_says() -> None:
    energy = state_cost(SHAPE, HARDWARE).energy_j.scaled(1 / 2)
    cells, steps, counts = 2 * 8 * 4, 15, 15
    assert energy[READS] == pytest.approx(cells * P.read_energy_av_j)
    assert energy[UPDATES] == pytest.approx(cells * S.update_energy_j + 12 * S.line_energy_j)
    assert energy[DECAY] == pytest.approx(cells * S.bleed_energy_j + 8 * steps * P.dac_energy_j_per_step)
    assert energy[STATE_DACS] == pytest.approx((8 + 2 * 4) * steps * P.dac_energy_j_per_step)
    assert energy[STATE_COUNTERS] == pytest.approx(8 * counts * P.counter_energy_j_per_step)
    assert energy[TAPS] == pytest.approx(8 * 3 * P.mac_energy_j) and energy[PHASES] == 0


def test_a_fixed_decay_is_leakage_and_costs_nothing() -> None:
    chosen, fixed = (state_cost(replace(SHAPE, decays=decays), HARDWARE) for decays in (8, 0))
    assert fixed.energy_j[DECAY] == 0 and fixed.latency_s < chosen.latency_s


def test_a_state_that_turns_needs_lines_of_its_own() -> None:
    """Of converters N/2 times as many for many channels, and a look-up and a product a number twice."""
    real, turning = (
        state_cost(StateShape(layers=1, channels=768, state_size=64, complex_state=turns), HARDWARE)
        for turns in (False, True)
    )
    assert turning.energy_j[STATE_DACS] / real.energy_j[STATE_DACS] == pytest.approx(2 * 768 * 64 / (768 + 128))
    assert turning.energy_j.total > 20 * real.energy_j.total


def test_nothing_is_kept_for_longer_than_a_cell_leaks() -> None:
    tau_s, token_s = HARDWARE.leakage.tau_s, HARDWARE.leakage.token_time_s
    assert tau_s is not None and token_s is not None
    assert state_cost(SHAPE, HARDWARE).memory_tokens == pytest.approx(tau_s / token_s)
    by_layers = replace(HARDWARE, leakage=replace(HARDWARE.leakage, token_time_s=None))
    assert state_cost(SHAPE, by_layers, layers=24).memory_tokens == pytest.approx(
        tau_s / (24 * HARDWARE.leakage.step_latency_s)
    )
    assert state_cost(SHAPE, replace(HARDWARE, leakage=replace(HARDWARE.leakage, tau_s=None))).memory_tokens is None


def test_the_digital_machine_moves_the_state_twice() -> None:
    on_chip, in_memory = (digital_state(SHAPE, on_chip=place) for place in (True, False))
    moved = 2 * SHAPE.values * P.value_bytes
    assert in_memory[0] - on_chip[0] == pytest.approx(moved * (P.memory_energy_j_per_byte - P.sram_energy_j_per_byte))
    assert in_memory[1] >= on_chip[1]


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("mamba", {"hidden_size": 64, "num_hidden_layers": 3}, (3, 128, 16, 128, False)),
        (
            "mamba2",
            {"hidden_size": 64, "num_hidden_layers": 3, "num_heads": 4, "head_dim": 32},
            (3, 128, 128, 4, False),
        ),
        (
            "falcon_h1",
            {"num_hidden_layers": 2, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_d_state": 32},
            (2, 64, 32, 4, False),
        ),
        ("jamba", {"hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4}, (7, 128, 16, 128, False)),
    ],
)
def test_shapes_come_from_configs(kind: str, fields: dict, expected: tuple) -> None:
    shape = StateShape.from_config(AutoConfig.for_model(kind, **fields))
    assert shape is not None
    got = (shape.layers, shape.channels, shape.state_size, shape.decays, shape.complex_state)
    assert got == expected


def test_h3_turns_and_gpt2_has_no_state() -> None:
    config = {"model_type": "h3", "hidden_size": 768, "num_hidden_layers": 12, "attn_layer_idx": [6], "d_state": 64}
    shape = StateShape.from_config(config)
    assert shape == StateShape(layers=11, channels=768, state_size=64, complex_state=True, taps=64)
    assert StateShape.from_config(AutoConfig.for_model("gpt2")) is None
    striped = {"model_type": "stripedhyena", "hidden_size": 64, "num_layers": 4, "attn_layer_idxs": [1, 3]}
    found = StateShape.from_config({**striped, "state_size": 2, "short_filter_length": 3})
    assert found == StateShape(layers=2, channels=64, state_size=4, complex_state=True, taps=3), "two complex modes"


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="channels=0"):
        StateShape(layers=1, channels=0, state_size=1)
    with pytest.raises(ValueError, match="update_energy_j"):
        StateParameters(update_energy_j=-1.0)


def test_published_rows_say_what_they_could_read() -> None:
    assert [claim.source[-10:] for claim in CLAIMS] == [
        *("2407.12638", "2208.03646", "2407.12893", "2405.10480", "2305.19370")
    ]
    for claim in CLAIMS:
        assert claim.model() and claim.comparable and NOT_READ in claim.workload
    assert "3.0 ×" in CLAIMS[0].claims and "8.33 ×" in CLAIMS[3].claims and "32 ×" in CLAIMS[4].claims


def test_states_of_published_sizes() -> None:
    rows = {row.name: row for row in state_rows()}
    turning, real = rows["H3-125M, its 11 layers"], rows["the same, real states"]
    assert turning.on_chip_j == real.on_chip_j, "the digital machine does four products a number either way"
    assert turning.cost.energy_j.total > 5 * real.cost.energy_j.total
    assert all(math.isfinite(row.cost.area_m2) and row.in_memory_j > row.on_chip_j for row in rows.values())
    assert "longest memory 3,205 tokens" in str(rows["Mamba-130M"].cost)
