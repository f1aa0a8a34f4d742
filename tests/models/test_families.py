"""Every tested family on arrays: what reaches them, what comes out, and who is sent away."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import aimc
from aimc.hardware import ConfigError, Hardware
from aimc.models.arrays import gain_cell_layers
from aimc.models.families import attention_layers
from aimc.nn.attention import PARTS
from tests.tiny_models import (
    FAMILIES,
    HEAD_SIZE,
    HEADS,
    KV_HEADS,
    LAYERS,
    POSITIONS,
    SLIDING_WINDOW,
    ids,
    n_kv_heads,
    tiny_model,
)

GROUPED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3")


def everything(model: nn.Module) -> dict[str, Any]:
    """All that a conversion may change: names, config, implementation, hooks, training flags, attributes."""
    config, generation = getattr(model, "config", None), getattr(model, "generation_config", None)
    return {
        "names": list(model.state_dict()),
        "config": config and config.to_dict(),
        "implementation": config and config._attn_implementation,
        "generation": generation and generation.to_dict(),
        "modules": [
            (name, module.training, sorted(module.__dict__), len(module._forward_hooks), len(module._forward_pre_hooks))
            for name, module in model.named_modules()
        ],
    }


def random_scalers(model: PreTrainedModel, seed: int = 7) -> None:
    """Scalers that differ from head to head, so that no two can be mistaken for each other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in gain_cell_layers(model):
            for part in PARTS:
                scaler = layer.scaler(part)
                scaler.scale.mul_(0.5 + torch.rand(len(scaler.scale), generator=generator))
                scaler.offset.add_(0.1 * torch.rand(len(scaler.scale), generator=generator))


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_described_as_they_are(family: str) -> None:
    model = tiny_model(family)
    before = everything(model)
    layers = attention_layers(model)
    assert everything(model) == before
    assert [layer.index for layer in layers] == list(range(LAYERS))
    for layer in layers:
        assert model.get_submodule(layer.name) is layer.module
        assert (layer.n_heads, layer.n_kv_heads, layer.head_size) == (
            HEADS,
            KV_HEADS if family in GROUPED else HEADS,
            HEAD_SIZE,
        )
    assert [layer.sliding_window for layer in layers] == (
        [SLIDING_WINDOW, None] if family == "gemma2" else [None, None]
    )


@pytest.mark.parametrize(
    ("family", "overrides", "windows"),
    [
        ("mistral", {"sliding_window": 8}, [8, 8]),
        ("phi3", {"sliding_window": 8}, [8, 8]),
        ("qwen2", {"sliding_window": 8}, [None, None]),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}, [None, 8]),
        ("qwen3", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0}, [8, 8]),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, [None, SLIDING_WINDOW]),
        ("llama", {"sliding_window": 8}, [None, None]),  # it ignores the setting
    ],
)
def test_sliding_windows(family: str, overrides: dict[str, Any], windows: list[int | None], hardware: Hardware) -> None:
    model = tiny_model(family, **overrides)
    report = aimc.convert(model, hardware)
    assert [layer.sliding_window for _, layer in gain_cell_layers(model)] == windows
    assert [layer.machine.array.window for _, layer in gain_cell_layers(model)] == [window or 16 for window in windows]
    assert ("sliding window of 8 tokens" in str(report)) is any(windows)


@pytest.mark.parametrize("family", FAMILIES)
def test_report(family: str, hardware: Hardware) -> None:
    model = tiny_model(family)
    report = aimc.convert(model, hardware)
    kv_heads = n_kv_heads(family)
    assert (
        report.layers == [name.removesuffix(".gain_cell") for name, _ in gain_cell_layers(model)]
        and len(report.layers) == LAYERS
    )
    assert (report.n_heads, report.n_kv_heads, report.head_size) == (HEADS, kv_heads, HEAD_SIZE)
    assert report.n_scalers == LAYERS * 2 * (2 * HEADS + 2 * kv_heads)
    assert "recompute" not in str(report) and "tested" not in str(report)


