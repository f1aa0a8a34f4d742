"""What is calibrated; a module's own fixture `text` is what the scalers are set on."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from tests.calibrate.small import on_arrays, smooth


@pytest.fixture
def digital() -> PreTrainedModel:
    return smooth()


@pytest.fixture
def analog(digital: PreTrainedModel, text: list[torch.Tensor]) -> PreTrainedModel:
    return on_arrays(digital, text)
