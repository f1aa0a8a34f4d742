"""GGUF files: a tiny random Llama, written as llama.cpp writes it, comes back with the logits and tokens it had, and
what is no whole model is refused on one line."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import aimc
from aimc.models import pretrained
from aimc.models.gguf import INSTALL, GgufError, MissingGguf, find_file
from tests.conftest import REPOSITORY, small_arrays
from train.errors import RunError
from train.models import load_any
from train.pretrained import config_of, load_digital, vocabulary_of
from train.schema import DataConfig, EvaluationConfig
from train.tokens import prepare

gguf = pytest.importorskip("gguf", reason=f"gguf is not installed: {INSTALL}")

SMOLLM2 = REPOSITORY.parent / "shared" / "data" / "models" / "SmolLM2-135M"
WIKITEXT = REPOSITORY.parent / "shared" / "data" / "text" / "wikitext-2" / "wiki.test.raw"
SPECIAL = ["<|endoftext|>", "<|im_start|>"]
MERGES = ["Ġ Ġ", "t h", "th e", "Ġ the", "a b"]
IDS = torch.arange(24)[None] * 7 % 200
SAMPLE = "the lab  at 2019,\n\n3 the"


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) if byte in plain else chr(256 + others.index(byte)) for byte in range(256)]


VOCABULARY = [*SPECIAL, *byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]


def tiny_llama(*, tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            rms_norm_eps=1e-5,
            tie_word_embeddings=tied,
            initializer_range=0.2,
        )
    )
    return model.eval()


def llamacpp_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp keeps the two halves of a head's rotary pairs side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def tensors_of(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """The weights under llama.cpp's names."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    found = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    if not model.config.tie_word_embeddings:
        found["output.weight"] = state["lm_head.weight"]
    names = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    heads = {"attn_q": 4, "attn_k": 2}
    for layer in range(2):
        for short, name in names.items():
            weight = state[f"model.layers.{layer}.{name}.weight"]
            found[f"blk.{layer}.{short}.weight"] = llamacpp_order(weight, heads[short]) if short in heads else weight
    return found


def write_gguf(
    file: Path,
    model: LlamaForCausalLM,
    *,
    architecture: str = "llama",
    pre: str = "smollm",
    quantised: bool = False,
    leave_out: str = "",
    change: Callable[[Any], None] = lambda writer: None,
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_name("Tiny of the tests")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(VOCABULARY) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    change(writer)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, weight in tensors_of(model).items():
        if name == leave_out:
            continue
        if quantised and weight.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="module")
def file(llama: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_is_the_one_that_was_written(tied: bool, tmp_path: Path) -> None:
    written = tiny_llama(tied=tied)
    model = aimc.load_pretrained(write_gguf(tmp_path / "tiny.gguf", written))
    torch.testing.assert_close(logits(model), logits(written), rtol=1e-5, atol=1e-5)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert model.dtype == torch.float32 and not model.training


def test_quantised_weights_are_unpacked_into_an_ordinary_model(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    model = aimc.load_pretrained(write_gguf(tmp_path / "tiny.gguf", llama, quantised=True))
    for (name, got), wanted in zip(model.named_parameters(), llama.parameters(), strict=True):
        assert got.dtype == torch.float32 and got.requires_grad, name
        torch.testing.assert_close(got, wanted, rtol=0, atol=float(wanted.detach().abs().max()) / 127)
    assert not getattr(model, "is_quantized", False) and not hasattr(model, "hf_quantizer")
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    assert aimc.load_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_tokenizer_splits_as_llama_cpp_does(file: Path, llama: LlamaForCausalLM, tmp_path: Path) -> None:
    """`smollm` cuts at each digit before anything else, so that spaces before a digit stay together."""
    smollm = aimc.load_tokenizer(file)
    gpt2 = aimc.load_tokenizer(write_gguf(tmp_path / "gpt2.gguf", llama, pre="gpt-2"))
    assert smollm.tokenize("the  2") == ["the", "ĠĠ", "2"]
    assert gpt2.tokenize("the  2") == ["the", "Ġ", "Ġ", "2"]
    assert smollm.decode(smollm(SAMPLE)["input_ids"]) == SAMPLE
    assert (smollm.bos_token_id, smollm.eos_token_id, len(smollm)) == (1, 0, len(VOCABULARY))


def test_it_saves_and_loads_as_an_ordinary_checkpoint(file: Path, tmp_path: Path) -> None:
    model, tokenizer = aimc.load_pretrained(file), aimc.load_tokenizer(file)
    model.save_pretrained(tmp_path / "digital")
    tokenizer.save_pretrained(tmp_path / "digital")
    aimc.convert(model, small_arrays())
    model.save_pretrained(tmp_path / "analog")
    for folder in ("digital", "analog"):
        written = (tmp_path / folder / "config.json").read_text()
        assert "gguf" not in written and "Tiny of the tests" not in written
        assert (json.loads(written).get("quantization_config") or {"quant_method": "aimc"})["quant_method"] == "aimc"
    assert "quantization_config" not in json.loads((tmp_path / "digital" / "config.json").read_text())
    again = aimc.load_pretrained(tmp_path / "digital")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "digital")), logits(again))
    assert again.lm_head.weight is again.model.embed_tokens.weight
    analog = aimc.from_pretrained(tmp_path / "analog")
    assert torch.equal(logits(analog), logits(model)) and not torch.equal(logits(analog), logits(again))
    assert analog.lm_head.weight is analog.model.embed_tokens.weight
    for loaded in (AutoTokenizer.from_pretrained(tmp_path / "digital"), aimc.load_tokenizer(tmp_path / "digital")):
        assert loaded(SAMPLE)["input_ids"] == tokenizer(SAMPLE)["input_ids"]
        assert (loaded.bos_token, loaded.eos_token) == ("<|im_start|>", "<|endoftext|>")
    with pytest.raises(ValueError, match=r"analog: a converted model, .*; load it with aimc\.from_pretrained"):
        aimc.load_pretrained(tmp_path / "analog")


