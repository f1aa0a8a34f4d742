"""Linear layers on static tiles: all of them, exactly, and back."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from aihwkit.inference import drift_analog_weights, program_analog_weights
from aihwkit.nn.modules.base import AnalogLayerBase
from aihwkit.simulator.configs import InferenceRPUConfig, SingleRPUConfig, TorchInferenceRPUConfig
from aihwkit.simulator.presets.inference import FloatingPointPreset
from torch import nn
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

import aimc
from aimc.hardware import ConfigError, Hardware
from aimc.static import MissingAihwkit, Static, presets, static_layers
from aimc.static.layer import StaticLinear
from tests.conftest import REPOSITORY
from tests.tiny_models import FAMILIES, LAYERS, ids, tiny_model

PER_BLOCK = {
    "gpt2": 4,
    "gpt_neox": 4,
    "opt": 6,
    "llama": 7,
    "mistral": 7,
    "qwen2": 7,
    "qwen3": 7,
    "gemma2": 7,
    "phi3": 4,
}


def logits(model: PreTrainedModel) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return model(ids(), use_cache=False).logits


def test_shipped_model_computes_the_same_on_noiseless_tiles() -> None:
    model = AutoModelForCausalLM.from_pretrained(REPOSITORY / "checkpoints" / "shipped" / "digital").eval()
    text = torch.randint(2048, (2, 128), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        digital = model(text).logits
        report = aimc.convert(model, Static(rpu_config="noiseless"))
        assert len(report.static) == 4 * 4
        assert float((model(text).logits - digital).abs().max()) < 1e-4
        assert torch.equal(aimc.to_digital(model)(text).logits, digital)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_projection_and_mlp_layer_is_converted(family: str, hardware: Hardware) -> None:
    model = tiny_model(family)
    digital = logits(model)
    kinds = {name: type(module) for name, module in model.named_modules()}
    report = aimc.convert(model, hardware, Static(rpu_config="noiseless"))
    assert len(report.static) == PER_BLOCK[family] * LAYERS and len(report.layers) == LAYERS
    linear = {name for name, kind in kinds.items() if kind in (nn.Linear, Conv1D)}
    assert set(report.static) == linear - {"lm_head", "embed_out"}
    with_weights = {
        name.rpartition(".")[0]
        for name, _ in model.named_parameters()
        if ".gain_cell." not in name and ".analog_module." not in name
    }
    assert with_weights <= set(report.static) | set(report.digital) | {"lm_head"}
    assert all(
        line in str(report)
        for line in ("on gain-cell arrays", "layers on static tiles", "modules with weights stay digital")
    )
    assert torch.equal(logits(aimc.to_digital(model)), digital)
    assert {name: type(module) for name, module in model.named_modules()} == kinds


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_noiseless_tiles_compute_the_digital_product(family: str) -> None:
    model = tiny_model(family)
    digital = logits(model)
    aimc.convert(model, Static(rpu_config="noiseless", head=True, embeddings=True))
    assert float((logits(model) - digital).abs().max()) < 1e-4
    assert float((logits(model) - digital).abs().max()) > 0  # it did go another way


def test_layers_are_split_over_tiles() -> None:
    layer = Conv1D(24, 16)
    config = presets.noiseless()
    config.mapping.max_input_size, config.mapping.max_output_size = 7, 10
    static = StaticLinear(layer, config, "layer").eval()
    assert len(static.tiles) == 9
    x = torch.randn(2, 5, 16)
    assert torch.allclose(static(x), layer(x), atol=1e-5)


def test_shared_head_and_embedding() -> None:
    model = tiny_model("gpt2")
    n_parameters, digital = model.num_parameters(), logits(model)
    assert any("shares its weights" in note for note in aimc.convert(model, Static(rpu_config="noiseless")).notes)
    assert model.lm_head.weight is model.transformer.wte.weight
    aimc.to_digital(model)
    report = aimc.convert(model, Static(rpu_config="noiseless", head=True))
    assert any("matrix of its own" in note for note in report.notes) and "lm_head" in report.static
    assert model.num_parameters() == n_parameters + model.lm_head.weight.numel()
    assert not model.config.tie_word_embeddings
    assert torch.equal(logits(aimc.to_digital(model)), digital)
    assert model.lm_head.weight is model.transformer.wte.weight and model.config.tie_word_embeddings


def test_a_parted_head_that_was_trained_stays_parted() -> None:
    model = tiny_model("gpt2")
    aimc.convert(model, Static(rpu_config="noiseless", head=True))
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    twice = logits(model)
    aimc.to_digital(model)
    assert model.lm_head.weight is not model.transformer.wte.weight
    assert torch.allclose(logits(model), twice, atol=1e-4)


def test_choice_of_layers_and_configurations() -> None:
    model = tiny_model("gpt2")
    tiles = Static(rpu_config="pcm", layers=["*.mlp.*", "*.1.attn.c_attn"], overrides={"*.mlp.c_fc": "reram"})
    report = aimc.convert(model, tiles)
    assert len(report.static) == 5 and "transformer.h.0.attn.c_attn" in report.digital
    kinds = {name: type(layer.tiles[0].rpu_config.noise_model).__name__ for name, layer in static_layers(model)}
    assert (
        kinds["transformer.h.0.mlp.c_fc"] == "ReRamCMONoiseModel"
        and kinds["transformer.h.0.mlp.c_proj"] == "PCMLikeNoiseModel"
    )


def test_attention_and_tiles_one_after_the_other(hardware: Hardware) -> None:
    model, other = tiny_model("gpt2"), tiny_model("gpt2")
    aimc.convert(model, hardware, Static(rpu_config="noiseless"))
    aimc.convert(other, Static(rpu_config="noiseless"))
    aimc.convert(other, hardware)
    assert torch.equal(logits(model), logits(other))
    assert other.config.aimc_static == model.config.aimc_static and other.config.aimc == model.config.aimc


def test_aihwkits_own_functions_work() -> None:
    """An aihwkit user's code: its layers are found, programmed and drifted by its functions."""
    model = tiny_model("gpt2")
    aimc.convert(model, Static(rpu_config=FloatingPointPreset()))
    before = logits(model)
    assert all(isinstance(layer, AnalogLayerBase) for _, layer in static_layers(model))
    program_analog_weights(model, None)
    programmed = logits(model)
    drift_analog_weights(model, 3600.0)
    assert not torch.equal(programmed, before) and not torch.equal(logits(model), programmed)
    aimc.static.unprogram(model)
    assert torch.equal(logits(model), before)


