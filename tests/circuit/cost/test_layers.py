"""What each layer is charged: its own window, and nothing where it has no attention on arrays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import (
    BambaConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from aimc import presets
from aimc.circuit import (
    CostParameters,
    DigitalBaseline,
    ModelShape,
    attention_cost,
    chip_cost,
    model_cost,
    published_baselines,
    sensitivity,
)
from aimc.circuit.cost.attention import token_time_s
from aimc.circuit.cost.layers import attention_windows
from aimc.hardware import ConfigError, Hardware

HARDWARE = presets.gain_cell_cmos()


def of_window(window: int) -> Hardware:
    return replace(HARDWARE, array=replace(HARDWARE.array, window=window))


def test_a_layer_of_64_slots_is_charged_64() -> None:
    """Every other layer slides: the cost is the sum of a model of full windows and one of short ones."""
    mixed = attention_cost(ModelShape(layers=4, windows=[64, None, 64, None]), HARDWARE)
    short = attention_cost(ModelShape(layers=2), of_window(64))
    full = attention_cost(ModelShape(layers=2), HARDWARE)
    for quantity in ("energy_j", "latency_s", "area_m2"):
        parts = {part: getattr(short, quantity)[part] + value for part, value in getattr(full, quantity).items()}
        assert getattr(mixed, quantity) == pytest.approx(parts)
    assert mixed.interval_s == full.interval_s, "the slowest layer sets the pace"
    assert mixed.layer.energy_j.total == pytest.approx(mixed.energy_j.total / 4)
    assert attention_cost(ModelShape(layers=2, windows=[4096, 1024]), HARDWARE).energy_j == full.energy_j


def test_only_layers_with_attention_on_arrays_are_charged() -> None:
    one = attention_cost(ModelShape(layers=1), HARDWARE)
    hybrid = ModelShape(layers=4, attention_layers=1)
    assert attention_cost(hybrid, HARDWARE).energy_j == one.energy_j
    assert attention_cost(hybrid, HARDWARE).latency_s == one.latency_s
    assert attention_cost(hybrid, HARDWARE).layer == replace(one.layer, shape=hybrid)
    skipped = ModelShape(layers=4, windows=[None])
    assert attention_cost(skipped, HARDWARE).area_m2 == one.area_m2
    assert skipped.projection_macs == ModelShape(layers=4).projection_macs == 4 * hybrid.projection_macs
    assert hybrid.mlp_macs == ModelShape(layers=4).mlp_macs
    assert sum(a * b for a, b in hybrid.linear_layers(head=True)) == hybrid.digital_macs


def test_fill_model_chip_baseline_and_sensitivity_follow() -> None:
    shape = ModelShape(layers=4, attention_layers=2, windows=[64, None])
    filled = attention_cost(shape, HARDWARE, window_fill=256)
    alone = [attention_cost(ModelShape(layers=1), of_window(w), window_fill=min(w, 256)) for w in (64, 1024)]
    assert filled.energy_j.total == pytest.approx(sum(cost.energy_j.total for cost in alone))
    assert shape.attention_macs(1024) == 12 * 2 * 64 * (64 + 1024) and shape.kv_values(32) == 12 * 2 * 64 * 64
    whole = attention_cost(shape, HARDWARE).energy_j.total
    assert model_cost(shape, HARDWARE).attention.energy_j.total == whole
    assert chip_cost(shape, HARDWARE).attention.energy_j.total == whole
    assert chip_cost(shape, HARDWARE).static.latency_s == pytest.approx(
        chip_cost(ModelShape(layers=1), HARDWARE).static.latency_s / 4 * (2 * 2 + 2 * 4)
    )
    doubled = CostParameters(read_energy_qk_j=2 * CostParameters().read_energy_qk_j)
    effect = next(e for e in sensitivity(shape, HARDWARE) if e.parameter == "read_energy_qk_j")
    assert effect.energy == pytest.approx(attention_cost(shape, HARDWARE, doubled).energy_j.total / whole - 1)
    assert published_baselines(replace(shape, windows=[None]), 1024)[0].attention_energy_j == pytest.approx(
        DigitalBaseline.of_layer(
            "x", layers=1, energy_j=7.178261876106262e-3, latency_s=1, source=""
        ).attention_energy_j
    )
    with pytest.raises(ValueError, match="without sliding windows"):
        published_baselines(shape, 1024)


def test_windows_that_arrays_cannot_have() -> None:
    with pytest.raises(ConfigError, match="array.rows=64: a layer sees a sliding window of 100"):
        attention_cost(ModelShape(windows=[100]), HARDWARE)
    for wrong in ([], [0], [None] * 13):
        with pytest.raises(ValueError, match="windows="):
            ModelShape(windows=wrong)
    with pytest.raises(ValueError, match="attention_layers=13"):
        ModelShape(attention_layers=13)
    for fill in (0, 1025, 1.5, True, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="window_fill="):
            attention_cost(ModelShape(), HARDWARE, window_fill=fill)  # type: ignore[arg-type]


def windows(layers: int, **config: Any) -> dict[int, int | None]:
    return attention_windows(config, layers)


def test_what_configs_say() -> None:
    everything = dict.fromkeys(range(4))
    assert windows(4) == everything
    assert windows(2, sliding_window=64) == {0: 64, 1: 64}
    assert windows(4, sliding_window=64, use_sliding_window=False, max_window_layers=2) == everything
    assert windows(4, sliding_window=64, use_sliding_window=True, max_window_layers=2) == {
        0: None,
        1: None,
        2: 64,
        3: 64,
    }
    assert windows(4, sliding_window=64, sliding_window_pattern=3) == {0: 64, 1: 64, 2: None, 3: 64}
    assert windows(4, sliding_window=64, sliding_window_pattern="LG") == {0: 64, 1: None, 2: 64, 3: None}
    assert windows(2, sliding_window=64, model_type="gemma2") == {0: 64, 1: None}
    assert windows(3, layers_block_type=["mamba", "hybrid", "mamba"]) == {1: None}
    assert windows(4, hybrid_override_pattern="M-*M") == {2: None}
    assert windows(3, attention_layers=["global", "local", "global"], window_size=8) == {0: None, 1: 8, 2: None}
    assert windows(5, block_types=["recurrent", "attention"], attention_window_size=8) == {1: 8, 3: 8}
    for name in ("full_attn_idxs", "attn_layer_indices", "hybrid_layer_ids"):
        assert windows(4, **{name: [1, 3]}) == {1: None, 3: None}
    assert windows(8, attn_layer_period=4, attn_layer_offset=1) == {1: None, 5: None}
    assert windows(8, full_attention_interval=4) == {3: None, 7: None}
    assert windows(2, layer_types=["chunked_attention", "full_attention"], attention_chunk_size=32) == {0: 32, 1: None}
    for config, message in (
        ({"layer_types": ["novel_attention"] * 4}, "novel_attention"),
        ({"layer_types": ["full_attention"]}, "describes 1 layers and has 4"),
        ({"layer_types": ["sliding_attention"] * 4}, "no window"),
        ({"layer_types": ["mamba"] * 4}, "none of the 4 layers"),
    ):
        with pytest.raises(ValueError, match=message):
            windows(4, **config)


SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MistralConfig(num_hidden_layers=2, sliding_window=64, **SIZES), [64, 64]),
        (Gemma2Config(num_hidden_layers=4, sliding_window=64, **SIZES), [64, None, 64, None]),
        (Gemma3TextConfig(num_hidden_layers=6, sliding_window=64, **SIZES), [64] * 5 + [None]),
        (Qwen2Config(num_hidden_layers=3, sliding_window=64, **SIZES), None),
        (
            Qwen2Config(num_hidden_layers=3, use_sliding_window=True, sliding_window=64, max_window_layers=1, **SIZES),
            [None, 64, 64],
        ),
        (LlamaConfig(num_hidden_layers=3, **SIZES), None),
        (GPT2Config(), None),
    ],
)
def test_shapes_of_sliding_models(config: Any, expected: list[int | None] | None) -> None:
    shape = ModelShape.from_config(config, mlp_matrices=3)
    assert (shape.windows, shape.attention_layers) == (expected, None)
    assert ModelShape.from_config(config.to_dict(), mlp_matrices=3) == shape


def test_shapes_of_hybrids() -> None:
    lfm2 = Lfm2Config(num_hidden_layers=4, full_attn_idxs=[2], **SIZES)
    bamba = BambaConfig(num_hidden_layers=4, attn_layer_indices=[2], **SIZES)
    for config in (lfm2, bamba):
        shape = ModelShape.from_config(config, mlp_matrices=3)
        assert (shape.layers, shape.attention_layers, shape.n_on_arrays) == (4, 1, 1)
    with pytest.raises(ValueError, match=r"layers \[0\] have no attention; those that have are \[2\]"):
        ModelShape.from_config(lfm2, mlp_matrices=3, on_arrays=[0, 2])


def test_layers_that_stay_digital() -> None:
    config = Gemma2Config(num_hidden_layers=4, sliding_window=64, **SIZES)
    shape = ModelShape.from_config(config, on_arrays=[1, 2])
    assert (shape.layers, shape.attention_layers, shape.windows) == (4, None, [None, 64])
    assert ModelShape.from_config(config, layers=2).windows == [64, None]
    assert ModelShape.from_config(GPT2Config(), layers=3) == ModelShape(layers=3)


def test_the_token_time_is_the_models_where_the_hardware_leaves_it_open() -> None:
    left_open = replace(HARDWARE, leakage=replace(HARDWARE.leakage, token_time_s=None))
    parameters = CostParameters(refresh_interval_s=1e-3)
    for layers in (6, 12):
        shape = ModelShape(layers=layers)
        assert token_time_s(shape, left_open) == pytest.approx(layers * 65e-9)
        assert token_time_s(shape, HARDWARE) == HARDWARE.leakage.token_time_s
        own = presets.gain_cell_cmos(layers)
        assert attention_cost(shape, left_open, parameters).energy_j == pytest.approx(
            attention_cost(shape, own, parameters).energy_j
        )