def test_a_folder_that_holds_one(file: Path, tmp_path: Path) -> None:
    assert find_file(file) == find_file(str(file.parent)) == file
    assert find_file("owner/name") is None and find_file(tmp_path) is None
    shutil.copy(file, tmp_path / "a.gguf")
    shutil.copy(file, tmp_path / "b.GGUF")
    for load in (aimc.load_pretrained, aimc.load_tokenizer, pretrained.load_config):
        with pytest.raises(GgufError, match=r"it holds 2 GGUF files \(a\.gguf, b\.GGUF\), .*; give the path of one"):
            load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert find_file(tmp_path) is None  # transformers' own folder


def one_line(source: Path, error: type[Exception], said: str) -> None:
    """The library's error, and the pipeline's with the setting's name."""
    with pytest.raises(error, match=said) as told:
        aimc.load_pretrained(source)
    assert str(source) in str(told.value) and "\n" not in str(told.value)
    for load in (load_digital, config_of, vocabulary_of):
        with pytest.raises(RunError, match=said) as told_by_run:
            load(str(source))
        assert str(told_by_run.value).startswith(f"model.source={source}")
        assert "\n" not in str(told_by_run.value)


def test_an_unknown_architecture(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    said = "architecture 'nonsense', of which transformers .* makes no model .*; give the model's safetensors folder"
    one_line(write_gguf(tmp_path / "tiny.gguf", llama, architecture="nonsense"), GgufError, said)


@pytest.mark.parametrize("share", [0.0005, 0.02, 0.1, 0.2, 0.9, 0.999])
def test_a_truncated_file(share: float, file: Path, tmp_path: Path) -> None:
    """Cut in the counts, the metadata, the vocabulary, the list of tensors, and the weights."""
    whole = file.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(len(whole) * share)])
    one_line(cut, GgufError, "truncated.* use another copy")


def test_what_is_no_gguf_file(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04" * 100)
    one_line(other, GgufError, "does not begin as a GGUF file does")
    with pytest.raises(FileNotFoundError, match=r"none\.gguf: no such file"):
        aimc.load_pretrained(tmp_path / "none.gguf")


def test_weights_that_are_not_in_the_file(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    part = write_gguf(tmp_path / "part.gguf", llama, leave_out="blk.1.ffn_up.weight")
    with pytest.raises(GgufError, match=r"1 weights are not in the file \(first: model\.layers\.1\.mlp\.up_proj"):
        aimc.load_pretrained(part)


def test_rotary_positions_that_transformers_would_drop(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    def scale(writer: Any) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)

    one_line(
        write_gguf(tmp_path / "yarn.gguf", llama, change=scale), GgufError, r"rotary positions are scaled \(yarn\)"
    )

    def frequencies(writer: Any) -> None:
        writer.add_tensor("rope_freqs.weight", np.ones(4, dtype=np.float32))

    said = r"rotary positions are scaled \(rope_freqs\.weight\), .* would be another one"
    one_line(write_gguf(tmp_path / "llama3.gguf", llama, change=frequencies), GgufError, said)


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_without_the_extra(package: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a))
    one_line(file, MissingGguf, rf"read with {package}, which is not installed; run: pip install 'aimc\[gguf\]'$")


def test_the_pipeline_takes_it(file: Path, llama: LlamaForCausalLM, tmp_path: Path) -> None:
    """As source, as checkpoint to evaluate, and its tokens: another tokenizer in the file is another token file."""
    for source in (str(file), str(file.parent)):
        assert torch.equal(load_digital(source).lm_head.weight, llama.lm_head.weight)
        assert torch.equal(load_any(source).lm_head.weight, llama.lm_head.weight)
    assert EvaluationConfig(checkpoint=str(file)).folder == file.parent / "evaluation"
    (tmp_path / "text").mkdir()
    for i in range(40):
        (tmp_path / "text" / f"{i}.txt").write_text("the lab at 2019 " * 20)
    config = DataConfig(kind="text", path=str(tmp_path / "text"), cache_dir=str(tmp_path / "cache"))
    copy = tmp_path / "copy.gguf"
    shutil.copy(file, copy)
    data = prepare(config, str(copy), 16)
    assert data.tensor("train", 3).tolist() == vocabulary_of(str(file)).tokenizer("the lab")["input_ids"][:3]
    write_gguf(copy, llama, pre="gpt-2")
    assert prepare(config, str(copy), 16).fingerprint != data.fingerprint


@pytest.mark.slow
def test_a_real_one_has_the_published_perplexity() -> None:
    """The manifest of the shared data: 25.15 on the first 4,096 tokens, context 512, stride 256."""
    if not (SMOLLM2.exists() and WIKITEXT.exists()):
        pytest.skip("SmolLM2-135M or WikiText-2 is not here: needs the shared data")
    model, tokenizer = aimc.load_pretrained(SMOLLM2), aimc.load_tokenizer(SMOLLM2)
    tokens = torch.tensor(tokenizer(WIKITEXT.read_text()[:40000])["input_ids"][:4096])
    measured = aimc.perplexity(model, tokens, aimc.evaluate.Measurement(context=512, stride=256))
    assert float(measured) == pytest.approx(25.15, abs=0.01)
