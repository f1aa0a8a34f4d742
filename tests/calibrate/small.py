"""A small digital model whose attention can be learned, the same on arrays, and what changes in one."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

import aimc
from tests.conftest import small_arrays
from tests.tiny_models import tiny_model

ATTENTION = (".attn.", ".self_attn.", ".attention.")


def smooth(family: str = "gpt2") -> PreTrainedModel:
    """Attention that is no lottery: arrays can learn it in a few steps."""
    model = tiny_model(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ATTENTION) and parameter.ndim == 2:
                parameter.mul_(0.1)
    return model


def on_arrays(digital: PreTrainedModel, batches: list[torch.Tensor]) -> PreTrainedModel:
    model = copy.deepcopy(digital)
    aimc.convert(model, small_arrays())
    aimc.initialise_scalers(model, digital, batches)
    return model


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.detach().clone() for name, x in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
