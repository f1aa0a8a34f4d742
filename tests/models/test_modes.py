"""Evaluation for a while."""

from __future__ import annotations

import pytest
from transformers import GPT2LMHeadModel

from aimc.models.modes import evaluating


def modes(model: GPT2LMHeadModel) -> list[bool]:
    return [module.training for module in model.modules()]


def test_each_module_is_as_it_was(model: GPT2LMHeadModel) -> None:
    model.train()
    model.transformer.h[0].eval()  # as somebody keeps a part that is not trained
    before = modes(model)
    with evaluating(model):
        assert not any(modes(model))
    assert modes(model) == before


def test_also_after_an_exception(model: GPT2LMHeadModel) -> None:
    model.train()
    before = modes(model)
    with pytest.raises(KeyboardInterrupt), evaluating(model):
        raise KeyboardInterrupt
    assert modes(model) == before
