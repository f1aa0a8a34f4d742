"""Low-rank adapters (peft) that train in place of a model's weights, and end inside them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from aimc.models.arrays import gain_cell_layers
from aimc.static.tiles import has_static

from .errors import RunError

GAIN = 2.0
"""Factor on the adapters' product, peft's `lora_alpha / r`."""


@contextmanager
def adapters(model: PreTrainedModel, rank: int, setting: str, seed: int) -> Iterator[None]:
    """Adapters on the projections of attention and MLPs, in place; the arrays' scalers train beside them, everything
    else does not. At the end, unless by an exception, they are merged and the model has plain weights again.

    Args:
        model: digital or converted.
        rank: of the adapters; 0: none, and nothing happens.
        setting: what the user calls it.
        seed: of their first values.

    Raises:
        RunError: peft is not installed, or the projections stand on static tiles.
    """
    if not rank:
        yield
        return
    if has_static(model):
        raise RunError(f"{setting}={rank}: static tiles hold the projections, and take no adapters; set it to 0")
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise RunError(f"{setting}={rank}: needs peft; pip install 'aimc[lora]', or set it to 0") from error
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    config = LoraConfig(
        r=rank,
        lora_alpha=round(GAIN * rank),
        target_modules="all-linear",  # but the head
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    arrays = tuple(f"{name}." for name, _ in gain_cell_layers(model))
    for name, parameter in model.named_parameters():
        if name in trained and name.startswith(arrays):
            parameter.requires_grad_(True)
    yield
    adapted.merge_and_unload()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
