"""GGUF files as models: read, converted, saved, and what is wrong with one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import aimc
from aimc import presets
from aimc.hardware import Array
from aimc.models.gguf import MissingGguf, find_gguf, load_config, load_model, load_tokenizer
from aimc.models.pretrained import load_pretrained
from tests.conftest import REPOSITORY

gguf = pytest.importorskip("gguf")
D, LAYERS, HEADS, KV_HEADS, HIDDEN = 16, 2, 4, 2, 32
PIECES = ["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(26)), *("ab", "cd", "ef")]
SMOLLM2 = REPOSITORY / "../shared/data/models/SmolLM2-135M"


def write(path: Path, architecture: str = "llama") -> Path:
    """A random Llama of two layers, embeddings tied."""
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(PIECES))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(PIECES)
    writer.add_token_types([3, 3, 3, *[1] * (len(PIECES) - 3)])
    writer.add_token_merges(["a b", "c d", "e f"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, (generator.standard_normal(shape) * 0.3).astype(np.float32))

    tensor("token_embd.weight", len(PIECES), D)
    tensor("output_norm.weight", D)
    for i in range(LAYERS):
        kv = D * KV_HEADS // HEADS
        for name, rows in (("attn_q", D), ("attn_k", kv), ("attn_v", kv), ("attn_output", D)):
            tensor(f"blk.{i}.{name}.weight", rows, D)
        for name in ("attn_norm", "ffn_norm"):
            tensor(f"blk.{i}.{name}.weight", D)
        for name in ("ffn_gate", "ffn_up"):
            tensor(f"blk.{i}.{name}.weight", HIDDEN, D)
        tensor(f"blk.{i}.ffn_down.weight", D, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.gguf")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(12)[None]).logits


def test_a_file_and_a_folder_that_holds_one_are_the_model(file: Path) -> None:
    model, tokenizer = load_pretrained(file)
    again, _ = load_pretrained(file.parent)
    assert torch.equal(logits(model), logits(again))
    assert next(model.parameters()).dtype == torch.float32 and not model.training
    assert (model.config.num_hidden_layers, model.config.num_key_value_heads) == (LAYERS, KV_HEADS)
    assert load_config(file).num_attention_heads == HEADS
    assert tokenizer.decode(tokenizer("abcd").input_ids, skip_special_tokens=True).strip() == "abcd"


def test_it_is_cast_converted_and_saved_like_any_other(file: Path, tmp_path: Path) -> None:
    model = load_model(file)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    model.save_pretrained(tmp_path / "digital")
    digital, _ = load_pretrained_weights(tmp_path / "digital")
    assert torch.equal(logits(digital), logits(model))
    aimc.convert(model, presets.with_softmax(presets.ideal()))
    aimc.set_hardware(model, presets.with_softmax(aimc.Hardware(array=Array(window=64, rows=8))))
    model.save_pretrained(tmp_path / "analog")
    assert torch.equal(logits(aimc.from_pretrained(tmp_path / "analog")), logits(model))
    assert logits(model.half().float()).isfinite().all()


def load_pretrained_weights(folder: Path) -> tuple[torch.nn.Module, None]:
    from aimc.models.pretrained import pretrained_model

    return pretrained_model(folder).eval(), None


def test_what_a_file_can_be_wrong_about(file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut" / "model.gguf"
    cut.parent.mkdir()
    cut.write_bytes(file.read_bytes()[:-4000])
    with pytest.raises(ValueError, match=r"model\.gguf: cannot be read .*another copy"):
        load_model(cut)
    cut.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model\.gguf: cannot be read"):
        load_config(cut)
    cut.write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a GGUF file"):
        load_tokenizer(cut)
    with pytest.raises(FileNotFoundError, match=r"none\.gguf"):
        load_config(tmp_path / "none.gguf")
    other = write(tmp_path / "other" / "m.gguf" if (tmp_path / "other").mkdir() is None else tmp_path, "nonesuch")
    with pytest.raises(ValueError, match="nonesuch.*does not read this architecture"):
        load_model(other)
    write(file.parent / "second.gguf")
    with pytest.raises(ValueError, match=r"2 GGUF files \(second\.gguf, tiny\.gguf\)"):
        find_gguf(file.parent)


def test_a_missing_package_is_told_with_the_line_that_installs_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingGguf, match=r"pip install 'aimc\[gguf\]'"):
        load_model(file)


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="the shared data is not here")
def test_a_real_file() -> None:
    model, tokenizer = load_pretrained(SMOLLM2)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()).strip() == "Paris"
