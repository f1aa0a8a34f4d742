"""A converted model goes through torch.compile, accelerate, peft, Trainer, copies and casts as any model of
transformers does."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments

import aimc
from aimc.hardware import Array, Hardware, Noise
from aimc.models.arrays import gain_cell_layers, hardware_of, has_arrays, set_generator
from aimc.nn.cache import GainCellCache
from tests.nn.test_cache import converted, greedy, machine, recomputed, softmax_machine, tokens, whole
from tests.tiny_models import tiny_model

CHIP = Noise(mismatch_gain=0.05)
"""Errors that belong to the chip: the same in every pass, so that passes can be compared."""
ACTIVATIONS = {"hard_sigmoid": machine, "softmax": softmax_machine}
PROJECTIONS = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}
every_model = pytest.mark.parametrize(("family", "activation"), list(itertools.product(PROJECTIONS, ACTIVATIONS)))
every_family = pytest.mark.parametrize("family", PROJECTIONS)


def arrays(activation: str, noise: Noise = CHIP, **changes: object) -> Hardware:
    return replace(ACTIVATIONS[activation](), noise=noise, **changes)


def scalers(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The trainable numbers of the arrays, by name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if ".gain_cell." in name and parameter.requires_grad
    }


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_state(a: torch.nn.Module, b: torch.nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its precision for the life of the process."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state()
    GradientState._reset_state()


# --- torch.compile
# -----------------------------------------------------------------------------------------------------------

slow = pytest.mark.slow
ONE_LAYER = {"gpt2": {"n_layer": 1}, "llama": {"num_hidden_layers": 1}}
WRAPS_SOON = Array(window=8, rows=4)
"""Compiling takes seconds a layer and a sub-tile."""


def one_layer(family: str, hardware: Hardware) -> PreTrainedModel:
    model = tiny_model(family, **ONE_LAYER[family])
    model.generation_config.eos_token_id = None
    aimc.convert(model, hardware)
    with torch.no_grad():
        for parameter in scalers(model).values():
            parameter.mul_(2.0)
    return model


def logits_and_gradients(model: PreTrainedModel, forward: Any, seed: int = 0) -> list[torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)
    ids = tokens(length=12)
    logits = forward(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    logits.log_softmax(dim=-1).square().mean().backward()
    return [
        logits.detach(),
        *(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None),
    ]


def difference(got: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest, relative to the largest number of each tensor."""
    return max((a - b).abs().max().item() / b.abs().max().item() for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=slow)])
@pytest.mark.parametrize(
    ("family", "activation"),
    [
        pytest.param("llama", "hard_sigmoid", marks=slow),
        ("llama", "softmax"),
        pytest.param("gpt2", "softmax", marks=slow),
    ],
)
def test_compiled_model(family: str, activation: str, backend: str) -> None:
    """In one graph, all noise included; GPT-2 with the published activation is in `test_compile.py`."""
    torch._dynamo.reset()
    model = one_layer(family, replace(ACTIVATIONS[activation](), array=WRAPS_SOON))
    expected = logits_and_gradients(model, model)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert difference(logits_and_gradients(model, compiled), expected) < 1e-3
    assert (
        difference(logits_and_gradients(model, compiled, seed=1), expected) > 1e-2
    )  # the noise is drawn anew, not baked into the graph