def test_copies_have_tiles_of_their_own() -> None:
    model = tiny_model("gpt2")
    aimc.convert(model, Static(rpu_config="pcm"))
    before = logits(model)
    other = copy.deepcopy(model)
    assert torch.equal(logits(other), before)
    aimc.static.program(other, seed=0)
    assert torch.equal(logits(model), before) and not torch.equal(logits(other), before)
    assert torch.equal(logits(copy.deepcopy(other)), logits(other))


def test_tiles_move_with_their_layer() -> None:
    layer = StaticLinear(nn.Linear(8, 4), presets.pcm(), "layer").eval()
    layer.program_analog_weights()
    layer.to("meta")  # as a GPU would be, where there is none
    (tile,) = layer.tiles
    moved = (tile.tile.weight, tile.mapping_scales, tile.alpha, tile.input_range, layer.weight)
    assert all(tensor.device.type == "meta" for tensor in moved) and tile.device.type == "meta"


def test_generation_reads_the_tiles_and_writes_the_gain_cells(hardware: Hardware) -> None:
    """Token by token, from a cache, the model computes what it computes in one pass."""
    model = tiny_model("llama")
    hardware.backend = "eager"
    aimc.convert(model, hardware, Static(rpu_config="noiseless"))
    aimc.static.program(model, seed=0)
    prompt = ids(batch=1, length=6)
    text = model.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        whole = model(text, use_cache=False).logits[0, 5:-1].argmax(-1)
    assert torch.equal(whole, text[0, 6:])


