"""Saving and loading: bit for bit, and errors that say what is wrong with a folder."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2LMHeadModel, PreTrainedModel

import aimc
from aimc.hardware import HARDWARE_VERSION, Array, Hardware
from aimc.models.arrays import gain_cell_layers, hardware_of, set_generator
from aimc.models.checkpoint import is_converted
from tests.conftest import REPOSITORY
from tests.tiny_models import FAMILIES, ids, tiny_model

SHIPPED = REPOSITORY / "checkpoints" / "shipped"


def trained(model: PreTrainedModel, hardware: Hardware, skip_layers: tuple[int, ...] = ()) -> PreTrainedModel:
    """Converted, with every parameter of its arrays away from its start."""
    aimc.convert(model, hardware, skip_layers=skip_layers)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, layer in gain_cell_layers(model):
            for parameter in layer.parameters():
                parameter.add_(0.2 * torch.rand(parameter.shape, generator=generator))
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    set_generator(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(ids()).logits


def assert_same(loaded: PreTrainedModel, model: PreTrainedModel) -> None:
    state = loaded.state_dict()
    assert set(state) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == state[name].dtype and torch.equal(tensor, state[name]), name
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("activation", ["hard_sigmoid", "softmax"])
@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load_bit_for_bit(family: str, activation: str, hardware: Hardware, tmp_path: Path) -> None:
    """Weights, scalers, hardware, chip, skipped layers; with noise that is drawn and noise that belongs to the chip."""
    if activation == "softmax":
        hardware = Hardware(activation="softmax", array=Array(window=16, rows=4))
    hardware.noise.write_v, hardware.noise.mismatch_gain = 0.001, 0.05
    model = trained(tiny_model(family), hardware, skip_layers=(1,))
    aimc.set_chip(model, 5)
    model.save_pretrained(tmp_path)
    loaded = aimc.from_pretrained(tmp_path)
    assert type(loaded) is type(model) and hardware_of(loaded) == hardware
    assert [(layer.layer, layer.chip_seed) for _, layer in gain_cell_layers(loaded)] == [(0, 5)]
    assert loaded.config.aimc == model.config.aimc
    assert loaded.config.to_dict() == model.config.to_dict() | {"_name_or_path": str(tmp_path)}
    assert not loaded.config.use_cache and loaded.generation_config.use_cache
    assert_same(loaded, model)
    assert not list(tmp_path.glob("*.bin"))  # nothing is pickled
    names = set(load_file(tmp_path / "model.safetensors"))
    assert any("gain_cell.query_scaler.scale" in name for name in names)
    assert any("gain_cell.score_gain" in name for name in names) is (activation == "softmax")


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_model_goes_back_to_digital(family: str, hardware: Hardware, tmp_path: Path) -> None:
    digital = logits(tiny_model(family))
    trained(tiny_model(family), hardware).save_pretrained(tmp_path)
    assert torch.equal(logits(aimc.to_digital(aimc.from_pretrained(tmp_path))), digital)


def test_load_from_shards(model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path) -> None:
    trained(model, hardware).save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert_same(aimc.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_tied_weights_stay_tied(family: str, tied: bool, hardware: Hardware, tmp_path: Path) -> None:
    model = trained(tiny_model(family, tie_word_embeddings=tied), hardware)
    model.save_pretrained(tmp_path)
    loaded = aimc.from_pretrained(tmp_path)
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) is tied
    assert_same(loaded, model)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_bfloat16_weights_with_float32_scalers(family: str, hardware: Hardware, tmp_path: Path) -> None:
    trained(tiny_model(family), hardware).save_pretrained(tmp_path / "full")
    half = aimc.from_pretrained(tmp_path / "full", dtype=torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in half.named_parameters()}
    assert all(dtype == (torch.float32 if ".gain_cell." in name else torch.bfloat16) for name, dtype in dtypes.items())
    assert logits(half).dtype == torch.bfloat16
    half.save_pretrained(tmp_path / "half")
    assert_same(aimc.from_pretrained(tmp_path / "half"), half)
    assert next(aimc.from_pretrained(tmp_path / "half", dtype=torch.float32).parameters()).dtype == torch.float32


def test_generation_settings_are_saved(hardware: Hardware, tmp_path: Path) -> None:
    model = trained(tiny_model("qwen3"), hardware)
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path)
    loaded = aimc.from_pretrained(tmp_path)
    assert loaded.generation_config.use_cache and loaded.generation_config.max_new_tokens == 3
    assert loaded.generate(ids(batch=1, length=5)).shape == (1, 8)


@pytest.mark.parametrize("stage", ["linear", "adapted", "finetuned"])
def test_version_1_still_loads(stage: str) -> None:
    record = json.loads((SHIPPED / stage / "config.json").read_text())["aimc"]
    if record["version"] != 1:
        pytest.skip("shipped again by a newer version")
    model = aimc.from_pretrained(SHIPPED / stage)
    assert model.config.aimc["version"] == HARDWARE_VERSION
    assert (model.config.aimc["skip_layers"], model.config.aimc["chip_seed"]) == ([], None)
    assert hardware_of(model).cell.coefficients == record["cell"]["coefficients"]
    assert model.generation_config.use_cache


def repository_in_cache(cache: Path, folder: Path) -> None:
    """The hub's cache, as if `someone/model` had been downloaded."""
    root = cache / "models--someone--model"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc")
    shutil.copytree(folder, root / "snapshots" / "abc")


