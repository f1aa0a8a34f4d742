"""Output projections by least squares: the same as by hand, layer after layer on what the earlier ones give."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import aimc
from aimc.calibrate.output_variance import projecting
from aimc.models.arrays import gain_cell_layers, hardware_of
from tests.calibrate.small import changed, on_arrays, smooth, weights
from tests.tiny_models import FAMILIES, ids

PROJECTIONS = ("c_proj", "o_proj", "out_proj", "dense")
OTHERS = [pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES if family not in ("gpt2", "llama")]


@pytest.fixture(scope="module")
def text() -> list[torch.Tensor]:
    return [ids(seed, 8, 16) for seed in (0, 1)]


def seen_by(model: PreTrainedModel, tokens: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What arrives at each GPT-2 layer's output projection, and what it gives."""
    found = []
    with torch.no_grad():
        for block in model.transformer.h:
            with projecting(block.attn) as projection:
                model(**tokens) if isinstance(tokens, dict) else model(tokens)
            assert projection.module is not None and projection.heads is not None
            found.append((projection.heads, projection.module(projection.heads)))
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama", *OTHERS])
def test_the_error_falls_and_only_projections_change(family: str, text: list[torch.Tensor]) -> None:
    digital = smooth(family)
    model = on_arrays(digital, text)
    before, reference = weights(model), weights(digital)
    report = aimc.fit_projections(model, digital, text)
    assert report.error_after < 0.8 * report.error_before, report
    moved = changed(model, before)
    blocks = {name.rpartition(".")[0] for name, _ in gain_cell_layers(model)}
    assert {name.rpartition(".")[0].rpartition(".")[0] for name in moved} <= blocks
    assert all(name.split(".")[-2] in PROJECTIONS for name in moved) and len(moved) >= len(blocks)
    assert changed(digital, reference) == set() and report.n_tokens == 256


@pytest.mark.parametrize("padded", [False, True])
def test_each_layer_is_the_least_squares_solution(
    analog: PreTrainedModel, digital: PreTrainedModel, text: list[torch.Tensor], padded: bool
) -> None:
    """By scipy-like hand: rows of weight √(λP) that ask for the old weights, under those of the text; what arrives at
    the second layer has passed the first one's new projection."""
    tokens: dict[str, torch.Tensor] = {"input_ids": torch.cat(text)}
    real = torch.ones(16, 16, dtype=torch.bool)
    if padded:
        real[3, :9] = False
        tokens["attention_mask"] = real.long()
    old = [(block.attn.c_proj.weight.clone(), block.attn.c_proj.bias.clone()) for block in analog.transformer.h]
    aimc.fit_projections(analog, digital, [tokens], ridge=0.1)
    seen = zip(analog.transformer.h, old, seen_by(analog, tokens), seen_by(digital, tokens), strict=True)
    for block, (weight, bias), (heads, _), (_, wanted) in seen:
        h, y = heads[real].detach().double(), wanted[real].detach().double()
        drawn = math.sqrt(0.1 * float(h.square().sum(0).mean()))
        left = torch.cat(
            [torch.cat([h, torch.ones(len(h), 1)], 1), torch.cat([drawn * torch.eye(32), torch.zeros(32, 1)], 1)]
        )
        right = torch.cat([y, drawn * weight.double()])
        by_hand = torch.linalg.lstsq(left.double(), right).solution
        assert torch.allclose(block.attn.c_proj.weight.double(), by_hand[:-1], atol=1e-4)
        assert torch.allclose(block.attn.c_proj.bias.double(), by_hand[-1], atol=1e-4)
        assert not torch.allclose(block.attn.c_proj.bias, bias, atol=1e-4)


def test_what_does_not_help_is_left(digital: PreTrainedModel, text: list[torch.Tensor]) -> None:
    """Two short sequences cannot tell 33 × 32 numbers: the projections of a machine that is all but digital stay."""
    model = copy.deepcopy(digital)
    aimc.convert(
        model,
        aimc.presets.with_softmax(
            aimc.presets.gain_cell_linear(), input_levels=None, storage_levels=None, score_levels=None
        ),
    )
    aimc.calibrate_ranges(model, digital, text)
    before = weights(model)
    report = aimc.fit_projections(model, digital, [text[0][:2, :4]])
    kept = {layer.layer for layer in report.layers if layer.ridge == math.inf}
    for name in changed(model, before):
        assert int(name.split(".")[2]) not in kept
    assert all(layer.error_after <= layer.error_before for layer in report.layers)


def test_the_report(analog: PreTrainedModel, digital: PreTrainedModel, text: list[torch.Tensor]) -> None:
    report = aimc.fit_projections(analog, digital, text)
    lines = str(report).splitlines()
    assert len(lines) == 4 and f"{report.error_before:.3f} → {report.error_after:.3f}" in lines[0]
    assert lines[2].split()[-1] == f"{report.layers[0].ridge:g}" and report.seconds > 0


def test_bad_input(analog: PreTrainedModel, digital: PreTrainedModel, text: list[torch.Tensor]) -> None:
    before = weights(analog)
    cases: list[tuple[list[Any], dict[str, Any], str]] = [
        (text, {"ridge": 0.0}, "ridge=0.0: must be a finite number above 0"),
        (text, {"ridge": math.nan}, "ridge=nan"),
        ([text[0], text[1][:, :8]], {}, "sequences of 8, 16 tokens"),
        ([text[0][:1]], {}, "one sequence alone"),
        (
            [text[0], {"input_ids": text[1], "attention_mask": torch.ones_like(text[1])}],
            {},
            "some batches have attention_mask",
        ),
        ([], {}, "no batch was given"),
    ]
    for batches, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            aimc.fit_projections(analog, digital, batches, **settings)
    for name in ("bias", "weight"):
        getattr(analog.transformer.h[1].attn.c_proj, name).requires_grad_(False)
        assert changed(analog, before) == set()
        with pytest.raises(ValueError, match=rf"layer 1: the {name} of its output projection may not be changed"):
            aimc.fit_projections(analog, digital, text)
    assert changed(analog, before) == set()


def test_noise_of_the_hardware_is_the_same_at_every_fit(
    analog: PreTrainedModel, digital: PreTrainedModel, text: list[torch.Tensor]
) -> None:
    """Processes that fit one model each draw it for themselves, and all have to end with the same."""
    aimc.set_hardware(analog, replace(hardware_of(analog), noise=aimc.Noise(read_av=0.05)))
    fitted = [copy.deepcopy(analog) for _ in range(2)]
    for seed, model in enumerate(fitted):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        aimc.fit_projections(model, digital, text)
        assert torch.equal(torch.get_rng_state(), state)
    assert changed(fitted[0], weights(analog)) and changed(fitted[0], weights(fitted[1])) == set()
