"""Conversion: what it replaces, what the model then does, and the way back."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

import aimc
from aimc import presets
from aimc.hardware import Hardware, Pruning
from aimc.models.arrays import gain_cell_layers
from aimc.static import Static
from tests.conftest import POSITIONS, VOCABULARY, tiny_gpt2
from tests.tiny_models import FAMILIES, tiny_model


def ids(seed: int = 3, batch: int = 2, length: int = POSITIONS) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_report_names_every_layer(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    report = aimc.convert(model, hardware)
    assert report.layers == ["transformer.h.0.attn", "transformer.h.1.attn"]
    assert (report.n_heads, report.n_kv_heads, report.head_size, report.n_scalers) == (2, 2, 16, 2 * 4 * 2 * 2)
    assert report.skipped == report.notes == []
    assert "transformer.h.1.attn" in str(report)


@pytest.mark.parametrize("sizes", [{"n_layer": 1, "n_head": 1}, {"n_layer": 3, "n_head": 4, "n_embd": 48}])
def test_every_size_converts(sizes: dict[str, int], hardware: Hardware) -> None:
    model = tiny_gpt2(**sizes)
    report = aimc.convert(model, hardware)
    assert len(report.layers) == sizes["n_layer"]
    assert torch.isfinite(model(ids()).logits).all()


def test_forward_is_the_operator(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    """The first layer's attention output, recomputed by hand from its inputs through the public operator."""
    aimc.convert(model, hardware)
    attention = model.transformer.h[0].attn
    seen: dict[str, torch.Tensor] = {}
    attention.c_attn.register_forward_hook(lambda _, __, out: seen.update(qkv=out))
    attention.c_proj.register_forward_pre_hook(lambda _, args: seen.update(out=args[0]))
    with torch.no_grad():
        for part in ("query", "key", "value", "output"):
            attention.gain_cell.scaler(part).scale.mul_(1.3)
        model(ids())
        q, k, v = (x.view(2, POSITIONS, 2, 16).transpose(1, 2) for x in seen["qkv"].split(32, dim=2))
        expected = 1.3 * aimc.gain_cell_attention(1.3 * q, 1.3 * k + 0.45, 1.3 * v + 0.45, hardware)
    torch.testing.assert_close(seen["out"], expected.transpose(1, 2).reshape(2, POSITIONS, 32))


