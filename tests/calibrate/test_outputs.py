"""Matching of attention outputs: errors fall, nothing but attention changes, and the report says how far it came."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import aimc
from aimc.calibrate import output_training
from aimc.calibrate.blocks import paired_blocks
from aimc.calibrate.output_report import LayerOutput, OutputMatching
from aimc.calibrate.output_variance import explained_variance, projecting
from aimc.calibrate.outputs import _is_level
from aimc.models.arrays import gain_cell_layers
from tests.calibrate.small import ATTENTION, changed, on_arrays, smooth, weights
from tests.conftest import small_arrays, tiny_gpt2
from tests.tiny_models import FAMILIES, ids, tiny_model

FAST = {"steps": 25, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def text() -> list[torch.Tensor]:
    return [ids(seed, 4, 16) for seed in (0, 1)]


OTHERS = [pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES if family not in ("gpt2", "llama")]


@pytest.mark.parametrize("family", ["gpt2", "llama", *OTHERS])
def test_the_error_falls_and_only_attention_changes(family: str, text: list[torch.Tensor]) -> None:
    """Multi-head with biases, grouped heads with rotary positions; and whatever else the families have."""
    digital = smooth(family)
    model = on_arrays(digital, text)
    before, reference = weights(model), weights(digital)
    report = aimc.match_outputs(model, digital, text[:1], **FAST)
    assert report.error_after < 0.5 * report.error_before, report
    assert sum(report.history[-4:]) < 0.6 * sum(report.history[:4])
    moved = changed(model, before)
    assert all(any(part in name for part in ATTENTION) for name in moved)
    for layer, (name, _) in enumerate(gain_cell_layers(model)):
        block = name.rpartition(".")[0]
        assert {n for n, _ in model.named_parameters() if n.startswith(f"{block}.")} <= moved, layer
    assert changed(digital, reference) == set()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_report(analog: PreTrainedModel, digital: PreTrainedModel, text: list[torch.Tensor]) -> None:
    report = aimc.match_outputs(analog, digital, text, **FAST)
    assert [layer.layer for layer in report.layers] == [0, 1]
    for layer in report.layers:
        assert len(layer.explained_before) == len(layer.explained_after) == 4
        assert sum(layer.explained_after) > sum(layer.explained_before)
        assert max(layer.explained_after) < 1
    assert report.steps == len(report.history) == 25 and report.n_tokens == 25 * 64
    assert report.seconds > 0 and not report.stopped_early and report.own_stream_from is None
    lines = str(report).splitlines()
    assert len(lines) == 4 and f"→ {report.error_after:.3f}" in lines[0]
    assert f"{report.layers[1].error_before:.3f} → {report.layers[1].error_after:.3f}" in lines[3]


def test_what_is_reported_is_what_the_block_gives(
    analog: PreTrainedModel, digital: PreTrainedModel, text: list[torch.Tensor]
) -> None:
    """Error and explained variance by hand, of the first layer, whose inputs are the same in both models."""
    outputs = []
    for model in (analog, digital):
        attention = model.transformer.h[0].attn
        handle = attention.register_forward_hook(lambda module, args, output: outputs.append(output[0].detach()))
        with projecting(attention) as projection:
            model(text[0])
        handle.remove()
        assert projection.module is attention.c_proj
        heads = projection.heads.detach().unflatten(-1, (4, 8))
        outputs.append(torch.einsum("bthd,hdf->bhtf", heads, attention.c_proj.weight.detach().view(4, 8, 32)))
    out, heads, target, wanted = outputs
    (layer, _) = aimc.match_outputs(analog, digital, text, steps=1).layers
    assert layer.error_before == pytest.approx(float((out - target).square().sum() / target.square().sum()), rel=1e-4)
    for head in range(4):
        by_hand = explained_variance(heads[:, head], wanted[:, head])
        assert layer.explained_before[head] == pytest.approx(by_hand, rel=1e-3)


def test_own_stream(analog: PreTrainedModel, digital: PreTrainedModel, text: list[torch.Tensor]) -> None:
    """Trained on what the earlier layers make of the text, the last hidden states come closer to the digital ones."""

    def distance() -> float:
        with torch.no_grad():
            own, wanted = (model.base_model(text[0]).last_hidden_state for model in (analog, digital))
        return float((own - wanted).square().mean())

    start, before = distance(), weights(analog)
    report = aimc.match_outputs(analog, digital, text, **FAST, own_stream=1.0)
    assert report.own_stream_from == 0
    assert distance() < 0.6 * start
    assert all(".attn." in name for name in changed(analog, before))
    assert torch.is_grad_enabled()


def test_own_stream_comes_last(analog: PreTrainedModel, digital: PreTrainedModel, text: list[torch.Tensor]) -> None:
    report = aimc.match_outputs(analog, digital, text, steps=9, own_stream=1 / 3)
    assert (report.own_stream_from, report.steps) == (6, 9)


def test_padding_is_not_looked_at(analog: PreTrainedModel, digital: PreTrainedModel, text: list[torch.Tensor]) -> None:
    """Other tokens where there is padding, the same result."""
    mask = torch.ones_like(text[0])
    mask[0, 10:] = 0
    other = torch.where(mask.bool(), text[0], 5)
    reports = [
        aimc.match_outputs(
            copy.deepcopy(analog),
            digital,
            [{"input_ids": tokens, "attention_mask": mask}],
            steps=4,
            own_stream=0.5,
        )
        for tokens in (text[0], other)
    ]
    assert reports[0].history == pytest.approx(reports[1].history, rel=1e-5)
    for one, two in zip(reports[0].layers, reports[1].layers, strict=True):
        assert one.explained_after == pytest.approx(two.explained_after, rel=1e-4)
    assert reports[0].n_tokens == 4 * 58


def test_the_same_seed_gives_the_same_weights(
    analog: PreTrainedModel, digital: PreTrainedModel, text: list[torch.Tensor]
) -> None:
    """Also with noise and in whatever random state; mode and random state are put back."""
    hardware = small_arrays()
    hardware.noise = aimc.presets.typical()
    aimc.set_hardware(analog, hardware)
    models = [copy.deepcopy(analog).train() for _ in range(3)]
    for i, (model, seed) in enumerate(zip(models, (1, 1, 2), strict=True)):
        torch.manual_seed(i)
        expected = torch.rand(1)
        torch.manual_seed(i)
        aimc.match_outputs(model, digital, text, steps=3, seed=seed)
        assert model.training and torch.equal(torch.rand(1), expected)
    assert changed(models[0], weights(models[1])) == set() != changed(models[0], weights(models[2]))


def test_early_stop(analog: PreTrainedModel, digital: PreTrainedModel, text: list[torch.Tensor]) -> None:
    """At a rate that changes nothing the error is level: after twice the patience there is no reason to go on."""
    still = {"learning_rate": 1e-12, "scaler_learning_rate": 1e-12, "patience": 2}
    report = aimc.match_outputs(analog, digital, text, steps=20, **still)
    assert report.stopped_early and report.steps == 4
    report = aimc.match_outputs(analog, digital, text, steps=20, own_stream=0.5, **still)
    assert (report.own_stream_from, report.steps) == (4, 8)
    assert not _is_level([4.0, 4.0, 3.0, 3.0], 2) and _is_level([4.0, 4.0, 4.0, 3.95], 2)


def test_by_the_clock(
    analog: PreTrainedModel, digital: PreTrainedModel, text: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two looks a step, each a second after the one before."""
    monkeypatch.setattr("aimc.calibrate.output_training.perf_counter", itertools.count().__next__)
    report = aimc.match_outputs(analog, digital, text, steps=1000, minutes=0.1)
    assert report.steps == 4 and not report.stopped_early