@pytest.mark.parametrize(
    ("family", "activation", "backend"),
    [
        pytest.param("llama", "hard_sigmoid", "aot_eager", marks=slow),
        pytest.param("llama", "softmax", "aot_eager", marks=slow),
        pytest.param("gpt2", "hard_sigmoid", "aot_eager", marks=slow),
        pytest.param("gpt2", "softmax", "aot_eager", marks=slow),
        pytest.param("llama", "hard_sigmoid", "inductor", marks=slow),
    ],
)
def test_generate_on_a_compiled_model(family: str, activation: str, backend: str) -> None:
    """`model.compile()`, whose `generate` runs compiled passes (that of `torch.compile(model)` is the model's own,
    uncompiled).

    The graph breaks once, where the empty cache of `generate` becomes one of arrays; and there is a graph for the
    prompt, one for the first token and one for each number of sub-tiles that the text fills.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = one_layer(family, arrays(activation, array=Array(window=8, rows=8)))
    prompt = tokens(length=6)
    expected = greedy(model, prompt, 6)
    model.compile(backend=backend)
    out = greedy(model, prompt, 6, return_dict_in_generate=True)
    assert torch.equal(out.sequences, expected)
    assert isinstance(out.past_key_values, GainCellCache) and out.past_key_values.n_written == 11
    assert torch._dynamo.utils.counters["frames"]["ok"] >= 2  # it was compiled
    assert all("take_over" in reason for reason in torch._dynamo.utils.counters["graph_break"])


# --- accelerate
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["no", "bf16"])
@every_model
def test_accelerate(family: str, activation: str, precision: str, tmp_path: Path) -> None:
    model = converted(family, arrays(activation)).train()
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prepared, optimizer, loader = accelerator.prepare(
        model, optimizer, DataLoader(list(tokens(batch=4, length=20)), batch_size=2)
    )
    before = snapshot(model)
    for ids in loader:
        out = prepared(input_ids=ids, labels=ids)
        assert out.past_key_values is None
        accelerator.backward(out.loss)
        assert torch.isfinite(out.loss)
        for name, parameter in scalers(model).items():
            assert parameter.dtype == parameter.grad.dtype == torch.float32, name
            assert parameter.grad.isfinite().all() and parameter.grad.any(), name
        optimizer.step()
        optimizer.zero_grad()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in scalers(model).items())

    unwrapped = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False).eval()
    assert hardware_of(unwrapped) == hardware_of(model)
    unwrapped.save_pretrained(tmp_path, save_function=accelerator.save)
    loaded = aimc.from_pretrained(tmp_path).eval()
    assert_same_state(loaded, unwrapped)
    assert hardware_of(loaded) == hardware_of(model)
    assert torch.equal(whole(loaded, tokens()), whole(unwrapped, tokens()))


# --- peft
# --------------------------------------------------------------------------------------------------------------------


def with_lora(model: PreTrainedModel, family: str, modules_to_save: list[str] | None = None) -> PeftModel:
    config = LoraConfig(
        r=2,
        lora_alpha=16,
        target_modules=PROJECTIONS[family],
        fan_in_fan_out=family == "gpt2",  # Conv1D
        modules_to_save=modules_to_save,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config).eval()


def trained_names(peft: PeftModel) -> set[str]:
    """Two steps (the first moves only LoRA's B, A's gradient is zero until then); what has changed."""
    before = snapshot(peft)
    optimizer = torch.optim.SGD([parameter for parameter in peft.parameters() if parameter.requires_grad], lr=0.3)
    ids = tokens(length=20)
    peft.train()
    for _ in range(2):
        optimizer.zero_grad()
        peft(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    peft.eval()
    return {name for name, tensor in peft.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("train_scalers", [False, True], ids=["lora", "lora and scalers"])
@every_model
def test_lora(family: str, activation: str, train_scalers: bool, tmp_path: Path) -> None:
    """With `modules_to_save=["gain_cell"]` peft trains a copy of each layer's arrays, and saves it beside the
    adapter."""
    hardware, ids = arrays(activation), tokens(length=20)
    model = converted(family, hardware)
    base = whole(model, ids)
    peft = with_lora(model, family, ["gain_cell"] if train_scalers else None)
    assert torch.equal(whole(peft, ids), base)  # LoRA starts at zero

    changed = trained_names(peft)
    expected = {name for name in peft.state_dict() if ".lora_" in name}
    if train_scalers:
        expected |= {
            name for name in peft.state_dict() if ".gain_cell.modules_to_save." in name and ".memory_" not in name
        }
        assert len(expected) > 2 * 8
    assert changed == expected
    logits = whole(peft, ids)
    assert (logits - base).abs().max() > 1e-2

    out = peft.generate(
        input_ids=ids[:, :10], max_new_tokens=12, do_sample=False, pad_token_id=0, return_dict_in_generate=True
    )
    assert isinstance(out.past_key_values, GainCellCache) and out.past_key_values.n_written == 21
    assert torch.equal(out.sequences, recomputed(peft, ids[:, :10], 12))

    peft.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any(".gain_cell." in name for name in saved) is train_scalers
    again = PeftModel.from_pretrained(converted(family, hardware), tmp_path / "adapter").eval()
    assert torch.equal(whole(again, ids), logits)

    merged = peft.merge_and_unload()
    assert type(merged) is type(model) and hardware_of(merged) == hardware_of(model)
    assert len(list(gain_cell_layers(merged))) == 2
    torch.testing.assert_close(whole(merged, ids), logits, rtol=0, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert_same_state(aimc.from_pretrained(tmp_path / "merged"), merged)
    assert not has_arrays(aimc.to_digital(merged))


@every_family
def test_a_converted_model_inside_a_peft_model(family: str) -> None:
    """Arrays can be put into the model that an adapter stands on, and their hardware changed through the adapter."""
    ids = tokens(length=20)
    expected = whole(with_lora(converted(family, arrays("hard_sigmoid")), family), ids)
    peft = with_lora(converted(family, arrays("softmax")), family)
    aimc.to_digital(peft.get_base_model())
    aimc.convert(peft.get_base_model(), arrays("softmax"))
    aimc.set_hardware(peft, arrays("hard_sigmoid"))
    with torch.no_grad():
        for _, layer in gain_cell_layers(peft):
            layer.query_scaler.scale.mul_(2.0)
            layer.output_scaler.scale.mul_(5.0)
    assert torch.equal(whole(peft, ids), expected)
    assert peft.get_base_model().config.aimc["activation"] == "hard_sigmoid"
    aimc.to_digital(peft.get_base_model())
    with pytest.raises(TypeError, match="pass the model itself"):
        aimc.convert(peft, arrays("softmax"))


# --- Trainer
# -----------------------------------------------------------------------------------------------------------------


def trainer(model: PreTrainedModel, folder: Path, **changes: Any) -> Trainer:
    arguments: dict[str, Any] = {
        "max_steps": 2,
        "save_steps": 1,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "seed": 1,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    data = [{"input_ids": ids, "labels": ids} for ids in tokens(batch=8, length=24)]
    return Trainer(
        model=model, args=TrainingArguments(output_dir=str(folder), **(arguments | changes)), train_dataset=data
    )


def losses(run: Trainer) -> list[float]:
    return [line["loss"] for line in run.state.log_history if "loss" in line]


@pytest.mark.parametrize(
    ("family", "activation"),
    [
        ("gpt2", "hard_sigmoid"),
        ("llama", "softmax"),
        *(pytest.param(*at, marks=slow) for at in (("gpt2", "softmax"), ("llama", "hard_sigmoid"))),
    ],
)
def test_trainer(family: str, activation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With write and read noise, which a checkpointed layer must meet again when its pass is repeated for the
    gradient."""

    def no_cache(*args: object, **kwargs: object) -> None:
        raise AssertionError("a cache was made in training")

    monkeypatch.setattr(GainCellCache, "__init__", no_cache)
    hardware = ACTIVATIONS[activation]()
    model = converted(family, hardware)
    start = snapshot(model)
    plain = trainer(model, tmp_path / "plain")
    plain.train()
    assert len(losses(plain)) == 2 and torch.tensor(losses(plain)).isfinite().all()
    assert all(not torch.equal(parameter, start[name]) for name, parameter in scalers(model).items())

    other = converted(family, hardware)
    checkpointing = trainer(other, tmp_path / "checkpointing", gradient_checkpointing=True)
    checkpointing.train()
    assert other.is_gradient_checkpointing
    assert losses(checkpointing) == losses(plain)
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=1e-6, msg=name)

    resumed = converted(family, hardware)
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.zero_()  # all of it comes from the checkpoint
    going_on = trainer(resumed, tmp_path / "plain")
    going_on.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-1"))
    assert losses(going_on) == losses(plain)
    assert_same_state(resumed, model)

    loaded = aimc.from_pretrained(tmp_path / "plain" / "checkpoint-2")
    assert_same_state(loaded, model)
    assert hardware_of(loaded) == hardware_of(model)


