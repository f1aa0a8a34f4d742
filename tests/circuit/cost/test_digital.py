"""What the remedies of pretrained models cost: level look-ups, feature transforms, age compensation, pruning, and the
digital copy of kept and protected tokens, each against a count by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from transformers import FalconConfig, GPT2Config, GPTJConfig, JambaConfig, LlamaConfig, Qwen3Config

from aimc import presets
from aimc.circuit import Cost, CostParameters, ModelShape, attention_cost, sensitivity
from aimc.hardware import ConfigError, Features, Hardware, Protection, Pruning

PLAIN = ModelShape(query_heads=12, kv_heads=4)
ROTARY = replace(PLAIN, rotary=True)
SOFTMAX = presets.with_softmax(presets.gain_cell_cmos())
P = CostParameters()


def layer(hardware: Hardware, shape: ModelShape = PLAIN, **parameters: Any) -> Cost:
    return attention_cost(shape, hardware, CostParameters(**parameters)).layer


def pruned(protection: Protection | None = None, **fields: Any) -> Hardware:
    pruning = Pruning(**fields)
    return replace(SOFTMAX, activation="pruned_softmax", pruning=pruning, protection=protection or Protection())


def more(hardware: Hardware, shape: ModelShape = PLAIN) -> dict[str, float]:
    """Parts whose energy is not that of the plain softmax."""
    before, after = layer(SOFTMAX, shape).energy_j, layer(hardware, shape).energy_j
    return {name: after[name] - before.get(name, 0.0) for name in after if after[name] != before.get(name, 0.0)}


def test_levels_at_equal_charge_are_a_table_in_front_of_the_dac() -> None:
    """One look-up for each of the 2·4·64 numbers that are written, and nothing analog."""
    bent = replace(SOFTMAX, storage_dac=replace(SOFTMAX.storage_dac, spacing="equal_charge"))
    assert more(bent) == pytest.approx({"level look-ups": 2 * 4 * 64 * 1.25e-12})
    assert layer(bent).latency_s == layer(SOFTMAX).latency_s and layer(bent).area_m2 == layer(SOFTMAX).area_m2
    listed = replace(SOFTMAX.probability_dac, n_levels=None, spacing="listed", positions=[0.0, 0.2, 1.0])
    assert layer(replace(SOFTMAX, probability_dac=listed)).energy_j["level look-ups"] == pytest.approx(
        12 * 1024 * 1.25e-12
    )


def test_full_scales_cost_nothing_per_token() -> None:
    own = replace(SOFTMAX, array=replace(SOFTMAX.array, full_scales="head"))
    assert layer(own) == layer(SOFTMAX)


@pytest.mark.parametrize(
    ("features", "energy_j", "operations"),
    [
        ({"rotation_qk": "hadamard"}, 16 * 64 * 6 * 0.4e-12, 16 * 64 * 6),
        ({"rotation_qk": "orthogonal"}, 16 * 64 * 64 * 1.5e-12, 16 * 64 * 64),
        ({"centre_keys": True}, 4 * 64 * 0.4e-12, 4 * 64),
        ({"balance": True}, 16 * 64 * 1.1e-12, 16 * 64),
        ({"centre_values": True, "rotation_av": "hadamard"}, 0.0, 0),
    ],
)
def test_feature_transforms_of_rotary_models(features: dict[str, Any], energy_j: float, operations: int) -> None:
    """Of each of 12 query and 4 K/V heads; values, and models without rotary positions, have them in their weights."""
    machine = replace(SOFTMAX, features=Features(**features))
    assert sum(more(machine, ROTARY).values()) == pytest.approx(energy_j)
    assert set(more(machine, ROTARY)) <= {"feature transforms"}
    extra_s = layer(machine, ROTARY).latency_s.total - layer(SOFTMAX, ROTARY).latency_s.total
    assert extra_s == pytest.approx(operations / 494.5e12, abs=1e-18)
    assert layer(machine, PLAIN) == layer(SOFTMAX, PLAIN)


def test_a_fast_hadamard_transform_has_as_many_additions() -> None:
    def additions(n: int) -> int:
        return 0 if n == 1 else 2 * additions(n // 2) + n

    machine = replace(SOFTMAX, features=Features(rotation_qk="hadamard"))
    for size in (2, 16, 128):
        shape = replace(ROTARY, head_size=size)
        assert layer(machine, shape).energy_j["feature transforms"] == pytest.approx(16 * additions(size) * 0.4e-12)
    with pytest.raises(ConfigError, match="heads of 96 features"):
        layer(machine, replace(PLAIN, head_size=96))


def test_age_compensation() -> None:
    aged = replace(SOFTMAX, leakage=replace(SOFTMAX.leakage, compensate=True))
    by_hand = 12 * 1024 * (2 * 1.1e-12 + 3 * 0.4e-12) + 1024 * 1.25e-12
    assert more(aged) == pytest.approx({"age compensation": by_hand})
    assert attention_cost(PLAIN, aged, window_fill=256).layer.energy_j["age compensation"] == pytest.approx(by_hand / 4)
    tight = replace(aged, leakage=replace(aged.leakage, tau_s=None))
    assert layer(tight).energy_j == layer(SOFTMAX).energy_j, "nothing is lost, so nothing is made up for"


def test_normalising() -> None:
    """12 queries, 4 keys and 4 values are squared, summed and divided; each held token has a factor for either."""
    divided = Features(normalise_queries=True, normalise_keys=True, normalise_values=True)
    of_vectors = (12 + 4 + 4) * (64 * (1.5e-12 + 1.1e-12) + 1.25e-12)
    by_hand = of_vectors + 2 * 12 * 1024 * 1.1e-12
    assert more(replace(SOFTMAX, features=divided)) == pytest.approx({"normalising": by_hand})


def test_pruning_by_share() -> None:
    """256 of 1,024 tokens: no second array, one array written, half of the ramp, and 2·64 products a kept token."""
    cost, plain = layer(pruned()), layer(SOFTMAX)
    energy, area = cost.energy_j, cost.area_m2
    assert cost.kept_share == 0.25 and plain.kept_share is None
    for name in ("second array", "counters", "digital adders", "pulse generators"):
        assert energy[name] == area[name] == 0
    for parts in (energy, area):
        assert parts["first array"] == getattr(plain, "energy_j" if parts is energy else "area_m2")["first array"]
    assert energy["writes"] == pytest.approx(plain.energy_j["writes"] / 2)
    assert energy["DACs"] == pytest.approx((12 * 64 * 31 + 4 * 64 * 63) * P.dac_energy_j_per_step)
    assert energy["score ADCs"] == pytest.approx(12 * 1024 * 128 * 10e-15)
    assert energy["digital softmax"] == pytest.approx(12 * 256 * 3e-12)
    assert energy["digital recomputation"] == pytest.approx(12 * 256 * 2 * 64 * 1.5e-12)
    assert energy["digital copy"] == pytest.approx((12 * 256 + 4) * 2 * 64 * 2 * 2.5e-12)
    assert energy["routing and control"] == pytest.approx(12 * 1024 * P.routing_energy_j)
    assert area["digital copy"] == pytest.approx(4 * 1024 * 2 * 64 * 16 * 0.254e-12)
    assert area["digital recomputation"] == pytest.approx(4 * 64 * 2000e-12)
    latency = attention_cost(replace(PLAIN, kv_heads=12), pruned()).layer.latency_s
    assert {name: value for name, value in latency.items() if value} == pytest.approx(
        {
            "first array": 2.5e-9 + 31e-9,
            "score ADCs": 128e-9,
            "digital softmax": 8e-9,
            "digital recomputation": 512e-9,
            "writes": 10e-9,
        }
    )
    no_counters = replace(pruned(), readout=replace(SOFTMAX.readout, n_levels=None))
    assert layer(no_counters).energy_j == energy, "what is not there needs no level count"


def test_pruning_by_comparators_and_of_values_alone() -> None:
    compared, both = layer(pruned(select="threshold")), layer(pruned(select="threshold", recompute="values"))
    assert compared.energy_j["score ADCs"] == pytest.approx(12 * 1024 * 10e-15), "a comparison is one step"
    assert "score ADCs" not in compared.area_m2
    assert compared.area_m2["pulse generators"] == pytest.approx(4 * 1024 * P.pulse_generator_area_m2)
    assert both.energy_j["score ADCs"] == pytest.approx(12 * (1024 + 256 * 256) * 10e-15)
    assert both.area_m2["score ADCs"] == pytest.approx(4 * 1024 * 500e-12)
    values, scores = layer(pruned(recompute="values")), layer(pruned())
    for name in ("digital recomputation", "digital copy"):
        assert values.energy_j[name] == pytest.approx(scores.energy_j[name] / 2)
    assert values.area_m2["digital copy"] == pytest.approx(scores.area_m2["digital copy"] / 2)
    assert (
        layer(pruned(), ramp_share=3.0).energy_j["score ADCs"] == layer(pruned(), ramp_share=1.0).energy_j["score ADCs"]
    )


def test_protected_tokens_of_a_pruned_softmax() -> None:
    cost = layer(pruned(Protection(n_sink=4, n_recent=20), recompute="values"))
    assert cost.kept_share == 250 / 1024
    assert cost.energy_j["digital softmax"] == pytest.approx(12 * (250 + 24) * 3e-12)
    assert cost.energy_j["digital recomputation"] == pytest.approx(12 * 250 * 64 * 1.5e-12)
    assert cost.energy_j["protected tokens"] == pytest.approx(12 * 24 * 2 * 64 * 1.5e-12)
    numbers = 12 * (250 + 2 * 24) * 64 + 4 * 2 * 64
    assert cost.energy_j["digital copy"] == pytest.approx(numbers * 2 * 2.5e-12)


def test_protected_tokens_beside_arrays() -> None:
    """Their products run beside the arrays and are waited for where they take longer; first tokens are written once."""
    sinks, many = (
        replace(SOFTMAX, protection=protection) for protection in (Protection(n_sink=4), Protection(n_recent=64))
    )
    assert more(sinks) == pytest.approx(
        {"protected tokens": 12 * 4 * 2 * 64 * 1.5e-12, "digital copy": 12 * 4 * 2 * 64 * 2 * 2.5e-12}
    )
    assert more(many)["digital copy"] == pytest.approx((12 * 64 + 4) * 2 * 64 * 2 * 2.5e-12)
    assert layer(sinks).latency_s.total == pytest.approx(layer(SOFTMAX).latency_s.total)
    waits = layer(replace(many, probability_dac=replace(many.probability_dac, n_levels=16)))
    first_s, second_s = 2.5e-9 + 31e-9 + 8e-9, 2.5e-9 + 15e-9 + 127e-9 + 5e-9
    assert second_s > 64e-9 and waits.latency_s["protected tokens"] == pytest.approx(64e-9 - first_s)
    assert layer(many).area_m2["digital copy"] == pytest.approx(4 * 64 * 2 * 64 * 16 * 0.254e-12)


def test_no_more_tokens_are_protected_than_there_are() -> None:
    protected = replace(SOFTMAX, protection=Protection(n_sink=4, n_recent=64))
    few, full = attention_cost(PLAIN, protected, window_fill=8), attention_cost(PLAIN, protected)
    sliding = replace(protected, array=replace(protected.array, window=64, rows=64))
    assert attention_cost(PLAIN, sliding).energy_j["protected tokens"] == full.energy_j["protected tokens"]
    ratio = few.energy_j["protected tokens"] / full.energy_j["protected tokens"]
    assert ratio == pytest.approx(8 / 68) and few.area_m2 == full.area_m2


def test_shares_of_a_few_tokens_and_of_windows() -> None:
    few = attention_cost(PLAIN, pruned(kept_share=0.1), window_fill=11)
    assert few.kept_share == pytest.approx(2 / 11), "rounded up to whole tokens"
    assert attention_cost(PLAIN, pruned(Protection(n_recent=64)), window_fill=64).kept_share == 0
    mixed = attention_cost(replace(PLAIN, layers=2, windows=[64, None]), pruned(kept_share=0.1))
    assert mixed.kept_share == pytest.approx((7 + 103) / (64 + 1024))
    assert mixed.head.kept_share == mixed.kept_share
    assert "10.1 % of the tokens in the arrays are kept and recomputed" in str(mixed).splitlines()[-1]


def test_every_part_adds_up_and_sensitivity_knows_the_new_numbers() -> None:
    machine = replace(
        pruned(Protection(n_recent=8)),
        features=Features(rotation_qk="hadamard", balance=True),
        storage_dac=replace(SOFTMAX.storage_dac, spacing="equal_charge"),
    )
    cost = layer(machine, ROTARY)
    for parts in (cost.energy_j, cost.latency_s, cost.area_m2):
        assert parts.total == pytest.approx(math.fsum(parts.values())) and min(parts.values()) >= 0
    effects = {effect.parameter: effect for effect in sensitivity(ROTARY, machine)}
    for name in (
        "addition_energy_j",
        "multiplication_energy_j",
        "table_energy_j",
        "sram_energy_j_per_byte",
        "ramp_share",
    ):
        assert effects[name].energy > 0
    assert effects["mac_lanes"].latency < 0 < effects["mac_lanes"].area
    assert effects["sram_bit_area_m2"].area > 0 and effects["read_energy_av_j"].energy == 0


@pytest.mark.parametrize(
    ("config", "rotary"),
    [
        (GPT2Config(), False),
        (GPTJConfig(), True),
        (LlamaConfig(), True),
        (Qwen3Config(), True),
        (JambaConfig(num_experts=1), False),
        (FalconConfig(alibi=True), False),
        (FalconConfig(), True),
        (LlamaConfig().to_dict(), True),
        ({"model_type": "llama"}, True),
        ({"model_type": "gpt2"}, False),
        ({"model_type": "granitemoehybrid", "position_embedding_type": None, "rope_theta": 1e4}, False),
    ],
)
def test_which_models_have_rotary_positions(config: Any, rotary: bool) -> None:
    sizes = {"layers": 8, "query_heads": 4, "kv_heads": 4, "head_size": 8, "hidden": 32, "mlp_width": 64}
    shape = ModelShape.from_config(config, **sizes, mlp_matrices=2, vocabulary=10, windows=None)
    assert shape.rotary is rotary
