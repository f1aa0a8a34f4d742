"""StripedHyena: both forms of its filter, its cache, published names, and what goes onto arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache

import aimc
from aimc import presets
from aimc.models.striped_hyena import StripedHyenaConfig, StripedHyenaForCausalLM, StripedHyenaModel
from aimc.models.striped_hyena.layers import HyenaFilter, StripedHyenaNorm

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_layers": 4,
    "num_attention_heads": 4,
    "proj_groups": 2,
    "inner_mlp_size": 24,
    "state_size": 4,
    "max_seqlen": 64,
    "eos_token_id": None,
}


def model(**changes: Any) -> StripedHyenaForCausalLM:
    torch.manual_seed(0)
    return StripedHyenaForCausalLM(StripedHyenaConfig(**TINY | changes)).eval()


def ids(length: int = 20) -> Tensor:
    return torch.randint(2, 64, (2, length), generator=torch.Generator().manual_seed(1))


def published_layout(config: StripedHyenaConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `StripedHyenaModelForCausalLM` (huggingface.co/togethercomputer/StripedHyena-Hessian-7B)."""
    width, inner, states = config.hidden_size, config.inner_mlp_size, config.state_size
    head, n_kv = width // config.num_attention_heads, config.num_attention_heads // config.proj_groups
    layout: dict[str, tuple[int, ...]] = {"backbone.embedding_layer.weight": (config.vocab_size, width)}
    layout |= {"backbone.norm.scale": (width,), "backbone.unembed.weight": (config.vocab_size, width)}
    for number in range(config.num_layers):
        block: dict[str, tuple[int, ...]] = {"pre_norm.scale": (width,), "post_norm.scale": (width,)}
        block |= {"mlp.l1.weight": (inner, width), "mlp.l2.weight": (inner, width), "mlp.l3.weight": (width, inner)}
        if number % 2:
            block |= {"inner_mha_cls.Wqkv.weight": (width + 2 * n_kv * head, width)}
            block |= {
                "inner_mha_cls.out_proj.weight": (width, width),
                "inner_mha_cls.rotary_emb.inv_freq": (head // 2,),
            }
        else:
            block |= {"projections.weight": (3 * width, width), "projections.bias": (3 * width,)}
            block |= {"out_filter_dense.weight": (width, width), "out_filter_dense.bias": (width,)}
            block |= {"filter.poles": (width, states, 1, 2), "filter.residues": (width, states, 1, 2)}
            block |= {"filter.short_filter_weight": (3 * width, 1, 3), "filter.short_filter_bias": (3 * width,)}
            block |= {"filter.D": (width,)}
        layout |= {f"backbone.blocks.{number}.{name}": shape for name, shape in block.items()}
    return layout


def test_the_filter_is_its_definition_token_by_token() -> None:
    """In float64, from the short convolution on."""
    layer: HyenaFilter = model().backbone.blocks[0].filter
    torch.manual_seed(1)
    z = torch.randn(2, 30, 48)
    with torch.no_grad():
        layer.D.normal_()
        assert layer.short_filter_bias is not None
        layer.short_filter_bias.normal_()
        found = layer(z)
    taps, bias = layer.short_filter_weight[:, 0].detach().double().numpy(), layer.short_filter_bias.detach().numpy()
    poles, residues = (torch.view_as_complex(x.detach()[:, :, 0]).numpy() for x in (layer.poles, layer.residues))
    past = np.concatenate([np.zeros((2, 2, 48)), z.double().numpy()], axis=1)
    state, outputs = np.zeros((2, 16, 4), dtype=complex), []
    for t in range(30):
        short = sum(past[:, t + j] * taps[:, j] for j in range(3)) + bias
        x2, x1, v = (short.reshape(2, 4, 3, 4)[:, :, part].reshape(2, 16) for part in range(3))
        state = poles * state + (x1 * v)[..., None]
        outputs.append(x2 * ((residues * state).sum(-1).real + layer.D.detach().numpy() * x1 * v))
    np.testing.assert_allclose(found, np.stack(outputs, axis=1), atol=2e-5)
    layer.by_head = False
    assert not torch.allclose(layer(z), found)


def test_convolution_and_recurrence_agree_over_2048_tokens() -> None:
    layer: HyenaFilter = model().backbone.blocks[0].filter
    cache = DynamicCache(config=StripedHyenaConfig(**TINY))
    z = torch.randn(1, 2048, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = layer(z)
        steps = torch.cat([layer(token, past_key_values=cache) for token in z.split(1, dim=1)], dim=1)
    state = cache.layers[0]
    assert state.conv_states[0].shape == (1, 48, 3) and state.recurrent_states[0].shape == (1, 16, 4)
    assert (steps - whole).abs().max() < 1e-4 * whole.abs().max()


def test_generation_with_a_cache_is_the_full_pass() -> None:
    hybrid = model()
    tokens, mask = ids(12), torch.ones(2, 12, dtype=torch.long)
    tokens[1, :5] = mask[1, :5] = 0
    usual: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    usual |= {"output_logits": True, "return_dict_in_generate": True}
    padded = hybrid.generate(tokens, attention_mask=mask, **usual)
    alone = hybrid.generate(tokens[1:, 5:], **usual)
    torch.testing.assert_close(torch.stack(padded.logits)[:, 1:], torch.stack(alone.logits), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        whole = hybrid(padded.sequences[:1, :-1]).logits[:, -6:]
        torch.testing.assert_close(torch.stack(padded.logits)[:, 0], whole[0], atol=1e-5, rtol=1e-4)
        masked = hybrid(tokens, attention_mask=mask).logits[1:, 5:]
        torch.testing.assert_close(masked, hybrid(tokens[1:, 5:]).logits, atol=1e-5, rtol=1e-4)
        cache = hybrid(ids()[:, :9], use_cache=True).past_key_values
        rest = hybrid(ids()[:, 9:], past_key_values=cache).logits
        torch.testing.assert_close(rest, hybrid(ids()).logits[:, 9:], atol=1e-5, rtol=1e-4)


def test_published_names_load_and_are_saved_again(tmp_path: Path) -> None:
    config = StripedHyenaConfig(**TINY)
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in published_layout(config).items()}
    config.save_pretrained(tmp_path / "old")
    save_file(state, tmp_path / "old" / "model.safetensors", metadata={"format": "pt"})
    loaded, told = AutoModelForCausalLM.from_pretrained(tmp_path / "old", output_loading_info=True)
    assert isinstance(loaded, StripedHyenaForCausalLM)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    loaded.save_pretrained(tmp_path / "new")
    saved = load_file(tmp_path / "new" / "model.safetensors")
    assert saved.keys() == {name for name in state if "rotary_emb" not in name}
    assert all(saved[name].equal(state[name]) for name in saved)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    with torch.no_grad():
        assert again(ids()).logits.equal(loaded(ids()).logits)
        assert AutoModel.from_pretrained(tmp_path / "new")(ids())[0].equal(loaded.backbone(ids())[0])
    assert isinstance(AutoModel.from_pretrained(tmp_path / "new"), StripedHyenaModel)


def test_the_published_7b_has_its_layout() -> None:
    config = StripedHyenaConfig()
    with torch.device("meta"):
        large = StripedHyenaForCausalLM(config)
    expected = {name: shape for name, shape in published_layout(config).items() if "rotary_emb" not in name}
    assert {name: tuple(x.shape) for name, x in large.state_dict().items()} == expected
    assert round(sum(parameter.numel() for parameter in large.parameters()) / 1e7) == 765  # told as 7.65 B
    assert config.num_key_value_heads == 8 and config.layer_types.count("full_attention") == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"inner_mlp_size": 32},
            r"backbone.blocks.0.mlp.l1.weight is \(24, 16\) in the file and \(32, 16\) in the model",
        ),
        ({"hidden_size": 32}, r"backbone.blocks.0.filter.D is \(16,\) in the file and \(32,\) in the model"),
        ({"num_layers": 6}, r"weights are not in the file \(first: backbone.blocks.4.filter.D\)"),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_weights_of_other_sizes_are_named(change: dict[str, Any], message: str, tied: bool, tmp_path: Path) -> None:
    model(tie_embeddings=tied).save_pretrained(tmp_path)
    StripedHyenaConfig(**TINY | {"tie_embeddings": tied} | change).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message) as told:
        aimc.load_pretrained(tmp_path)
    assert "\n" not in str(told.value)


