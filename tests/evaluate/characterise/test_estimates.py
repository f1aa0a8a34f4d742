"""The machines of the cost model: what they share, and what each adds."""

from __future__ import annotations

import math

import pytest
from transformers import AutoConfig

from aimc import presets
from aimc.circuit import DigitalBaseline, ModelShape, attention_cost, digital_state, state_cost
from aimc.circuit.cost.parameters import CostParameters
from aimc.circuit.cost.slots import slot_cost
from aimc.evaluate.characterise.estimates import ARRAYS, DIGITAL, STATES, CostEstimate, Parts, estimates
from aimc.evaluate.characterise.roofline import Roofline
from aimc.hardware import ConfigError

ROOFLINE = Roofline(flops_per_s=1e12, bytes_per_s=1e11)
P = CostParameters(mac_rate_per_s=5e11, memory_rate_bytes_per_s=1e11, value_bytes=4.0)
HYBRID = {
    **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    **{"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_d_state": 32},
}


def rows(kind: str, length: int, **fields: object) -> dict[str, CostEstimate]:
    parts = Parts.of(kind, AutoConfig.for_model(kind, **fields), 1_000_000)
    found = estimates(parts, [length], presets.gain_cell_cmos(), ROOFLINE, value_bytes=4)
    return {estimate.machine: estimate for estimate in found}


def test_a_transformer_has_two_machines_that_share_the_weights() -> None:
    found = rows("gpt2", 512)
    assert list(found) == [DIGITAL, ARRAYS]
    weights_j = 1e6 * (P.mac_energy_j + 4 * P.memory_energy_j_per_byte)
    for estimate in found.values():
        assert estimate.token_j - estimate.mixing_j == pytest.approx(weights_j)
    hardware = presets.gain_cell_cmos()
    hardware.array.window = 512
    assert found[ARRAYS].mixing_j == pytest.approx(attention_cost(ModelShape(), hardware, P).energy_j.total)
    assert found[ARRAYS].cells == 2 * 12 * 12 * 64 * 512
    digital = DigitalBaseline.estimated(ModelShape(), 512, P)
    assert found[DIGITAL].mixing_j == pytest.approx(digital.attention_energy_j)
    assert found[DIGITAL].token_s == pytest.approx(1e6 * 4 / 1e11 + (digital.attention_latency_s or 0))


def test_cells_leak_faster_when_they_wait_for_the_rest() -> None:
    found = rows("gpt2", 512)[ARRAYS]
    leakage = presets.gain_cell_cmos().leakage
    assert leakage.tau_s is not None and found.kept is not None and found.kept_waiting is not None
    assert found.kept == pytest.approx(math.exp(-512 * 12 * leakage.step_latency_s / leakage.tau_s))
    assert found.kept_waiting == pytest.approx(math.exp(-512 * found.token_s / leakage.tau_s))
    assert found.kept_waiting < found.kept


def test_a_hybrid_has_all_three_and_states_move_last() -> None:
    found = rows("falcon_h1", 128, **HYBRID)
    assert list(found) == [DIGITAL, ARRAYS, STATES]
    parts = Parts.of("falcon_h1", AutoConfig.for_model("falcon_h1", **HYBRID), 1)
    assert parts.state is not None and parts.attention is not None and parts.attention.kv_heads == 2
    in_cells = state_cost(parts.state, presets.gain_cell_cmos(), P).energy_j.total
    assert found[ARRAYS].mixing_j - found[STATES].mixing_j == pytest.approx(digital_state(parts.state, P)[0] - in_cells)


def test_a_state_space_model_costs_the_same_at_every_length() -> None:
    short, long = (rows("mamba", length, hidden_size=64, num_hidden_layers=2) for length in (256, 65536))
    assert list(short) == [DIGITAL, STATES]
    assert all(short[machine].token_j == long[machine].token_j for machine in short)
    gated, plain = (Parts.of("h3", AutoConfig.for_model("h3", gated=gated), 1).state for gated in (True, False))
    assert gated is not None and plain is not None and (gated.taps, plain.taps) == (64, 0), "S4D has no shift"
    assert "no attention heads" in Parts.of("mamba", AutoConfig.for_model("mamba"), 1).note


def test_slots_cost_the_same_at_every_length_and_less_in_cells() -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_slots": 8}
    short, long = (rows("gsa", length, **sizes) for length in (256, 65536))
    assert list(short) == [DIGITAL, STATES]
    assert all(short[machine].token_j == long[machine].token_j for machine in short)
    hardware = presets.with_softmax(presets.gain_cell_cmos())
    hardware.array.window = hardware.array.rows = 8
    shape = ModelShape.from_config(AutoConfig.for_model("gsa", **sizes), mlp_matrices=2, mlp_width=1)
    for machine, gate in ((DIGITAL, "digital"), (STATES, "pulse")):
        cost = slot_cost(shape, hardware, gate=gate, parameters=P)
        assert short[machine].mixing_j == pytest.approx(cost.energy_j.total)
    assert short[STATES].mixing_j < short[DIGITAL].mixing_j and short[STATES].cells == 2 * 2 * 64 * 8


def test_arrays_may_have_fewer_slots_than_there_are_tokens() -> None:
    parts = Parts.of("gpt2", AutoConfig.for_model("gpt2"), 1)
    found = estimates(parts, [1024, 4096], presets.gain_cell_cmos(), ROOFLINE, value_bytes=4, most_slots=1024)
    arrays = [estimate for estimate in found if estimate.machine == ARRAYS]
    assert arrays[0].mixing_j == arrays[1].mixing_j and arrays[0].cells == arrays[1].cells


@pytest.mark.parametrize("kind", ["gpt2", "mistral"])
def test_a_counter_without_levels_is_told(kind: str) -> None:
    """Not taken for a sliding window that does not fit."""
    hardware = presets.gain_cell_cmos()
    hardware.readout.n_levels = None
    with pytest.raises(ConfigError, match="readout"):
        estimates(Parts.of(kind, AutoConfig.for_model(kind), 1), [64], hardware, ROOFLINE, value_bytes=4)


def test_ideal_converters_have_no_cost() -> None:
    parts = Parts.of("gpt2", AutoConfig.for_model("gpt2"), 1)
    with pytest.raises(ConfigError, match="n_levels"):
        estimates(parts, [64], presets.ideal(), ROOFLINE, value_bytes=4)