# --- Copies and casts
# --------------------------------------------------------------------------------------------------------


def through_torch_save(model: PreTrainedModel) -> PreTrainedModel:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_torch_save]
)
@every_model
def test_copies(family: str, activation: str, duplicate: Any) -> None:
    """A copy generates on arrays of its own, and going back to digital leaves the other model alone."""
    model, ids = converted(family, arrays(activation)), tokens(length=20)
    logits, text = whole(model, ids), greedy(model, ids, 4)
    other = duplicate(model)
    assert_same_state(other, model)
    assert torch.equal(whole(other, ids), logits) and torch.equal(greedy(other, ids, 4), text)
    with torch.no_grad():
        for parameter in scalers(other).values():
            parameter.mul_(0.5)
    assert not torch.equal(whole(other, ids), logits)
    aimc.to_digital(other)
    assert isinstance(greedy(other, ids, 4), torch.Tensor)
    out = greedy(model, ids, 4, return_dict_in_generate=True)
    assert torch.equal(out.sequences, text) and isinstance(out.past_key_values, GainCellCache)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_model
def test_cast_to_half_precision(family: str, activation: str, dtype: torch.dtype) -> None:
    """The model around the arrays computes in half precision; text token by token is that of whole passes there,
    too."""
    model, ids = converted(family, arrays(activation)), tokens(length=10)
    logits = whole(model, ids)
    model.to(dtype)
    set_generator(model, None)
    half = whole(model, ids)
    assert half.dtype == dtype
    assert (
        0 < (half - logits).abs().mean() < 0.3 * logits.abs().mean()
    )  # a rounded input can fall to the next level of a converter
    assert torch.equal(greedy(model, ids, 12), recomputed(model, ids, 12))
    assert all(parameter.dtype == torch.float32 for parameter in scalers(model).values())


