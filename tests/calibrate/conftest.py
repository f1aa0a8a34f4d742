"""What is calibrated; a module's own fixture `text` is what the scalers are set on. Each test has a copy of its own."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from tests.calibrate.small import on_arrays, smooth


@pytest.fixture(scope="module")
def _digital() -> PreTrainedModel:
    return smooth()


@pytest.fixture(scope="module")
def _analog(_digital: PreTrainedModel, text: list[torch.Tensor]) -> PreTrainedModel:
    return on_arrays(_digital, text)


@pytest.fixture
def digital(_digital: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(_digital)


@pytest.fixture
def analog(_analog: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(_analog)