@pytest.mark.parametrize("shards", ["1GB", "20KB"])
def test_hub_model_from_the_cache_without_network(
    shards: str, model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(model, hardware).save_pretrained(tmp_path / "m", max_shard_size=shards)
    repository_in_cache(tmp_path / "cache", tmp_path / "m")
    monkeypatch.setattr("aimc.models.hub.hub_answers", lambda name: False)
    assert_same(aimc.from_pretrained("someone/model", cache_dir=tmp_path / "cache"), model)


@pytest.mark.parametrize(
    "name", ["someone/no-such-model-of-aimc", "no-such-model-of-aimc", "../nowhere", "/no/such/folder", "a/b/c"]
)
def test_missing_models_are_said_to_be_missing_quickly(name: str) -> None:
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError, match="no model there"):
        aimc.from_pretrained(name)
    assert time.perf_counter() - start < 10


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no config.json"):
        aimc.from_pretrained(tmp_path)


def saved(model: PreTrainedModel, hardware: Hardware, folder: Path) -> Path:
    trained(model, hardware).save_pretrained(folder)
    return folder


def test_loading_a_digital_model(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a digital model"):
        aimc.from_pretrained(tmp_path)


def test_loading_a_truncated_file(model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path) -> None:
    file = saved(model, hardware, tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="incomplete or damaged"):
        aimc.from_pretrained(tmp_path)


def test_loading_without_the_weights(model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path) -> None:
    (saved(model, hardware, tmp_path) / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"incomplete \(no model.safetensors\)"):
        aimc.from_pretrained(tmp_path)


def test_loading_with_a_shard_missing(model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path) -> None:
    trained(model, hardware).save_pretrained(tmp_path, max_shard_size="20KB")
    lost = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=rf"incomplete \(no {lost.name}\)"):
        aimc.from_pretrained(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": {"a": 1}}'])
def test_loading_with_a_damaged_list_of_shards(
    index: str, model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path
) -> None:
    (saved(model, hardware, tmp_path) / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match="incomplete or damaged"):
        aimc.from_pretrained(tmp_path)


def test_a_wrong_keyword_is_told_as_such(model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path) -> None:
    saved(model, hardware, tmp_path)
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        aimc.from_pretrained(tmp_path, colour="red")


@pytest.mark.parametrize("error", [AttributeError("a mistake"), RuntimeError("out of memory")])
def test_other_errors_are_no_damage(
    error: Exception, model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistakes in a program, or a machine that is too small, come out as they are."""
    saved(model, hardware, tmp_path)

    def fails(self: PreTrainedModel, *args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(GPT2LMHeadModel, "__init__", fails)
    with pytest.raises(type(error), match=str(error)) as caught:
        aimc.from_pretrained(tmp_path)
    assert caught.value is error
    monkeypatch.undo()
    monkeypatch.setattr(GPT2LMHeadModel, "load_state_dict", fails)
    with pytest.raises(type(error), match=str(error)):
        aimc.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("transformer.h.1.mlp.c_fc.weight", "size mismatch for .*c_fc.*incomplete or damaged"),
        ("transformer.h.1.attn.gain_cell.key_scaler.offset", "do not fit.*size mismatch for .*key_scaler"),
    ],
)
def test_loading_a_tensor_of_another_shape(
    changed: str, message: str, model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path
) -> None:
    file = saved(model, hardware, tmp_path) / "model.safetensors"
    tensors = load_file(file)
    tensors[changed] = torch.zeros(3, 5)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        aimc.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("transformer.h.1.mlp.c_fc.weight", "not in the file.*c_fc"),
        ("transformer.h.1.attn.gain_cell.key_scaler.offset", "do not fit.*key_scaler"),
    ],
)
def test_loading_with_a_tensor_missing(
    lost: str, message: str, model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path
) -> None:
    """Never a weight that is random instead."""
    file = saved(model, hardware, tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors[lost]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        aimc.from_pretrained(tmp_path)


def test_loading_a_damaged_config(model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path) -> None:
    file = saved(model, hardware, tmp_path) / "config.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(ValueError, match="config.json is damaged"):
        aimc.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config.json is damaged"):
        is_converted(tmp_path)


@pytest.mark.parametrize("config", ["[]", '{"aimc": 3}', '{"aimc_static": "tiles"}'])
def test_loading_a_config_of_other_kinds(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="config.json is damaged"):
        aimc.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"), [("version", 999, "version=999"), ("colour", "red", "hardware.colour='red'")]
)
def test_loading_another_version(
    key: str, value: object, message: str, model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path
) -> None:
    file = saved(model, hardware, tmp_path) / "config.json"
    config = json.loads(file.read_text())
    config["aimc"][key] = value
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        aimc.from_pretrained(tmp_path)


def without_mark(folder: Path) -> Path:
    """As an aimc wrote it that was no quantisation method of transformers yet."""
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"], config["attn_implementation"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_older_converted_folder_is_a_plain_model_to_transformers(
    model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The digital weights load, not silently; and converting those again works."""
    digital = logits(model)
    loaded = AutoModelForCausalLM.from_pretrained(without_mark(saved(model, hardware, tmp_path)))
    assert "gain_cell.query_scaler.scale" in caplog.text and "UNEXPECTED" in caplog.text
    assert is_converted(loaded.config)
    assert torch.equal(logits(loaded), digital)
    assert len(aimc.convert(loaded, hardware).layers) == 2


def test_a_folder_says_whether_it_is_converted(model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path) -> None:
    digital, analog, tiles = tmp_path / "digital", tmp_path / "analog", tmp_path / "tiles"
    model.save_pretrained(digital)
    model.config.aimc_static = {"version": 1}
    model.config.save_pretrained(tiles)
    del model.config.aimc_static
    saved(model, hardware, analog)
    for folder, expected in ((digital, False), (analog, True), (tiles, True)):
        assert is_converted(folder) is is_converted(str(folder)) is is_converted(folder / "config.json") is expected
        assert is_converted(AutoConfig.from_pretrained(folder)) is expected
    assert is_converted(model.config) and not is_converted(aimc.to_digital(model).config)
    with pytest.raises(FileNotFoundError, match="no config.json"):
        is_converted(tmp_path)


def test_a_converted_folder_that_a_plain_loader_has_read_is_not_measured_as_digital(
    model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path, tokens: torch.Tensor
) -> None:
    """Its weights were trained for the arrays that the loader leaves out, so every ratio to it would be wrong."""
    aimc.convert(model, hardware)
    model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(without_mark(tmp_path))
    with pytest.raises(ValueError, match=r"config\.aimc says that this GPT2LMHeadModel is converted.*from_pretrained"):
        aimc.perplexity(plain, tokens)
    with pytest.raises(ValueError, match="a plain loader has left the analog part out"):
        aimc.match_statistics(model, plain, [tokens[:32].view(1, 32)], parts=("output",))
    aimc.perplexity(aimc.to_digital(aimc.from_pretrained(tmp_path)), tokens)
