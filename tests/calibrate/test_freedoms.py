"""Features are centred, balanced and rotated from the statistics start on, before a hard sigmoid too."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import GPT2LMHeadModel

import aimc
from aimc.calibrate.freedoms import feature_maps, in_front
from aimc.calibrate.observation import analog_moments, digital_moments
from aimc.calibrate.statistics import RANGE_IN_STD
from aimc.hardware import Features
from aimc.models.arrays import gain_cell_layers
from tests.conftest import POSITIONS, VOCABULARY, tiny_gpt2

ALL = Features(centre_keys=True, centre_values=True, balance=True, rotation_qk="hadamard", rotation_av="orthogonal")
CHOICES = {
    "centred": Features(centre_keys=True, centre_values=True),
    "balanced": Features(balance=True),
    "rotated": Features(rotation_qk="orthogonal", rotation_av="hadamard"),
    "all": ALL,
}


@pytest.fixture(scope="module")
def lopsided() -> GPT2LMHeadModel:
    """Keys and values whose features have means of their own, and one that varies ten times as much as the others."""
    model = tiny_gpt2(n_head=2, n_embd=16)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for block in model.transformer.h:
            projection = block.attn.c_attn
            projection.bias[16:] += torch.randn(32, generator=generator)
            projection.weight[:, 17] *= 10
    return model


@pytest.fixture(scope="module")
def text() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (n, POSITIONS // 2), generator=generator) for n in (4, 2)]


def started(model: GPT2LMHeadModel, text: list[torch.Tensor], features: Features) -> GPT2LMHeadModel:
    analog = copy.deepcopy(model)
    aimc.convert(analog, replace(aimc.presets.gain_cell_normalised(), features=features))
    aimc.initialise_scalers(analog, model, text)
    return analog


@pytest.mark.parametrize("name", CHOICES)
def test_ranges_are_filled_by_what_the_converters_meet(
    name: str, lopsided: GPT2LMHeadModel, text: list[torch.Tensor]
) -> None:
    """k and v rest at the cell's rest voltage, and as many deviations as were asked for reach the end of the range: in
    the first layer, whose input is the digital one."""
    analog = started(lopsided, text, CHOICES[name])
    storage, rest = aimc.presets.gain_cell_normalised().storage_dac, aimc.presets.gain_cell_normalised().cell.offset_v
    moments = analog_moments(analog, text)[0]
    for part in ("key", "value"):
        room = min(storage.v_max - rest, rest - storage.v_min) / RANGE_IN_STD[part]
        torch.testing.assert_close(moments[part].mean, torch.full((2,), rest).double(), atol=1e-4 * room, rtol=0)
        torch.testing.assert_close(moments[part].std, torch.full((2,), room).double(), atol=0, rtol=1e-3)


def test_vectors_are_those_of_the_digital_features(lopsided: GPT2LMHeadModel, text: list[torch.Tensor]) -> None:
    analog = started(lopsided, text, ALL)
    found = digital_moments(lopsided, text, partial(in_front, feature_maps(analog)))
    for _, layer in gain_cell_layers(analog):
        of_layer, features = found[layer.layer], layer.features
        assert features is not None
        torch.testing.assert_close(features.key_centre.flatten().double(), of_layer["key"].mean, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(
            features.value_centre.flatten().double(), of_layer["value"].mean, atol=1e-6, rtol=1e-5
        )
        spread = features.key_scale.flatten().square().double()
        torch.testing.assert_close(spread * of_layer["key"].std, of_layer["query"].std, atol=0, rtol=1e-4)
    assert float(found[0]["key"].std.max() / found[0]["key"].std.median()) > 5  # else there was nothing to balance


def test_several_batches_are_one_text(lopsided: GPT2LMHeadModel, text: list[torch.Tensor]) -> None:
    apart, together = (started(lopsided, batches, ALL).state_dict() for batches in (text, [torch.cat(text)]))
    for name, x in together.items():
        torch.testing.assert_close(apart[name], x, atol=1e-5, rtol=1e-4)


def test_padding_counts_for_nothing(lopsided: GPT2LMHeadModel, text: list[torch.Tensor]) -> None:
    """Behind the text, where it changes no token."""
    (ids,) = text[:1]
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(ids)], dim=1)
    padded = {"input_ids": torch.cat([ids, ids], dim=1), "attention_mask": mask}
    plain, behind = (started(lopsided, batches, ALL) for batches in ([ids], [padded]))
    for (_, one), (_, other) in zip(gain_cell_layers(plain), gain_cell_layers(behind), strict=True):
        assert one.features is not None and other.features is not None
        for vector in ("key_centre", "value_centre", "key_scale"):
            torch.testing.assert_close(
                getattr(other.features, vector), getattr(one.features, vector), atol=1e-5, rtol=1e-4
            )


def test_what_sticks_out_costs_less(lopsided: GPT2LMHeadModel, text: list[torch.Tensor]) -> None:
    """Error of the logits straight from the statistics start."""
    with torch.no_grad():
        wanted = lopsided(text[0]).logits
        errors = [
            float((started(lopsided, text, features)(text[0]).logits - wanted).square().mean())
            for features in (Features(), ALL)
        ]
    assert errors[1] < 0.8 * errors[0]


def test_features_that_were_never_measured_are_told(lopsided: GPT2LMHeadModel, text: list[torch.Tensor]) -> None:
    analog, machine = started(lopsided, text, Features()), aimc.presets.gain_cell_normalised()
    with pytest.warns(UserWarning, match="never measured for this model.*aimc.initialise_scalers"):
        aimc.set_hardware(analog, replace(machine, features=CHOICES["balanced"]))
    with pytest.raises(ValueError, match="never measured for this model.*begin with aimc.initialise_scalers"):
        aimc.match_statistics(analog, lopsided, text, parts=("output",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aimc.set_hardware(analog, replace(machine, features=Features(rotation_qk="hadamard")))  # needs none
        aimc.initialise_scalers(analog, lopsided, text)
        aimc.match_statistics(analog, lopsided, text, parts=("output",))
        measured = started(lopsided, text, ALL)
        aimc.set_hardware(measured, replace(machine, features=CHOICES["centred"]))


def test_a_reference_with_other_heads_is_refused(lopsided: GPT2LMHeadModel, text: list[torch.Tensor]) -> None:
    analog = copy.deepcopy(lopsided)
    aimc.convert(analog, replace(aimc.presets.gain_cell_normalised(), features=ALL))
    other = tiny_gpt2(n_head=4, n_embd=32)
    with pytest.raises(ValueError, match="4 K/V heads of 8 features where the model has 2 of 8; use the digital model"):
        aimc.initialise_scalers(analog, other, text)
