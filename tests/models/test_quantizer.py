"""aimc as a quantisation method: transformers' own loader gives the model that `aimc.from_pretrained` gives, and
without aimc it refuses the folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GPT2LMHeadModel, PreTrainedModel

import aimc
from aimc.hardware import Array, Hardware
from aimc.models.arrays import gain_cell_layers, hardware_of, set_generator
from aimc.models.mark import QUANT_METHOD, REFUSAL
from tests.conftest import REPOSITORY
from tests.models.test_checkpoint import assert_same, logits, trained, without_mark
from tests.models.test_ecosystem import trainer
from tests.tiny_models import FAMILIES, ids, tiny_model

SHIPPED = REPOSITORY / "checkpoints" / "shipped"


def plain(folder: Path | str, **kwargs: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, **kwargs)


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.fixture
def analog(model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path) -> Path:
    folder = tmp_path / "analog"
    trained(model, hardware).save_pretrained(folder)
    return folder


# --- Loading
# -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_converts_while_loading(family: str, hardware: Hardware, tmp_path: Path) -> None:
    """The same model as loading it, and converting it then."""
    tiny_model(family).save_pretrained(tmp_path)
    expected = plain(tmp_path)
    aimc.convert(expected, hardware, skip_layers=(1,))
    loaded = plain(tmp_path, quantization_config=aimc.AnalogConfig(hardware=hardware, skip_layers=(1,)))
    assert type(loaded) is type(expected) and hardware_of(loaded) == hardware
    assert [layer.layer for _, layer in gain_cell_layers(loaded)] == [0]
    assert loaded.config.to_dict() == expected.config.to_dict()
    assert_same(loaded, expected)


@pytest.mark.parametrize("activation", ["hard_sigmoid", "softmax"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_loader_gives_what_ours_gives(
    family: str, activation: str, hardware: Hardware, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if activation == "softmax":
        hardware = Hardware(activation="softmax", array=Array(window=16, rows=4))
    hardware.noise.write_v, hardware.noise.mismatch_gain = 0.001, 0.05
    model = trained(tiny_model(family), hardware, skip_layers=(1,))
    aimc.set_chip(model, 5)
    model.save_pretrained(tmp_path)
    loaded, ours = plain(tmp_path), aimc.from_pretrained(tmp_path)
    assert "UNEXPECTED" not in caplog.text and "MISSING" not in caplog.text
    assert loaded.config.to_dict() == ours.config.to_dict()
    assert [(layer.layer, layer.chip_seed) for _, layer in gain_cell_layers(loaded)] == [(0, 5)]
    trains = [(name, parameter.requires_grad) for name, parameter in model.named_parameters()]
    assert [(name, parameter.requires_grad) for name, parameter in loaded.named_parameters()] == trains
    assert_same(loaded, ours)
    assert_same(loaded, model)
    digital = logits(tiny_model(family))
    assert torch.equal(logits(aimc.to_digital(loaded)), digital)


def test_marks_go_and_come(analog: Path, tmp_path: Path) -> None:
    """The folder is marked; the model in memory is an ordinary one; saved again, it is marked again; as a digital model
    it is not."""
    assert config_of(analog)["quantization_config"] == {"quant_method": QUANT_METHOD}
    assert config_of(analog)["attn_implementation"] == REFUSAL
    for loaded in (plain(analog), plain(analog, quantization_config=aimc.AnalogConfig())):
        assert not hasattr(loaded, "hf_quantizer") and not loaded.is_quantized
        assert not hasattr(loaded, "quantization_method") and not hasattr(loaded.config, "_is_quantized")
        assert loaded.config._attn_implementation == "gain_cell"
        loaded.save_pretrained(tmp_path / "again")
        assert config_of(tmp_path / "again") == config_of(analog)
        digital = aimc.to_digital(loaded)
        assert digital.config._attn_implementation == "sdpa"
        digital.save_pretrained(tmp_path / "digital")
        assert not {"quantization_config", "attn_implementation", "aimc"} & config_of(tmp_path / "digital").keys()
    assert aimc.to_digital(plain(analog, attn_implementation="eager")).config._attn_implementation == "eager"


@pytest.mark.parametrize("device_map", [None, "cpu", {"": "cpu"}])
def test_half_precision_and_device_map(device_map: Any, analog: Path) -> None:
    loaded = plain(analog, dtype=torch.bfloat16, device_map=device_map)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == (torch.float32 if ".gain_cell." in name else torch.bfloat16), name
        assert tensor.device.type == "cpu"
    assert torch.equal(logits(loaded), logits(aimc.from_pretrained(analog, dtype=torch.bfloat16)))
    full = plain(analog)
    assert full.half().dtype == torch.float16 and full.float().to(torch.bfloat16).dtype == torch.bfloat16


def test_offloaded_attention_is_refused(analog: Path, tmp_path: Path) -> None:
    places = dict.fromkeys(
        ["transformer.wte", "transformer.wpe", "transformer.ln_f", "transformer.h.0", "lm_head"], "cpu"
    )
    places["transformer.h.1"] = "disk"
    with pytest.raises(ValueError, match=r"h\.1\.attn has its weights on no device.*device_map"):
        plain(analog, device_map=places, offload_folder=tmp_path / "offloaded")


def test_shards_and_other_heads(model: GPT2LMHeadModel, hardware: Hardware, tmp_path: Path) -> None:
    trained(model, hardware).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert_same(plain(tmp_path / "shards"), model)
    headless = AutoModel.from_pretrained(tmp_path / "shards")
    assert_same_arrays(headless, model)
    headless.save_pretrained(tmp_path / "headless")
    assert_same_arrays(plain(tmp_path / "headless"), model)


def assert_same_arrays(a: PreTrainedModel, b: PreTrainedModel) -> None:
    first, second = ([layer.state_dict() for _, layer in gain_cell_layers(model)] for model in (a, b))
    assert len(first) == len(second) == 2
    for x, y in zip(first, second, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_older_folders_load_as_before(analog: Path) -> None:
    """They have records and no mark: ours knows them, and the plain loader when it is asked."""
    expected = plain(analog)
    without_mark(analog)
    assert not list(gain_cell_layers(plain(analog)))
    assert_same(aimc.from_pretrained(analog), expected)
    assert_same(plain(analog, quantization_config=aimc.AnalogConfig()), expected)
    with pytest.raises(ValueError, match="has hardware of its own.*set_hardware"):
        plain(analog, quantization_config=aimc.AnalogConfig(hardware_of(expected)))
    shipped = plain(SHIPPED / "finetuned", quantization_config=aimc.AnalogConfig())
    assert_same(shipped, aimc.from_pretrained(SHIPPED / "finetuned"))


def test_static_tiles(hardware: Hardware, tmp_path: Path) -> None:
    pytest.importorskip("aihwkit")
    tiny_model("llama").save_pretrained(tmp_path / "digital")
    static = aimc.static.Static(rpu_config="noiseless", head=True)
    torch.manual_seed(0)
    model = plain(tmp_path / "digital", quantization_config=aimc.AnalogConfig(hardware=hardware, static=static))
    aimc.static.calibrate_input_ranges(model, [ids()])
    model.save_pretrained(tmp_path / "analog")
    loaded = plain(tmp_path / "analog")
    assert aimc.static.has_static(loaded) and len(list(gain_cell_layers(loaded))) == 2
    results = []
    for each in (model, loaded, aimc.from_pretrained(tmp_path / "analog")):
        torch.manual_seed(1)
        results.append(logits(each))
    assert torch.equal(results[0], results[1]) and torch.equal(results[1], results[2])


# --- Bad input
# ---------------------------------------------------------------------------------------------------------------


def test_configs_are_checked_before_a_model_is_read(hardware: Hardware, model: GPT2LMHeadModel, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a int says nothing"):
        aimc.AnalogConfig(hardware=3)
    with pytest.raises(ValueError, match="two configs of type Hardware"):
        aimc.AnalogConfig(hardware, hardware=hardware)
    with pytest.raises(ValueError, match="no config is given"):
        aimc.AnalogConfig(skip_layers=(0,))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a digital model, and AnalogConfig.* names nothing"):
        plain(tmp_path, quantization_config=aimc.AnalogConfig())
    with pytest.raises(TypeError, match="a dict says nothing"):
        plain(tmp_path, quantization_config={"quant_method": "aimc", "hardware": {}})
    with pytest.raises(ValueError, match="has no layer 7"):
        plain(tmp_path, quantization_config=aimc.AnalogConfig(hardware, skip_layers=(7,)))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 999, "config.json: .*version=999"),
        ("colour", "red", "config.json: .*hardware.colour='red'"),
        (None, 3, "config.json: aimc is damaged"),
        (None, None, "marked as converted, but no record"),
    ],
)
def test_a_damaged_record(key: str | None, value: object, message: str, analog: Path) -> None:
    config = config_of(analog)
    if key is None:
        config["aimc"] = value
    else:
        config["aimc"][key] = value
    (analog / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        plain(analog)


@pytest.mark.parametrize("what", ["lost", "added", "reshaped"])
def test_a_damaged_tensor_of_the_arrays(what: str, analog: Path) -> None:
    """Never a scaler that is at its start, or anything else, instead."""
    file, name = analog / "model.safetensors", "transformer.h.1.attn.gain_cell.key_scaler.offset"
    tensors = load_file(file)
    if what == "lost":
        del tensors[name]
    elif what == "added":
        tensors[name := name.replace("offset", "third")] = torch.zeros(2)
    else:
        tensors[name] = torch.zeros(7)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"do not fit the model.*{name.split('.')[-2]}"):
        plain(analog)


def test_a_state_dict_instead_of_files(analog: Path) -> None:
    model = plain(analog)
    config = AutoConfig.from_pretrained(analog)
    with pytest.raises(ValueError, match="leave state_dict out"):
        GPT2LMHeadModel.from_pretrained(None, config=config, state_dict=model.state_dict())


def test_a_model_from_a_marked_config(analog: Path, hardware: Hardware) -> None:
    """With aimc, digital and fresh; it can be converted, and goes back to transformers' attention."""
    fresh = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(analog))
    assert torch.isfinite(logits(fresh)).all()
    aimc.convert(fresh, hardware)
    assert fresh.config.quantization_config == {"quant_method": QUANT_METHOD}
    assert aimc.to_digital(fresh).config._attn_implementation == "sdpa"


