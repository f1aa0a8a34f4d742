"""The whole model beside its attention, shapes from configs, sensitivity, and how numbers are written."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from transformers import GemmaConfig, GPT2Config, GPTNeoXConfig, LlamaConfig, MixtralConfig, OPTConfig, Qwen3Config

from aimc import presets
from aimc.circuit import (
    CostParameters,
    DigitalBaseline,
    ModelShape,
    attention_cost,
    model_cost,
    published_baselines,
    sensitivity,
)
from aimc.circuit.cost.model import digital_rest
from aimc.circuit.cost.report import si, table, times
from tests.conftest import REPOSITORY

SHAPE, HARDWARE = ModelShape(), presets.gain_cell_cmos()


def test_gpt2_shape() -> None:
    shape = ModelShape.from_config(GPT2Config())
    assert shape == ModelShape() == ModelShape.from_config(GPT2Config().to_dict())
    assert shape.projection_macs == 12 * 4 * 768**2
    assert shape.mlp_macs == 12 * 8 * 768**2
    assert shape.lm_head_macs == 50257 * 768
    assert shape.digital_macs == 123_532_032  # GPT-2 small's 124 M parameters but for positions, biases and norms
    assert shape.attention_macs(1024) == 12 * 12 * 2 * 64 * 1024
    assert ModelShape.from_config(GPT2Config(n_inner=1000)).mlp_width == 1000


def test_llama_like_shapes() -> None:
    llama = ModelShape.from_config(
        LlamaConfig(hidden_size=256, intermediate_size=700, num_attention_heads=8, num_key_value_heads=2)
    )
    assert (llama.head_size, llama.group, llama.mlp_matrices, llama.mlp_width) == (32, 4, 3, 700)
    assert llama.projection_macs == llama.layers * (256 * 256 + 2 * 256 * 64 + 256 * 256)
    wide = ModelShape.from_config(
        Qwen3Config(hidden_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=128)
    )
    assert wide.head_size == 128 and wide.mlp_matrices == 3
    assert ModelShape.from_config(GemmaConfig()).mlp_matrices == 3
    assert ModelShape.from_config(OPTConfig(ffn_dim=555)).mlp_width == 555
    for two in (OPTConfig(), GPTNeoXConfig()):
        assert ModelShape.from_config(two).mlp_matrices == 2


def test_shape_of_a_pretrained_model() -> None:
    path = REPOSITORY.parent / "shared" / "data" / "models" / "TinyStories-656K" / "config.json"
    if not path.exists():
        pytest.skip("TinyStories-656K is part of the shared data, which is not beside this checkout")
    shape = ModelShape.from_config(json.loads(path.read_text()))
    assert (shape.layers, shape.hidden, shape.query_heads, shape.kv_heads, shape.vocabulary) == (2, 128, 8, 4, 2048)


def test_shapes_that_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vocabulary: the config has none of vocab_size.*vocabulary=…"):
        ModelShape.from_config(SimpleNamespace(n_layer=2, n_head=2, n_embd=8))
    assert ModelShape.from_config(SimpleNamespace(n_layer=2, n_head=2, n_embd=8), vocabulary=100).lm_head_macs == 800
    with pytest.raises(ValueError, match="model_type='novel'.*mlp_matrices=2"):
        ModelShape.from_config(LlamaConfig().to_dict() | {"model_type": "novel"})
    assert ModelShape.from_config(LlamaConfig().to_dict() | {"model_type": "novel"}, mlp_matrices=2).mlp_matrices == 2
    with pytest.raises(ValueError, match="mlp_width: the config has none of intermediate_size"):
        ModelShape.from_config({"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "vocab_size": 9})
    with pytest.raises(ValueError, match="query_heads=3: heads are not equally wide"):
        ModelShape.from_config({"n_layer": 2, "n_head": 3, "n_embd": 8, "vocab_size": 9})
    with pytest.raises(ValueError, match="kv_heads=5: every K/V head serves"):
        ModelShape(kv_heads=5)
    with pytest.raises(ValueError, match="num_local_experts=8: which experts"):
        ModelShape.from_config(MixtralConfig())
    for value in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="layers="):
            ModelShape(layers=value)  # type: ignore[arg-type]


def test_rest_by_hand() -> None:
    energy, latency = digital_rest(SHAPE)
    assert list(energy) == ["projections", "MLP", "LM head"]
    assert energy.total == pytest.approx(SHAPE.digital_macs * (1.5e-12 + 2 * 31.2e-12))
    assert latency.total == pytest.approx(2 * SHAPE.digital_macs / 3.35e12), "one sequence waits for the memory"
    energy64, latency64 = digital_rest(SHAPE, CostParameters(batch=64))
    assert energy64.total == pytest.approx(SHAPE.digital_macs * (1.5e-12 + 2 * 31.2e-12 / 64))
    assert latency64.total == pytest.approx(latency.total)
    _, latency4096 = digital_rest(SHAPE, CostParameters(batch=4096))
    assert latency4096.total == pytest.approx(4096 * SHAPE.digital_macs / 494.5e12), (
        "many sequences wait for the multipliers"
    )


def test_amdahl() -> None:
    cost = model_cost(SHAPE, HARDWARE, baselines=published_baselines(SHAPE, 1024))
    gain = cost.gains[0]
    attention_j, rest_j = 12 * 7.178261876106262e-3, cost.rest_energy_j.total
    assert gain.attention_energy == pytest.approx(7.178261876106262e-3 / (12 * 6.15e-9))
    assert gain.model_energy == pytest.approx((attention_j + rest_j) / cost.energy_j)
    assert gain.limit_energy == pytest.approx((attention_j + rest_j) / rest_j)
    assert gain.attention_latency == pytest.approx(2.2371650629793294e-05 / 65e-9)
    assert cost.energy_j == pytest.approx(144 * 6.15e-9 + rest_j)
    assert cost.latency_s == pytest.approx(12 * 65e-9 + cost.rest_latency_s.total)
    for alone, whole, limit in (
        (gain.attention_energy, gain.model_energy, gain.limit_energy),
        (gain.attention_latency, gain.model_latency, gain.limit_latency),
    ):
        assert alone is not None and whole is not None and limit is not None
        assert 1 < whole <= limit < alone


def test_estimated_baseline_by_hand() -> None:
    (gain,) = model_cost(SHAPE, HARDWARE).gains
    kv_bytes, macs = 12 * 12 * 2 * 64 * 1024 * 2, 12 * 12 * 2 * 64 * 1024
    assert gain.baseline.attention_energy_j == pytest.approx(macs * 1.5e-12 + kv_bytes * 31.2e-12)
    assert gain.baseline.attention_latency_s == pytest.approx(kv_bytes / 3.35e12)
    grouped = DigitalBaseline.estimated(ModelShape(kv_heads=3), 1024)
    assert grouped.attention_latency_s == pytest.approx(kv_bytes / 4 / 3.35e12)
    assert model_cost(SHAPE, HARDWARE, window_fill=512).gains[0].baseline.attention_latency_s == pytest.approx(
        kv_bytes / 2 / 3.35e12
    )
    batched = DigitalBaseline.estimated(SHAPE, 1024, CostParameters(batch=4))
    assert batched.attention_energy_j == pytest.approx(gain.baseline.attention_energy_j), (
        "keys and values are not shared"
    )
    assert batched.attention_latency_s == pytest.approx(4 * kv_bytes / 3.35e12)


def test_what_a_baseline_does_not_know_is_not_claimed() -> None:
    cpu = DigitalBaseline.of_layer("CPU", layers=12, energy_j=None, latency_s=1e-3, source="measured")
    cost = model_cost(SHAPE, HARDWARE, baselines=[cpu])
    (gain,) = cost.gains
    assert gain.attention_energy is gain.model_energy is gain.limit_energy is None
    assert gain.attention_latency == pytest.approx(12e-3 / 780e-9)
    assert "–" in str(cost)
    known = replace(cpu, rest_latency_s=5e-3)
    (gain,) = model_cost(SHAPE, HARDWARE, baselines=[known]).gains
    assert gain.limit_latency == pytest.approx(17 / 5), "its own rest, on both sides"


def test_estimated_rests_are_marked() -> None:
    cpu = DigitalBaseline.of_layer("CPU", layers=12, energy_j=1e-3, latency_s=1e-3, source="measured")
    estimated = str(model_cost(SHAPE, HARDWARE, baselines=[cpu]))
    assert estimated.count(" ×*") == 4 and "* with an estimated, ideal digital rest" in estimated
    own = str(model_cost(SHAPE, HARDWARE, baselines=[replace(cpu, rest_energy_j=1.0, rest_latency_s=1.0)]))
    assert "*" not in own


def test_bad_baselines() -> None:
    with pytest.raises(ValueError, match=r"are for \(12, 12, 64, 1024\)"):
        published_baselines(SHAPE, 512)
    with pytest.raises(ValueError, match="attention_energy_j=0"):
        DigitalBaseline(name="x", attention_energy_j=0, attention_latency_s=None, source="")
    with pytest.raises(ValueError, match="tokens=0"):
        DigitalBaseline.estimated(SHAPE, 0)


def test_sensitivity_is_the_difference_of_two_costs() -> None:
    effects = {effect.parameter: effect for effect in sensitivity(SHAPE, HARDWARE)}
    base = attention_cost(SHAPE, HARDWARE)
    routing = attention_cost(SHAPE, HARDWARE, CostParameters(routing_energy_j=2 * CostParameters().routing_energy_j))
    assert effects["routing_energy_j"].energy == pytest.approx(routing.energy_j.total / base.energy_j.total - 1)
    assert effects["read_energy_qk_j"].energy == pytest.approx(1120 / 6150)
    assert effects["write_latency_s"].latency == pytest.approx(10 / 65)
    assert effects["cell_area_m2"].area == pytest.approx(2 * 65536e-12 / 0.5e-6)
    assert effects["mac_energy_j"].largest == 0
    assert "refresh_interval_s" not in effects, "what is off cannot double"
    sizes = [effect.largest for effect in sensitivity(SHAPE, HARDWARE)]
    assert sizes == sorted(sizes, reverse=True)


def test_sensitivity_of_all_parts_adds_up() -> None:
    """Energy is linear in the unit energies: doubling each in turn adds the whole."""
    effects = sensitivity(SHAPE, HARDWARE)
    energies = [effect.energy for effect in effects if "energy" in effect.parameter]
    assert sum(energies) == pytest.approx(1)
    areas = [effect.area for effect in effects if "area" in effect.parameter]
    assert sum(areas) == pytest.approx(1)
    latencies = [effect.latency for effect in effects if effect.parameter.endswith(("latency_s", "pulse_max_s"))]
    assert sum(latencies) == pytest.approx(1)


def test_sensitivity_of_the_whole_model_and_table() -> None:
    given = CostParameters(counter_energy_j_per_step=1e-13)
    whole = sensitivity(SHAPE, HARDWARE, given, whole_model=True)
    effects = {effect.parameter: effect for effect in whole}
    assert effects["memory_energy_j_per_byte"].energy > 0.9
    assert effects["counter_energy_j_per_step"].basis == "given" and effects["adder_energy_j"].basis == "assumed"
    text = str(whole)
    assert "doubled (model)" in text and "+97.6 %" in text and "no effect here" in text


def test_numbers_are_written_with_prefixes() -> None:
    assert [si(x, "J") for x in (6.15e-9, 330e-12, 0.9999e-9, 17e-15, 0.0, None)] == [
        "6.15 nJ",
        "330 pJ",
        "1 nJ",
        "17 fJ",
        "0 J",
        "–",
    ]
    assert [si(x, "m²") for x in (0.5e-6, 50e-12, 2e-9, 2e-3)] == ["0.5 mm²", "50 µm²", "2000 µm²", "2000 mm²"]
    assert si(16, "") == "16" and si(-2.5e-3, "s") == "-2.5 ms" and si(1e3, "s") == "1 ks"
    assert [times(x) for x in (97_271.8, 1.1849, None)] == ["97,300 ×", "1.18 ×", "–"]
    assert table(("a", "b"), [("x", "1"), ("yy", "22")]).splitlines() == ["a    b", "──  ──", "x    1", "yy  22"]


def test_cost_needs_no_torch() -> None:
    code = (
        "import sys, aimc.circuit as c; c.ModelShape(); print([m for m in ('torch', 'transformers', 'matplotlib') if m"
        " in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