@pytest.mark.parametrize("family", FAMILIES)
def test_output_is_the_operators_on_what_the_interface_gets(family: str, hardware: Hardware) -> None:
    """Queries, keys and values that the digital layer hands to the interface, head by head through the public
    operator."""
    model = tiny_model(family)
    seen: list[tuple[torch.Tensor, ...]] = []

    def record(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        seen.append((query, key, value))
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("record", record)
    digital = copy.deepcopy(model)
    digital.set_attn_implementation("record")
    aimc.convert(model, hardware)
    random_scalers(model)
    layer = next(gain_cell_layers(model))[1]
    outputs: list[torch.Tensor] = []
    layer.register_forward_hook(lambda _, __, out: outputs.append(out))
    with torch.no_grad():
        digital(ids(), use_cache=False)
        model(ids())
        q, k, v = seen[0]
        assert k.shape == (2, n_kv_heads(family), POSITIONS, HEAD_SIZE)
        for head in range(HEADS):
            kv = head * n_kv_heads(family) // HEADS
            scale = {part: (layer.scaler(part).scale, layer.scaler(part).offset) for part in PARTS}
            affine = {
                part: (a[head], b[head]) if part in ("query", "output") else (a[kv], b[kv])
                for part, (a, b) in scale.items()
            }
            parts = {"query": q[:, head : head + 1], "key": k[:, kv : kv + 1], "value": v[:, kv : kv + 1]}
            one = aimc.gain_cell_attention(
                *(affine[name][0] * x + affine[name][1] for name, x in parts.items()), layer.machine
            )
            torch.testing.assert_close(outputs[0][:, head : head + 1], affine["output"][0] * one + affine["output"][1])


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_differs_and_every_parameter_learns(family: str, hardware: Hardware) -> None:
    model = tiny_model(family)
    digital = copy.deepcopy(model)
    aimc.convert(model, hardware)
    output = model(ids(), labels=ids())
    assert output.past_key_values is None
    with torch.no_grad():
        difference = (output.logits - digital(ids()).logits).abs().max()
    assert torch.isfinite(output.logits).all() and difference > 0.01
    output.loss.backward()
    silent = {
        name
        for name, p in model.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all() or not p.grad.abs().sum() > 0
    }
    assert silent == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_again(family: str, hardware: Hardware) -> None:
    model = tiny_model(family)
    before, digital = everything(model), copy.deepcopy(model)
    aimc.convert(model, hardware, skip_layers=[0])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(model(ids()).logits, twin(ids()).logits)
        for converted in (model, twin):
            aimc.to_digital(converted)
            assert everything(converted) == before
            assert torch.equal(converted(ids()).logits, digital(ids()).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_skipped_layer_stays_digital(family: str, hardware: Hardware) -> None:
    model = tiny_model(family)
    digital = copy.deepcopy(model)
    report = aimc.convert(model, hardware, skip_layers=(0,))
    assert len(report.layers) == len(report.skipped) == 1 and "stays digital" in str(report)
    assert model.config.aimc["skip_layers"] == [0]
    outputs: list[torch.Tensor] = []
    for m in (digital, model):
        layer = m.get_submodule(report.skipped[0])
        layer.register_forward_hook(lambda _, __, out: outputs.append(out[0]))
    with torch.no_grad():
        digital(ids(), use_cache=False)
        model(ids())
    torch.testing.assert_close(outputs[1], outputs[0])


def test_untested_family_is_accepted_with_a_note(hardware: Hardware) -> None:
    model = causal("olmo2", **SMALL)
    report = aimc.convert(model, hardware)
    assert "olmo2 is not among the tested families" in str(report)
    assert torch.isfinite(model(ids()).logits).all()


def test_attention_dropout_is_noted(hardware: Hardware) -> None:
    for family, name in (("gpt2", "attn_pdrop"), ("llama", "attention_dropout"), ("opt", "attention_dropout")):
        assert f"attention dropout ({name}=0.2)" in str(aimc.convert(tiny_model(family, **{name: 0.2}), hardware))


@pytest.mark.parametrize("setting", ["reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx"])
def test_gpt2_settings_of_the_scores_reach_skipped_layers_and_come_back(setting: str, hardware: Hardware) -> None:
    """Arrays take neither: their scalers hold the scale, and are float32 anyhow. What stays digital has to have
    both."""
    model = tiny_model("gpt2", attn_implementation="eager", **{setting: True})
    digital = copy.deepcopy(model)
    aimc.convert(model, hardware, skip_layers=[1])
    outputs: list[torch.Tensor] = []
    model.transformer.h[1].attn.register_forward_hook(lambda _, args, out: outputs.extend([args[0], out[0]]))
    with torch.no_grad():
        model(ids())
        mask = torch.full((POSITIONS, POSITIONS), -torch.inf).triu(1)[None, None]
        torch.testing.assert_close(outputs[1], digital.transformer.h[1].attn(outputs[0], attention_mask=mask)[0])
        aimc.to_digital(model)
        assert model.config._attn_implementation == "eager"
        assert torch.equal(model(ids()).logits, digital(ids()).logits)


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
ENCODER = {
    name: SMALL[name]
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
}
MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 2,
}


def causal(family: str, **sizes: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))