def test_half_precision_keeps_the_tiles_in_float32() -> None:
    model = tiny_model("gpt2")
    aimc.convert(model, Static(rpu_config="pcm"))
    wide = logits(model)
    model.bfloat16()
    assert all(tile.input_range.dtype == torch.float32 for _, layer in static_layers(model) for tile in layer.tiles)
    assert logits(model).dtype == torch.bfloat16
    assert torch.allclose(logits(model).float(), wide, atol=0.2)


def test_subclasses_stay_digital() -> None:
    class LoraLinear(nn.Linear):
        pass

    model = tiny_model("llama")
    model.model.layers[0].mlp.up_proj = LoraLinear(32, 48, bias=False)
    report = aimc.convert(model, Static(rpu_config="noiseless"))
    assert any("up_proj is a LoraLinear" in note for note in report.notes) and len(report.static) == 13


@pytest.mark.parametrize(
    ("static", "message"),
    [
        (Static(rpu_config="pcn"), "static=pcn: no such preset; use one of pcm, reram, noiseless"),
        (Static(rpu_config=3), "need an aihwkit inference configuration"),
        (Static(rpu_config=SingleRPUConfig()), "SingleRPUConfig.*inference configuration"),
        (Static(layers=["*.nothing.*"]), "no linear layer has such a name"),
        (Static(layers=["*.mlp.*", "*.atn.*"]), r"static\.layers: '\*\.atn\.\*' is the name of no layer"),
        (Static(overrides={"*.mpl.*": "reram"}), r"static\.overrides: '\*\.mpl\.\*' is the name of no layer"),
    ],
)
def test_bad_choices_are_refused(static: Static, message: str) -> None:
    model = tiny_model("gpt2")
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        aimc.convert(model, static)
    assert list(model.state_dict()) == before and not hasattr(model.config, "aimc_static")


def test_more_refusals() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(ValueError, match="nothing would be replaced"):
        aimc.convert(model)
    with pytest.raises(TypeError, match="no transformers PreTrainedModel"):
        aimc.convert(nn.Linear(2, 2), Static())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"give \['\*.mlp.\*'\]"):
        Static(layers="*.mlp.*")
    with pytest.raises(ValueError, match="no language-model head"):
        aimc.convert(model.transformer, Static(head=True))
    with pytest.raises(ValueError, match="more than a look-up"):
        aimc.convert(tiny_model("gemma2"), Static(embeddings=True))
    with pytest.raises(ValueError, match="no static tile; it is digital"):
        aimc.to_digital(model)
    with pytest.raises(ValueError, match="no layer on static tiles"):
        aimc.static.program(model, seed=0)
    aimc.convert(model, Static(rpu_config="noiseless"))
    with pytest.raises(ValueError, match="on static tiles already"):
        aimc.convert(model, Static(rpu_config="noiseless"))
    analog_bias = TorchInferenceRPUConfig()
    analog_bias.mapping.digital_bias = False
    with pytest.raises(ValueError, match="bias on the crossbar"):
        aimc.convert(tiny_model("gpt2"), Static(rpu_config=analog_bias))


def test_compiled_tiles_where_they_load() -> None:
    """Where aihwkit's compiled tiles refuse to run, the error says what to use; where they run, the result is that of
    the pure ones."""
    layer = nn.Linear(16, 8)
    config = InferenceRPUConfig()
    config.forward.is_perfect = True
    x = torch.randn(3, 16)
    try:
        static = StaticLinear(layer, config, "layer").eval()
    except ValueError as error:
        assert "use TorchInferenceRPUConfig" in str(error) and "layer: aihwkit's compiled tiles" in str(error)
        return
    assert torch.allclose(static(x), layer(x), atol=1e-4)
    with pytest.raises(RuntimeError, match="train on TorchInferenceRPUConfig"):
        static.train()(x)