def test_a_published_config_is_read_as_it_is() -> None:
    config = StripedHyenaConfig.from_dict(
        TINY
        | {"attn_layer_idxs": [2], "hyena_layer_idxs": [0, 1, 3, 4], "tie_embeddings": True, "use_flash_attn": True}
        | {"num_filters": 16, "mha_out_proj_bias": True, "torch_dtype": "bfloat16"}
    )
    assert config.layer_types == ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
    assert (config.num_hidden_layers, config.max_position_embeddings, config.tie_word_embeddings) == (4, 64, True)
    tied = StripedHyenaForCausalLM(config)
    assert tied.backbone.unembed.weight is tied.backbone.embedding_layer.weight
    assert tied.get_output_embeddings() is tied.backbone.unembed


def test_poles_stay_in_float32(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    block = half.backbone.blocks[0]
    assert block.filter.poles.dtype == block.filter.residues.dtype == torch.float32
    assert block.projections.weight.dtype == torch.bfloat16
    torch.testing.assert_close(half(ids()).logits.float(), model()(ids()).logits, atol=2e-2, rtol=0.1)


def test_poles_stay_in_float32_when_the_model_is_cast() -> None:
    half = model().to(torch.bfloat16).backbone.blocks[0]
    assert half.filter.poles.dtype == half.filter.residues.dtype == torch.float32
    assert half.filter.short_filter_weight.dtype == half.projections.weight.dtype == torch.bfloat16


def test_a_tied_head_goes_by_transformers_name_too(tmp_path: Path) -> None:
    tied = model(tie_word_embeddings=True)
    assert tied.config.tie_embeddings and tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    tied.config.tie_word_embeddings = False  # as when tiles part them
    tied.config.save_pretrained(tmp_path)
    assert not type(tied.config).from_pretrained(tmp_path).tie_embeddings


def test_poles_outside_the_circle_are_pulled_back_where_asked() -> None:
    wild = model(max_pole_radius=1.0).backbone.blocks[0].filter
    with torch.no_grad():
        wild.poles.mul_(1.5)
    assert wild.modes()[0].abs().max() <= 1 + 1e-12
    wild.max_radius = None
    assert wild.modes()[0].abs().max() > 1.4


def test_the_norm_adds_its_eps_to_the_root() -> None:
    norm = StripedHyenaNorm(StripedHyenaConfig(**TINY | {"eps": 0.5}))
    x = torch.randn(3, 16)
    torch.testing.assert_close(norm(x), x / (x.norm(dim=-1, keepdim=True) / 4 + 0.5))


def test_it_trains() -> None:
    fresh = model().train()
    fresh(ids(), labels=ids(), use_cache=False).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in fresh.parameters())
    assert fresh.backbone.blocks[0].out_filter_dense.weight.std() < 0.012 < fresh.backbone.blocks[0].mlp.l1.weight.std()