# --- As any other model
# ------------------------------------------------------------------------------------------------------


def test_trains_and_saves(analog: Path, tmp_path: Path) -> None:
    """Transformers' trainer refuses quantised models."""
    model = plain(analog)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer(model, tmp_path / "run", max_steps=1).train()
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert any(".gain_cell." in name for name in changed) and any(".mlp." in name for name in changed)
    assert_same(plain(tmp_path / "run" / "checkpoint-1"), model)


def test_peft(analog: Path, tmp_path: Path) -> None:
    model = get_peft_model(plain(analog), LoraConfig(target_modules=["c_attn"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(plain(analog), tmp_path / "adapter")
    set_generator(model.get_base_model(), None)
    with torch.no_grad():
        assert torch.equal(again(ids()).logits, model(ids()).logits)
    assert not torch.equal(again(ids()).logits, plain(analog)(ids()).logits)
    merged = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert_same(plain(tmp_path / "merged"), merged)


def test_lm_eval_loads_the_folder(tmp_path: Path) -> None:
    """By its name, as `lm_eval --model hf --model_args pretrained=…` does."""
    if find_spec("lm_eval") is None:
        pytest.skip("lm-eval is not installed: pip install 'aimc[eval]'")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from aimc.evaluate.tasks import tokenizer_of

    model = aimc.from_pretrained(SHIPPED / "finetuned")
    model.save_pretrained(tmp_path)
    tokenizer_of(SHIPPED / "finetuned").save_pretrained(tmp_path)
    request = Instance(
        request_type="loglikelihood", doc={}, arguments=("The class statement", " makes a new class."), idx=0
    )
    scores = [
        HFLM(pretrained=given, tokenizer=str(tmp_path), device="cpu", batch_size=1).loglikelihood([request])
        for given in (str(tmp_path), model)
    ]
    assert scores[0] == scores[1]
    digital = HFLM(pretrained=aimc.to_digital(model), tokenizer=str(tmp_path), device="cpu", batch_size=1)
    assert digital.loglikelihood([request]) != scores[0]


# --- Registration
# ------------------------------------------------------------------------------------------------------------

LOADS = "print(type(AutoModelForCausalLM.from_pretrained({folder!r}).get_submodule('transformer.h.0.attn.gain_cell')))"
slow = pytest.mark.slow


def run(code: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """In a process that says what it would say to a user: a command that a test ran here has silenced transformers."""
    told = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=cwd, env=told)


def test_without_aimc_the_folder_is_refused_until_it_is_imported(analog: Path) -> None:
    """An error, not a warning, before a weight is read; the line says what to do, and that helps. The folder's config
    can be read."""
    code = (
        "import sys; sys.modules['aimc'] = None\n"
        "from transformers import AutoConfig, AutoModelForCausalLM\n"
        f"print(AutoConfig.from_pretrained({str(analog)!r}).model_type)\n"
        "try:\n"
        f"    AutoModelForCausalLM.from_pretrained({str(analog)!r})\n"
        "except ValueError as error:\n"
        "    print(error)\n"
        "assert not [name for name in sys.modules if name.startswith('aimc.')]\n"
        "del sys.modules['aimc']; import aimc\n"
    )
    done = run(code + LOADS.format(folder=str(analog)))
    model_type, refused, loaded = done.stdout.splitlines()
    assert model_type == "gpt2" and "GainCellAttention" in loaded
    assert "pip install aimc, then import aimc before loading" in refused
    assert "Unknown quantization type, got aimc" in done.stderr


@pytest.mark.parametrize(
    "imports",
    [
        pytest.param(  # the order of every other test
            "import aimc, sys; assert 'transformers' not in sys.modules; from transformers import AutoModelForCausalLM",
            marks=slow,
        ),
        pytest.param(
            "import aimc; aimc.AnalogConfig(hardware=aimc.presets.published());"
            " from transformers import AutoModelForCausalLM",
            marks=slow,
        ),
        pytest.param(
            "import transformers, aimc, sys; assert 'transformers.quantizers.auto' not in sys.modules;"
            " from transformers import AutoModelForCausalLM",
            marks=slow,
        ),
        pytest.param("import aimc.models.quantizer; from transformers import AutoModelForCausalLM", marks=slow),
    ],
)
def test_registered_whatever_is_imported_first(imports: str, analog: Path) -> None:
    done = run(f"{imports}\n{LOADS.format(folder=str(analog))}")
    assert done.returncode == 0 and "GainCellAttention" in done.stdout, done.stderr


@slow
def test_importing_aimc_again_registers_again() -> None:
    code = (
        "import transformers.quantizers.auto as auto, sys, aimc\n"
        "first = auto.AUTO_QUANTIZER_MAPPING['aimc']\n"
        "for name in [name for name in sys.modules if name.split('.')[0] == 'aimc']: del sys.modules[name]\n"
        "import aimc\n"
        "assert auto.AUTO_QUANTIZER_MAPPING['aimc'] is not first\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
