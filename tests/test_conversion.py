"""Conversion, saving and loading: all or nothing, and bit for bit."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import aimc
from aimc.config import Hardware
from aimc.hf import gain_cell_layers
from tests.conftest import POSITIONS, VOCABULARY, tiny_gpt2


def ids(seed: int = 3, batch: int = 2, length: int = POSITIONS) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_report_names_every_layer(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    report = aimc.convert(model, hardware)
    assert report.layers == ["transformer.h.0.attn", "transformer.h.1.attn"]
    assert (report.n_heads, report.head_size, report.n_scalers) == (2, 16, 2 * 4 * 2 * 2)
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
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.abs().sum() > 0]
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
        assert not torch.allclose(model(ids(batch=1)).logits[:, 9:], model(ids(batch=1), attention_mask=mask).logits[:, 9:])


def test_generate_works_without_a_digital_cache(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    aimc.convert(model, hardware)
    text = model.generate(ids(batch=1, length=5), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert text.shape == (1, 9)
    with torch.no_grad():
        assert text[0, 5] == model(text[:, :5]).logits[0, -1].argmax()


def test_digital_cache_is_refused(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    aimc.convert(model, hardware)
    cache = model(ids(length=8), use_cache=True).past_key_values
    with pytest.raises(NotImplementedError, match="use_cache=False"):
        model(ids(length=1), past_key_values=cache, use_cache=True)


def test_unsupported_models_are_refused_unchanged(hardware: Hardware) -> None:
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, bos_token_id=0, eos_token_id=0
        )
    )
    before = set(llama.state_dict())
    with pytest.raises(ValueError, match="llama.*nothing would be replaced.*gpt2"):
        aimc.convert(llama, hardware)
    assert set(llama.state_dict()) == before
    with pytest.raises(ValueError, match="add_cross_attention"):
        aimc.convert(tiny_gpt2(add_cross_attention=True), hardware)


def test_converting_twice_is_refused(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    aimc.convert(model, hardware)
    with pytest.raises(ValueError, match="set_hardware"):
        aimc.convert(model, hardware)


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


def test_save_and_load_bit_for_bit(model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path) -> None:
    hardware.noise.write_v = 0.001
    aimc.convert(model, hardware)
    with torch.no_grad():
        for i, (_, layer) in enumerate(gain_cell_layers(model)):
            layer.key_scaler.scale.mul_(1.1 + i)
            layer.output_scaler.offset.add_(0.01)
    model.save_pretrained(tmp_path / "m")
    loaded = aimc.from_pretrained(tmp_path / "m")
    assert aimc.hf.hardware_of(loaded) == hardware
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    aimc.hf.set_generator(model, torch.Generator().manual_seed(0))
    aimc.hf.set_generator(loaded, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(ids()).logits, loaded(ids()).logits)
    assert not list((tmp_path / "m").glob("*.bin"))  # nothing is pickled
    assert any("gain_cell.query_scaler.scale" in name for name in load_file(tmp_path / "m" / "model.safetensors"))


def test_load_from_shards(model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path) -> None:
    aimc.convert(model, hardware)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    loaded = aimc.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(ids()).logits, loaded(ids()).logits)


def saved(model: GPT2LMHeadModel, hardware: Hardware, folder: Path) -> Path:
    aimc.convert(model, hardware)
    model.save_pretrained(folder)
    return folder


def test_loading_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model there"):
        aimc.from_pretrained(tmp_path / "nowhere")


def test_loading_a_digital_model(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a digital model"):
        aimc.from_pretrained(tmp_path)


def test_loading_a_truncated_file(model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path) -> None:
    file = saved(model, hardware, tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="incomplete or damaged"):
        aimc.from_pretrained(tmp_path)


def test_loading_another_version(model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path) -> None:
    file = saved(model, hardware, tmp_path) / "config.json"
    config = json.loads(file.read_text())
    config["aimc"]["version"] = 999
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="version=999"):
        aimc.from_pretrained(tmp_path)


def test_set_hardware_keeps_weights(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    with pytest.raises(ValueError, match="no gain-cell layer"):
        aimc.set_hardware(model, hardware)
    aimc.convert(model, hardware)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = aimc.presets.linearised(hardware)
    aimc.set_hardware(model, other)
    assert model.config.aimc["cell"]["coefficients"] == other.cell.coefficients
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