def test_only_its_attention_goes_onto_arrays() -> None:
    report = aimc.convert(model(), presets.gain_cell_cmos())
    assert report.layers == ["backbone.blocks.1.inner_mha_cls", "backbone.blocks.3.inner_mha_cls"]
    assert (report.n_heads, report.n_kv_heads) == (4, 2)
    assert any("layers 0, 2 have no attention and stay digital" in note for note in report.notes)
    with pytest.raises(ValueError, match="none of its 4 layers has attention"):
        aimc.convert(model(attn_layer_idxs=[]), presets.gain_cell_cmos())


def test_a_text_longer_than_it_was_built_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a text of 65 tokens, but StripedHyenaConfig.max_position_embeddings=64"):
        model()(ids(65))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_layer_idxs": [4]}, r"attn_layer_idxs=\[4\]: there is no layer 4 among 4"),
        ({"num_attention_heads": 3, "proj_groups": 1}, "hidden_size=16: not a multiple of num_attention_heads=3"),
        ({"proj_groups": 3}, "num_attention_heads=4: not a multiple of proj_groups=3"),
        ({"hyena_filter_groups": 2}, "hyena_filter_groups=2: .*use 1"),
        ({"smeared_gqa": True}, "smeared_gqa=True: .*use False"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StripedHyenaConfig(**TINY | changes)