def test_checkpointing_with_a_generator_is_refused() -> None:
    """Recomputed layers would draw other noise than the loss was made with."""
    model = converted("llama").train()
    model.gradient_checkpointing_enable()
    set_generator(model, torch.Generator().manual_seed(3))
    with pytest.raises(ValueError, match="gradient checkpointing.*set_generator"):
        model(tokens(length=8))


def test_a_peft_model_is_not_put_back_by_halves() -> None:
    model = get_peft_model(converted("llama"), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(TypeError, match="get_base_model"):
        aimc.to_digital(model)


def test_autocast_of_a_gpu_gives_the_operator_its_dtype():
    """On tensors without memory, because there need not be a GPU; on a CPU nothing is rounded."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from aimc.models.hook import _as_autocast

    dtypes = torch.float32, torch.float32, torch.bfloat16  # rotary positions leave float32 behind
    with FakeTensorMode():
        states, on_cpu = (
            tuple(torch.empty(1, 2, 4, 8, dtype=dtype, device=device) for dtype in dtypes) for device in ("cuda", "cpu")
        )
        assert _as_autocast(states) is states
        before = torch.get_autocast_dtype("cuda")
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)
        try:
            assert {x.dtype for x in _as_autocast(states)} == {torch.bfloat16}
            assert _as_autocast(on_cpu) is on_cpu
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.set_autocast_dtype("cuda", before)
