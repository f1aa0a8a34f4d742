"""The chip loop: what it draws, and that it leaves no trace, however it is left."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2LMHeadModel

import aimc
from aimc.evaluate.chips import chips_of, is_random
from aimc.hardware import Hardware, Noise
from aimc.models.arrays import gain_cell_layers
from aimc.static import Static
from tests.tiny_models import ids, tiny_model

NOISE = Noise(mismatch_gain=0.3, read_qk=0.1)


@pytest.fixture
def converted(model: GPT2LMHeadModel, hardware: Hardware) -> GPT2LMHeadModel:
    aimc.convert(model, hardware)
    aimc.set_chip(model, 7)
    aimc.models.arrays.set_generator(model, torch.Generator().manual_seed(5))
    return model


def state(model: GPT2LMHeadModel) -> tuple[object, ...]:
    layers = [layer for _, layer in gain_cell_layers(model)]
    of_layers = [(layer.hardware.to_dict(), layer.chip_seed, id(layer.generator)) for layer in layers]
    return of_layers, model.config.to_dict(), torch.random.get_rng_state().tolist()


def left_by_exception(model: GPT2LMHeadModel) -> None:
    for chip in chips_of(model, 3, NOISE, 10):
        if chip == 11:
            raise RuntimeError("on purpose")


def test_each_chip_has_its_number_noise_and_generator(converted: GPT2LMHeadModel) -> None:
    before = state(converted)
    seen = []
    for chip in chips_of(converted, 3, NOISE, 10):
        for _, layer in gain_cell_layers(converted):
            assert layer.chip_seed == chip and layer.generator.initial_seed() == chip
            assert layer.hardware.noise == NOISE
        assert converted.config.aimc["chip_seed"] == chip, "what is saved now says what it is"
        seen.append(chip)
    assert seen == [10, 11, 12]
    assert state(converted) == before


def test_nothing_stays_after_a_break_or_an_exception(converted: GPT2LMHeadModel) -> None:
    before = state(converted)
    for _ in chips_of(converted, 3, NOISE):
        break
    assert state(converted) == before
    with pytest.raises(RuntimeError, match="on purpose") as raised:
        left_by_exception(converted)
    assert raised.tb is not None, "the traceback, which keeps the frames, is still there"
    assert state(converted) == before
    chips = chips_of(converted, 3, NOISE)  # held by somebody, and still put back with the loop
    with pytest.raises(RuntimeError, match="on purpose"):
        for _ in chips:
            raise RuntimeError("on purpose")
    assert state(converted) == before and len(chips) == 3


def test_tiles_read_the_same_for_the_same_chip_and_torchs_generator_goes_on() -> None:
    pytest.importorskip("aihwkit")
    model = tiny_model("gpt2")
    aimc.convert(model, Static(rpu_config="pcm"))
    aimc.static.calibrate_input_ranges(model, [ids()])
    torch.manual_seed(3)
    before = state(model)

    def logits() -> list[torch.Tensor]:
        with torch.no_grad():
            return [model(ids()).logits for _ in chips_of(model, 2)]

    (one, two), again = logits(), logits()
    assert torch.equal(one, again[0]) and torch.equal(two, again[1]) and not torch.equal(one, two)
    with pytest.raises(RuntimeError, match="on purpose"):
        for _ in chips_of(model, 2):
            torch.rand(7)
            raise RuntimeError("on purpose")
    assert state(model) == before


def test_one_chip_is_enough_where_nothing_is_random(converted: GPT2LMHeadModel) -> None:
    assert list(chips_of(converted, 5, None, 2)) == [2] and not is_random(converted)
    assert list(chips_of(converted, 2, NOISE)) == [0, 1] and is_random(converted, NOISE)


def test_static_tiles_are_random_too_unless_they_compute_digitally() -> None:
    pytest.importorskip("aihwkit")
    model = tiny_model("gpt2")
    aimc.convert(model, Static(rpu_config="pcm"))
    assert list(chips_of(model, 3)) == [0, 1, 2]
    with aimc.static.computing_digitally(model):
        assert list(chips_of(model, 3)) == [0]


def test_refusals(model: GPT2LMHeadModel) -> None:
    with pytest.raises(ValueError, match=r"aimc\.convert"):
        chips_of(model, 2, NOISE)
    with pytest.raises(ValueError, match="chips=0"):
        chips_of(model, 0)
