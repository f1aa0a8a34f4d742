"""What is observed: by which number a layer goes, and that nothing of it stays."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from transformers import GPT2LMHeadModel

import aimc
from aimc.calibrate.observation import analog_moments, digital_moments, observing, observing_digital, run_batches
from aimc.hardware import Hardware
from aimc.models.arrays import gain_cell_layers
from tests.conftest import tiny_gpt2


def test_layers_go_by_their_number_in_the_model(
    model: GPT2LMHeadModel, hardware: Hardware, batches: list[torch.Tensor]
) -> None:
    assert list(digital_moments(model, batches)) == [0, 1]
    aimc.convert(model, hardware, skip_layers=[0])
    assert list(analog_moments(model, batches)) == [1]
    seen: list[int] = []
    with observing(model, lambda number, parts, details: seen.append(number)):
        run_batches(model, batches[:1])
    assert seen == [1]


@pytest.mark.parametrize("look", [digital_moments, analog_moments])
def test_no_model_is_kept_by_having_been_observed(
    look: object, hardware: Hardware, batches: list[torch.Tensor]
) -> None:
    model = tiny_gpt2()
    if look is analog_moments:
        aimc.convert(model, hardware)
    look(model, batches)  # type: ignore[operator]
    alive = weakref.ref(model), weakref.ref(model.transformer.h[0].attn)
    del model
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


def test_two_models_are_observed_at_once(batches: list[torch.Tensor]) -> None:
    one, other = tiny_gpt2(0), tiny_gpt2(1)
    seen: list[str] = []
    with (
        observing_digital(one, lambda *_: seen.append("one")),
        observing_digital(other, lambda *_: seen.append("other")),
    ):
        run_batches(one, batches[:1])
        run_batches(other, batches[:1])
    assert seen == ["one", "one", "other", "other"]


def test_an_exception_while_looking_leaves_the_model_as_it_was(
    model: GPT2LMHeadModel, hardware: Hardware, batches: list[torch.Tensor]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="on purpose"), observing_digital(model, fail):
        run_batches(model, batches)
    assert model.config._attn_implementation == before
    assert [module.training for module in model.modules()] == modes
    aimc.convert(model, hardware)
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="on purpose"), observing(model, fail, details=True):
        run_batches(model, batches)
    assert [module.training for module in model.modules()] == modes
    assert all(layer.observer is None and not layer.observe_details for _, layer in gain_cell_layers(model))