def test_gradients_reach_every_scaler_and_weight(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    aimc.convert(model, hardware)
    model(ids(), labels=ids()).loss.backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert without == []


def test_padding_on_the_right_does_not_reach_the_past(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    aimc.convert(model, hardware)
    text = ids(batch=1)
    mask = torch.ones_like(text)
    mask[:, 20:] = 0
    other = text.clone()
    other[:, 20:] = 5
    with torch.no_grad():
        first, second = model(text, attention_mask=mask).logits, model(other, attention_mask=mask).logits
    torch.testing.assert_close(first[:, :20], second[:, :20])


def test_padding_inside_changes_what_follows(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    aimc.convert(model, hardware)
    mask = torch.ones(1, POSITIONS, dtype=torch.long)
    mask[:, :9] = 0
    with torch.no_grad():
        assert not torch.allclose(
            model(ids(batch=1)).logits[:, 9:], model(ids(batch=1), attention_mask=mask).logits[:, 9:]
        )


def test_only_generation_keeps_a_cache(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    aimc.convert(model, hardware)
    assert not model.config.use_cache and model.generation_config.use_cache
    with torch.no_grad():
        assert model(ids()).past_key_values is None
        text = model.generate(
            ids(batch=1, length=5), max_new_tokens=4, do_sample=False, pad_token_id=0, return_dict_in_generate=True
        )
        assert type(text.past_key_values).__name__ == "GainCellCache"
        assert text.sequences.shape == (1, 9)
        assert text.sequences[0, 5] == model(text.sequences[:, :5]).logits[0, -1].argmax()


def test_digital_cache_is_refused(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    cache = model(ids(length=8), use_cache=True).past_key_values
    aimc.convert(model, hardware)
    with pytest.raises(TypeError, match="GainCellCache"):
        model(ids(length=1), past_key_values=cache, use_cache=True)


def test_converting_twice_is_refused(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    aimc.convert(model, hardware)
    with pytest.raises(ValueError, match="set_hardware"):
        aimc.convert(model, hardware)


def test_token_time_comes_from_the_model(hardware: Hardware) -> None:
    hardware.leakage.token_time_s, hardware.leakage.step_latency_s = None, 65e-9
    model = tiny_gpt2(n_layer=3)
    aimc.convert(model, hardware, skip_layers=[1])
    assert aimc.models.machine_of(model).leakage.token_time_s == pytest.approx(3 * 65e-9)
    assert [layer.machine.leakage.token_time_s for _, layer in gain_cell_layers(model)] == pytest.approx(
        [3 * 65e-9] * 2
    )
    assert hardware.leakage.token_time_s is None


def test_softmax_asks_for_calibration(model: GPT2LMHeadModel) -> None:
    report = aimc.convert(model, Hardware(activation="softmax", array=aimc.hardware.Array(window=16, rows=4)))
    assert any("calibrate_ranges" in note for note in report.notes)
    assert report.n_scalers == 2 * (4 * 2 * 2 + 2)


def test_training_or_not_is_kept(hardware: Hardware) -> None:
    model = tiny_gpt2().train()
    aimc.convert(model, hardware)
    assert model.training and all(layer.training for _, layer in gain_cell_layers(model))


def test_to_digital_gives_the_plain_model_back(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    original = copy.deepcopy(model)
    aimc.convert(model, hardware)
    with torch.no_grad():
        assert not torch.allclose(model(ids()).logits, original(ids()).logits)
        aimc.to_digital(model)
        torch.testing.assert_close(model(ids()).logits, original(ids()).logits, rtol=0, atol=0)
    assert set(model.state_dict()) == set(original.state_dict())
    assert not hasattr(model.config, "aimc")
    with pytest.raises(ValueError, match="digital already"):
        aimc.to_digital(model)


def test_and_converts_again(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    aimc.convert(model, hardware)
    with torch.no_grad():
        first = model(ids()).logits
        aimc.convert(aimc.to_digital(model), hardware)
        assert torch.equal(model(ids()).logits, first)


@pytest.mark.parametrize("family", FAMILIES)
def test_digital_again_saves_a_plain_checkpoint(family: str, hardware: Hardware, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "before")
    aimc.convert(model, hardware, skip_layers=[1])
    aimc.to_digital(model).save_pretrained(tmp_path / "after")
    before, after = (json.loads((tmp_path / when / "config.json").read_text()) for when in ("before", "after"))
    assert before == after
    before, after = (load_file(tmp_path / when / "model.safetensors") for when in ("before", "after"))
    assert set(before) == set(after)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "after")
    with torch.no_grad():
        assert torch.equal(loaded(ids()).logits, model(ids()).logits)


def test_set_hardware_keeps_weights(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    with pytest.raises(ValueError, match="no gain-cell layer"):
        aimc.set_hardware(model, hardware)
    aimc.convert(model, hardware)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = aimc.presets.linearised(hardware)
    aimc.set_hardware(model, other)
    assert model.config.aimc["cell"]["coefficients"] == other.cell.coefficients
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_configs_go_by_their_type() -> None:
    pytest.importorskip("aihwkit")
    model = tiny_model("gpt2")
    before = (list(model.state_dict()), model.config.to_dict())
    hardware = presets.ideal()
    refused: list[tuple[tuple[object, ...], dict[str, object], type[Exception], str]] = [
        ((), {}, ValueError, "no config is given, so nothing would be replaced"),
        (
            ("pcm",),
            {},
            TypeError,
            "a str says nothing of what to put a model on; give an? aimc.*Hardware or aimc.*Static",
        ),
        ((hardware, hardware), {}, ValueError, "two configs of type Hardware"),
        ((Static(),), {"skip_layers": [0]}, ValueError, "no aimc.Hardware is given"),
        ((hardware, Static(layers=["*.nothing.*"])), {}, ValueError, "no linear layer has such a name"),
        ((Static(), hardware), {"skip_layers": [7]}, ValueError, "no layer 7"),
    ]
    for configs, more, kind, message in refused:
        with pytest.raises(kind, match=message):
            aimc.convert(model, *configs, **more)  # type: ignore[arg-type]
        assert (list(model.state_dict()), model.config.to_dict()) == before, "a refusal leaves no trace"
    report = aimc.convert(model, Static(rpu_config="noiseless"), hardware)  # in any order
    assert report.layers and report.static
    aimc.to_digital(model)
    assert list(model.state_dict()) == before[0]
    assert not {"aimc", "aimc_static"} & model.config.to_dict().keys()


def test_the_old_spelling_warns_and_works() -> None:
    pytest.importorskip("aihwkit")
    model = tiny_model("gpt2")
    with pytest.warns(DeprecationWarning, match="give configs by type"):
        report = aimc.convert(model, None, static="noiseless")
    assert report.static and not report.layers


def test_a_record_of_hardware_that_is_not_there_goes_only_when_nothing_speaks_against_it() -> None:
    """A converted folder that was read as a digital model has such a record in its config."""
    model = tiny_model("gpt2")
    model.config.aimc_static = {"version": 1}
    with pytest.raises(ValueError, match="no layer 7"):
        aimc.convert(model, presets.ideal(), skip_layers=[7])
    assert model.config.aimc_static == {"version": 1}
    aimc.convert(model, presets.ideal())
    assert not hasattr(model.config, "aimc_static")


def test_layers_that_are_aihwkits_already_are_called_so() -> None:
    nn = pytest.importorskip("aihwkit.nn")
    model = tiny_model("llama")
    config = Static(rpu_config="noiseless").config_of("")
    mlp = model.model.layers[0].mlp
    mlp.up_proj = nn.AnalogLinear(mlp.up_proj.in_features, mlp.up_proj.out_features, bias=False, rpu_config=config)
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.up_proj is aihwkit's own AnalogLinear already"):
        aimc.convert(model, Static(layers=["model.layers.0.mlp.up_proj"]))
    report = aimc.convert(model, Static(rpu_config="noiseless", layers=["*.down_proj"]))
    assert report.elsewhere == {"model.layers.0.mlp.up_proj": "AnalogLinear"}
    assert not any(name.startswith("model.layers.0.mlp.up_proj") for name in report.digital)
    assert "aihwkit's own" in str(report)


def test_models_of_one_config_are_on_hardware_of_their_own(hardware: Hardware, tmp_path: Path) -> None:
    config = tiny_gpt2().config
    one, two = GPT2LMHeadModel(config).eval(), GPT2LMHeadModel(config).eval()
    digital = two(ids()).logits
    aimc.convert(one, hardware)
    on_arrays = one(ids()).logits
    assert torch.equal(two(ids()).logits, digital) and not aimc.models.is_converted(two.config)
    aimc.convert(two, presets.gain_cell_cmos())
    aimc.to_digital(two)
    assert torch.equal(one(ids()).logits, on_arrays)
    one.save_pretrained(tmp_path)
    assert aimc.models.hardware_of(aimc.from_pretrained(tmp_path)) == hardware


def test_another_attention_under_arrays_is_refused(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    aimc.convert(model, hardware)
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match=r"set to 'eager' since, which computes without them"):
        model(ids())
    model.set_attn_implementation("gain_cell")
    model(ids())


@pytest.mark.parametrize("use", [True, False])
def test_whether_a_cache_is_kept_is_as_it_was(use: bool, model: GPT2LMHeadModel, hardware: Hardware) -> None:
    model.config.use_cache = model.generation_config.use_cache = use
    aimc.convert(model, hardware)
    aimc.to_digital(model)
    assert model.config.use_cache is use and model.generation_config.use_cache is use


def test_a_comparator_level_that_was_not_calibrated_follows_the_hardware(model: GPT2LMHeadModel) -> None:
    hardware = presets.for_pretrained(presets.gain_cell_cmos(), pruned=Pruning(select="threshold"))
    hardware = replace(hardware, features=replace(hardware.features, rotation_qk="none", rotation_av="none"))
    aimc.convert(model, hardware)
    _, layer = next(gain_cell_layers(model))
    aimc.set_hardware(model, replace(hardware, pruning=replace(hardware.pruning, threshold=0.3)))
    assert layer.prune_threshold.eq(0.3).all()
    layer.prune_threshold[0] = 0.5  # calibrated
    aimc.set_hardware(model, replace(hardware, pruning=replace(hardware.pruning, threshold=0.1)))
    assert layer.prune_threshold.tolist()[0] == 0.5


def test_a_chip_without_a_number_is_refused(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    aimc.convert(model, hardware)
    with pytest.raises(ValueError, match="non-negative"):
        aimc.set_chip(model, -1)