def test_a_missing_aihwkit_gives_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingAihwkit,
        match=r"run: pip install 'aimc\[static\]' && pip install --only-binary aihwkit --no-deps aihwkit",
    ):
        aimc.convert(tiny_model("gpt2"), Static(rpu_config="pcm"))


@pytest.mark.slow
def test_nothing_of_aihwkit_is_imported_unasked() -> None:
    code = (
        "import sys, aimc; from transformers import GPT2Config, GPT2LMHeadModel; model ="
        " GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=64, n_positions=16));"
        " aimc.convert(model, aimc.presets.ideal()); aimc.to_digital(model); aimc.evaluate; aimc.static;"
        " print('aihwkit' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(REPOSITORY))
    assert ran.stdout.strip().splitlines()[-1] == "False"


def test_digital_products_follow_replaced_parameters():
    model = tiny_model("gpt2").eval()
    aimc.convert(model, Static(rpu_config="noiseless"))
    model.load_state_dict(
        {name: 2 * value if value.is_floating_point() else value for name, value in model.state_dict().items()},
        assign=True,
    )
    layer = next(layer for _, layer in static_layers(model))
    x = torch.randn(3, layer.in_features)
    through_tiles = layer(x)
    layer.computes_digitally = True
    torch.testing.assert_close(layer(x), through_tiles, atol=1e-4, rtol=1e-4)


def test_loaded_weights_replace_what_was_programmed():
    model = tiny_model("gpt2").eval()
    aimc.convert(model, Static(rpu_config="pcm"))
    aimc.static.program(model, seed=0)
    model.load_state_dict(model.state_dict())
    assert not any(layer.programmed for _, layer in static_layers(model))


def test_noiseless_tiles_are_exact_in_training_and_under_autocast():
    layer = nn.Linear(32, 32)
    tiles = StaticLinear(layer, presets.noiseless(), "layer").train()
    x = torch.randn(5, 32)
    torch.testing.assert_close(tiles(x), layer(x), atol=1e-5, rtol=1e-5)
    exact = tiles(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(tiles(x), exact, atol=1e-6, rtol=1e-6)


def test_a_model_cast_to_double_runs():
    model = tiny_model("gpt2").eval()
    aimc.convert(model, Static(rpu_config="noiseless"))
    assert torch.isfinite(model.double()(ids()).logits).all()


def test_a_stale_record_is_dropped_by_a_conversion():
    model = tiny_model("gpt2").eval()
    model.config.aimc_static = {"version": 1, "configs": [], "layers": {}, "parted": False}
    aimc.convert(model, Hardware())
    assert not hasattr(model.config, "aimc_static")


def test_layers_that_are_never_called_stay_digital() -> None:
    """Mamba reads `dt_proj.weight` for itself."""
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)).eval()
    report = aimc.convert(model, Static(rpu_config="noiseless"))
    assert not any("dt_proj" in name for name in report.static)
    assert sum("dt_proj is never called" in note for note in report.notes) == 2
    assert any("x_proj" in name for name in report.static)


def test_one_string_is_no_collection_of_patterns() -> None:
    model = tiny_model("gpt2")
    aimc.convert(model, Static(rpu_config="pcm"))
    with pytest.raises(ValueError, match=r"give \['\*\.mlp\.\*'\]"):
        aimc.static.set_rpu_config(model, "reram", layers="*.mlp.*")


def test_an_embedding_on_tiles_takes_ids_of_any_width() -> None:
    model = tiny_model("gpt2")
    aimc.convert(model, Static(rpu_config="noiseless", embeddings=True))
    with torch.no_grad():
        assert torch.equal(model(ids().int()).logits, model(ids()).logits)
