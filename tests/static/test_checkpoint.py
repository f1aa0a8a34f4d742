"""Static tiles saved and loaded: weights and scales to the bit, and each layer with the configuration it had."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import PreTrainedModel

import aimc
from aimc.hardware import Hardware
from aimc.static import Static, follow_optimizer, presets, static_layers
from aimc.static.encoding import encode
from tests.static.test_layers import logits
from tests.tiny_models import ids, tiny_model

TWO_CONFIGS = Static(rpu_config="pcm", overrides={"*.mlp.*": "reram"}, head=True)


def trained(model: PreTrainedModel, hardware: Hardware | None, static: Static, steps: int = 3) -> PreTrainedModel:
    aimc.convert(model, hardware, static)
    aimc.static.calibrate_input_ranges(model, [ids()])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    follow_optimizer(model, optimizer)
    torch.manual_seed(1)
    model.train()
    for _ in range(steps):
        model(ids(), labels=ids()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("with_arrays", [True, False])
def test_two_configurations_come_back_as_two(
    family: str, with_arrays: bool, hardware: Hardware, tmp_path: Path
) -> None:
    model = trained(tiny_model(family), hardware if with_arrays else None, TWO_CONFIGS)
    model.save_pretrained(tmp_path)
    loaded = aimc.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    before = {name: encode(layer.tiles[0].rpu_config) for name, layer in static_layers(model)}
    after = {name: encode(layer.tiles[0].rpu_config) for name, layer in static_layers(loaded)}
    assert after == before and len({json.dumps(config) for config in after.values()}) == 2
    assert {key: value.shape for key, value in loaded.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert loaded.config.aimc_static == model.config.aimc_static


def test_a_file_holds_plain_tensors_under_digital_names(tmp_path: Path) -> None:
    model = trained(tiny_model("gpt2"), None, Static(rpu_config="pcm"))
    model.save_pretrained(tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"}
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["transformer.h.0.mlp.c_fc.weight"].shape == (32, 128)  # Conv1D's own layout
    assert "transformer.h.0.mlp.c_fc.analog_module.mapping_scales" in tensors
    assert not any(name.endswith(("analog_ctx", "alpha", "analog_tile_state")) for name in tensors)


def test_programmed_tiles_are_saved_as_their_targets(tmp_path: Path) -> None:
    model = trained(tiny_model("gpt2"), None, Static(rpu_config="pcm"))
    targets = logits(model)
    aimc.static.program(model, seed=0)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(aimc.from_pretrained(tmp_path)), targets)


def test_a_changed_configuration_is_saved_or_refused(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    aimc.convert(model, Static(rpu_config="pcm"))
    layer = dict(static_layers(model))["transformer.h.1.mlp.c_fc"]
    layer.tiles[0].rpu_config.forward.out_noise = 0.5
    with pytest.raises(ValueError, match="changed since the model's record"):
        model.save_pretrained(tmp_path / "refused")
    aimc.static.write_static_record(model)
    model.save_pretrained(tmp_path / "saved")
    loaded = dict(static_layers(aimc.from_pretrained(tmp_path / "saved")))
    assert loaded["transformer.h.1.mlp.c_fc"].tiles[0].rpu_config.forward.out_noise == 0.5
    assert loaded["transformer.h.0.mlp.c_fc"].tiles[0].rpu_config.forward.out_noise == presets.OUTPUT_NOISE
    aimc.static.set_rpu_config(model, "reram", layers=["*.h.0.*"])
    model.save_pretrained(tmp_path / "other")
    loaded = dict(static_layers(aimc.from_pretrained(tmp_path / "other")))
    kinds = {name: type(layer.tiles[0].rpu_config.noise_model).__name__ for name, layer in loaded.items()}
    assert (
        kinds["transformer.h.0.mlp.c_fc"] == "ReRamCMONoiseModel"
        and kinds["transformer.h.1.mlp.c_fc"] == "PCMLikeNoiseModel"
    )


def test_another_configuration_is_for_all_layers_or_none_and_keeps_input_ranges() -> None:
    model = trained(tiny_model("gpt2"), None, Static(rpu_config="pcm"))
    layers = [layer for _, layer in static_layers(model)]
    ranges = [tile.input_range.clone() for layer in layers for tile in layer.tiles]
    aimc.static.set_rpu_config(model, "reram")
    model.train()
    model(ids()).logits.sum().backward()  # aihwkit would take its ranges from this batch
    after = [tile.input_range for layer in layers for tile in layer.tiles]
    assert all(torch.equal(x, y) for x, y in zip(ranges, after, strict=True))
    on_the_crossbar = copy.deepcopy(layers[0].tiles[0].rpu_config)
    on_the_crossbar.mapping.digital_bias = False
    before = [layer.analog_module for layer in layers]
    with pytest.raises(ValueError, match="digital_bias=False"):
        aimc.static.set_rpu_config(model, on_the_crossbar)
    assert [layer.analog_module for layer in layers] == before


def test_a_model_without_its_head_comes_back_with_one(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    aimc.convert(model, Static(rpu_config="pcm"))
    model.save_pretrained(tmp_path / "whole")
    body = transformers.AutoModel.from_pretrained(tmp_path / "whole")
    assert len(list(static_layers(body))) == len(list(static_layers(model)))


def test_to_digital_after_loading_is_exact(tmp_path: Path) -> None:
    model = tiny_model("llama")
    digital = logits(model)
    aimc.convert(model, Static(rpu_config="pcm"))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(aimc.to_digital(aimc.from_pretrained(tmp_path))), digital)


def test_load_state_dict_keeps_each_layers_own_configuration() -> None:
    """aihwkit's own loading would replace the configuration by that of the file."""
    model, other = tiny_model("gpt2"), tiny_model("gpt2", seed=1)
    aimc.convert(model, Static(rpu_config="pcm"))
    aimc.convert(other, Static(rpu_config="reram"))
    other.load_state_dict(model.state_dict())
    assert type(next(static_layers(other))[1].tiles[0].rpu_config.noise_model).__name__ == "ReRamCMONoiseModel"
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(version=9), "version=9: this aimc reads version 1"),
        (lambda record: record["layers"].update({"transformer.h.0.mlp.c_fc": 7}), "damaged"),
        (lambda record: record["layers"].update({"transformer.h.9.mlp": 0}), "no such linear layer"),
        (lambda record: record["configs"][0].update(object="os.system"), "not one of aihwkit's classes"),
    ],
)
def test_damaged_records(change: object, message: str, tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    aimc.convert(model, Static(rpu_config="pcm"))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config["aimc_static"])  # type: ignore[operator]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        aimc.from_pretrained(tmp_path)