def test_shared_and_frozen_parameters_stay(
    analog: PreTrainedModel, digital: PreTrainedModel, text: list[torch.Tensor]
) -> None:
    """Two layers that share a matrix: a step of one would be a step of the other."""
    first, second = (block.attn for block in analog.transformer.h)
    second.c_proj.weight = first.c_proj.weight
    first.c_attn.weight.requires_grad_(False)
    before = weights(analog)
    aimc.match_outputs(analog, digital, text, steps=2)
    moved = changed(analog, before)
    assert not any(name.endswith("c_proj.weight") for name in moved)
    assert "transformer.h.0.attn.c_attn.weight" not in moved and "transformer.h.1.attn.c_attn.weight" in moved


def test_layers_that_stay_digital_are_left_out(digital: PreTrainedModel, text: list[torch.Tensor]) -> None:
    model = copy.deepcopy(digital)
    aimc.convert(model, small_arrays(), skip_layers=[0])
    aimc.initialise_scalers(model, digital, text)
    before = weights(model)
    report = aimc.match_outputs(model, digital, text, steps=4, own_stream=0.5)
    assert [layer.layer for layer in report.layers] == [1]
    assert all(name.startswith("transformer.h.1.attn.") for name in changed(model, before))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0: must be a whole number"),
        ({"steps": 2.0}, "steps=2.0"),
        ({"patience": 0}, "patience=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: must be a finite number above 0"),
        ({"scaler_learning_rate": float("nan")}, "scaler_learning_rate=nan"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"own_stream": 1.5}, "own_stream=1.5: a share of the steps"),
        ({"minutes": 0.0}, "minutes=0.0: must be a finite number above 0"),
        ({"minutes": 1.0, "own_stream": 0.5}, "own_stream=0.5: a share of the steps, and how many"),
    ],
)
def test_bad_settings(
    analog: PreTrainedModel,
    digital: PreTrainedModel,
    text: list[torch.Tensor],
    settings: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        aimc.match_outputs(analog, digital, text, **settings)


def test_bad_models(analog: PreTrainedModel, digital: PreTrainedModel, text: list[torch.Tensor]) -> None:
    before = weights(analog)
    for model, reference, message in (
        (digital, copy.deepcopy(digital), r"aimc\.convert"),
        (analog, analog, "the same object"),
        (analog, copy.deepcopy(analog), "runs on arrays itself"),
        (analog, tiny_gpt2(n_head=4, vocab_size=65), "64 token ids in its vocabulary and the reference 65"),
        (analog, tiny_gpt2(n_head=4, n_embd=16), "32 features in its hidden states and the reference 16"),
        (analog, tiny_gpt2(n_head=4, n_layer=3), "2 layers and the reference 3"),
        (analog, tiny_gpt2(n_head=2), "4 query and 4 K/V heads, and the reference has"),
        (copy.deepcopy(analog).to(torch.bfloat16), digital, "float32"),
        (copy.deepcopy(analog).requires_grad_(False), digital, "may be trained"),
    ):
        with pytest.raises(ValueError, match=message):
            aimc.match_outputs(model, reference, text)
    assert changed(analog, before) == set()


def test_a_wider_head_is_another_architecture() -> None:
    digital, other = tiny_model("qwen3"), tiny_model("qwen3", head_dim=16)
    model = copy.deepcopy(digital)
    aimc.convert(model, small_arrays())
    with pytest.raises(ValueError, match="heads of 8 features, and those of the reference have 16"):
        paired_blocks(model, other)


def test_bad_text(analog: PreTrainedModel, digital: PreTrainedModel, text: list[torch.Tensor]) -> None:
    for batches, message in (
        ([], "no batch was given"),
        ([*text, text[0][:, :1]], r"shape \[4, 1\]: rows of at least two tokens"),
        ([text[0][0]], r"shape \[16\]"),
        ([text[0] + 60], "and the models know 0 to 63"),
    ):
        with pytest.raises(ValueError, match=message):
            aimc.match_outputs(analog, digital, batches)


def test_an_error_that_is_lost_names_step_and_layer(
    analog: PreTrainedModel, digital: PreTrainedModel, text: list[torch.Tensor]
) -> None:
    with torch.no_grad():
        analog.transformer.h[1].attn.c_proj.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"step 0: the error of layer 1 is nan.*learning_rate"):
        aimc.match_outputs(analog, digital, text, steps=2)


def test_an_error_that_the_last_step_has_lost_is_not_returned(
    analog: PreTrainedModel, digital: PreTrainedModel, text: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(parameters: list[torch.nn.Parameter], _: float) -> None:
        assert parameters[-1].grad is not None
        parameters[-1].grad.fill_(torch.nan)

    monkeypatch.setattr(output_training.nn.utils, "clip_grad_norm_", broken)
    with pytest.raises(ValueError, match=r"after the last step: the error of layer 0 is nan.*learning_rate"):
        aimc.match_outputs(analog, digital, text, steps=1)


def test_the_error_is_the_mean_over_layers() -> None:
    report = OutputMatching(
        layers=[
            LayerOutput(layer=3, error_before=2.0, error_after=0.5, explained_before=[-1.0], explained_after=[0.4]),
            LayerOutput(layer=5, error_before=1.0, error_after=0.3, explained_before=[-1.0], explained_after=[0.6]),
        ]
    )
    assert (report.error_before, report.error_after) == pytest.approx((1.5, 0.4))
