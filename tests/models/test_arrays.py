"""What a converted model says about its arrays."""

from __future__ import annotations

import pytest
from transformers import GPT2LMHeadModel

import aimc
from aimc.hardware import Hardware
from aimc.models import has_arrays, is_digital


def test_the_old_question_still_answers_and_names_the_new_one(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    with pytest.warns(DeprecationWarning, match="not aimc.models.has_arrays"):
        assert is_digital(model) and not has_arrays(model)
    aimc.convert(model, hardware)
    with pytest.warns(DeprecationWarning, match="not aimc.models.has_arrays"):
        assert not is_digital(model) and has_arrays(model)