def plain(family: str, **sizes: Any) -> PreTrainedModel:
    return AutoModel.from_config(AutoConfig.for_model(family, **sizes))


def softcap_taken_off_too_late() -> PreTrainedModel:
    model = tiny_model("gemma2", attn_logit_softcapping=50.0)
    model.config.attn_logit_softcapping = None
    return model


def broken() -> PreTrainedModel:
    model = tiny_model("llama")
    model.model.layers[1].self_attn.o_proj = nn.Linear(3, 3)
    return model


def image_model() -> PreTrainedModel:
    text = {"model_type": "llama"} | {name: SMALL[name] for name in SMALL if name not in ("pad_token_id", "head_dim")}
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
        "projection_dim": 16,
    }
    return plain("llava", text_config=text, vision_config=vision, image_token_index=3)


REFUSED = {
    "softcap": (
        lambda: tiny_model("gemma2", attn_logit_softcapping=50.0),
        r"config\.attn_logit_softcapping=50\.0.*=None before loading",
    ),
    "softcap of the modules": (softcap_taken_off_too_late, r"softcap=50\.0.*soft-capping"),
    "bidirectional": (
        lambda: tiny_model("gemma2", use_bidirectional_attention=True),
        "config.use_bidirectional_attention=True",
    ),
    "cross-attention": (lambda: tiny_model("gpt2", add_cross_attention=True), "config.add_cross_attention=True"),
    "encoder-decoder": (
        lambda: plain("t5", vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4),
        "config.is_encoder_decoder=True",
    ),
    "decoder half": (
        lambda: causal(
            "bart",
            vocab_size=64,
            d_model=32,
            decoder_layers=1,
            decoder_attention_heads=4,
            decoder_ffn_dim=32,
            encoder_layers=1,
            encoder_attention_heads=4,
            encoder_ffn_dim=32,
        ),
        "BartForCausalLM.*attention interface",
    ),
    "encoder": (lambda: plain("bert", **ENCODER), r"encoder\.layer\.0\.attention\.self\.is_causal=False"),
    "images": (
        lambda: plain(
            "vit",
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=8,
            patch_size=4,
        ),
        "main_input_name='pixel_values'",
    ),
    "images and text": (image_model, "config.sub_configs=text_config, vision_config"),
    "bloom": (
        lambda: causal("bloom", vocab_size=64, hidden_size=32, n_layer=1, n_head=4),
        "'bloom'.*attention interface",
    ),
    "mpt": (
        lambda: causal("mpt", vocab_size=64, d_model=32, n_layers=1, n_heads=4),
        r"config\.attn_config\.alibi=True",
    ),
    "falcon with ALiBi": (
        lambda: causal("falcon", vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, alibi=True),
        r"config\.alibi=True.*ALiBi",
    ),
    "falcon": (
        lambda: causal("falcon", vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4),
        "'falcon'.*attention interface",
    ),
    "ALiBi by name": (
        lambda: tiny_model("llama", position_embedding_type="alibi"),
        "config.position_embedding_type='alibi'",
    ),
    "sinks": (
        lambda: causal("gpt_oss", **SMALL, num_local_experts=2, num_experts_per_tok=1),
        r"model\.layers\.0\.self_attn passes s_aux=a tensor of 4 numbers.*attention sinks",
    ),
    "latent attention": (lambda: causal("deepseek_v3", **SMALL | MLA), "16 features, values of 8"),
    "chunks": (lambda: causal("llama4_text", **SMALL, num_local_experts=2), "config.layer_types has chunked_attention"),
    "layers without attention": (
        lambda: causal("minimax", **SMALL, num_local_experts=2),
        "config.layer_types has linear_attention",
    ),
    "two attentions a layer": (
        lambda: causal("diffllama", **SMALL),
        r"config\.num_hidden_layers=2, but .* layers \[0, 0, 1, 1\]",
    ),
    "window of the mask alone": (
        lambda: causal("phimoe", **SMALL, num_local_experts=2, sliding_window=8),
        "config.sliding_window=8: its masks",
    ),
    "does not run": (broken, "a trial with 2 tokens failed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_unchanged(name: str, hardware: Hardware) -> None:
    make, message = REFUSED[name]
    model = make()
    before = everything(model)
    with pytest.raises(ValueError, match=message):
        aimc.convert(model, hardware)
    assert everything(model) == before


def test_what_is_no_model_is_refused(hardware: Hardware) -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    before = everything(module)
    with pytest.raises(TypeError, match="Sequential is no transformers PreTrainedModel"):
        aimc.convert(module, hardware)  # type: ignore[arg-type]
    assert everything(module) == before


@pytest.mark.parametrize(
    ("family", "skip_layers", "error", "message"),
    [
        ("mistral", [], ConfigError, "sliding window of 6 tokens"),
        ("llama", [2], ValueError, "no layer 2; its layers are 0 to 1"),
        ("llama", [-1], ValueError, "no layer -1"),
        ("llama", [1, 0, 1], ValueError, "leaves none of the 2 layers"),
    ],
)
def test_wrong_requests_change_nothing(
    family: str, skip_layers: list[int], error: type[Exception], message: str, hardware: Hardware
) -> None:
    model = tiny_model(family, sliding_window=6)
    before = everything(model)
    with pytest.raises(error, match=message):
        aimc.convert(model, hardware, skip_layers=skip_layers)
    assert everything(model) == before


def test_skipped_layer_needs_no_fitting_window(hardware: Hardware) -> None:
    model = tiny_model("gemma2", sliding_window=6)
    with pytest.raises(ConfigError, match="layer 0 sees a sliding window of 6"):
        aimc.convert(model, hardware)
    aimc.convert(model, hardware, skip_layers=[0])


def test_a_failure_on_the_way_is_undone(hardware: Hardware, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: PreTrainedModel) -> None:
        raise RuntimeError("no hook")

    monkeypatch.setattr("aimc.models.gain_cells.attach_cache", fail)
    model = tiny_model("qwen3")
    before = everything(model)
    with pytest.raises(RuntimeError, match="no hook"):
        aimc.convert(model, hardware)
    assert everything(model) == before


def test_the_trial_draws_no_random_numbers(hardware: Hardware) -> None:
    model = tiny_model("opt", dropout=0.5, layerdrop=0.5).train()
    model.model.decoder.layers[0].eval()
    before, state = everything(model), torch.get_rng_state()
    assert len(attention_layers(model)) == LAYERS
    assert everything(model) == before and torch.equal(state, torch.get_rng_state())


def test_headless_model_converts(hardware: Hardware) -> None:
    model = tiny_model("llama").model
    report = aimc.convert(model, hardware)
    assert report.layers == ["layers.0.self_attn", "layers.1.self_attn"]
    assert torch.isfinite(model(ids()).last_hidden_state).all()
    aimc.to_digital(model)
    assert not isinstance(model, LlamaForCausalLM) and model.config.use_cache
