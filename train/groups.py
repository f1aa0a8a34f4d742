"""Groups of parameters that learn at rates of their own, or not at all: the arrays' scalers, the rest of attention, the
rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from aimc.models.arrays import gain_cell_layers, has_arrays
from aimc.models.families import attention_layers


def groups_of(model: PreTrainedModel) -> dict[str, str]:
    """Name of each parameter to its group, one of the fields of :class:`train.recipe.LearningRates`."""
    arrays = [f"{name}." for name, _ in gain_cell_layers(model)]
    blocks = _attention_blocks(model)

    def group(name: str) -> str:
        if name.startswith(tuple(arrays)):
            return "scalers"
        return "attention" if name.startswith(tuple(blocks)) else "rest"

    return {name: group(name) for name, _ in model.named_parameters()}


def _attention_blocks(model: PreTrainedModel) -> list[str]:
    """Names of all attention modules; those of layers that stay digital are of the same class as the converted."""
    if not has_arrays(model):
        return [f"{layer.name}." for layer in attention_layers(model)]
    modules = dict(model.named_modules())
    kinds = {type(modules[name.rpartition(".")[0]]) for name, _ in gain_cell_layers(model)}
    return [f"{name}." for name, module in modules.items() if type(module) in kinds]


@contextmanager
def frozen(model: PreTrainedModel, factors: Mapping[str, float]) -> Iterator[None]:
    """No gradient for the groups whose factor is 0; afterwards each parameter as it was."""
    stopped = []
    if not all(factors.values()):
        groups = groups_of(model)
        stopped = [p for name, p in model.named_parameters() if not factors[groups[name]] and p.requires_grad]
    for parameter in stopped:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in stopped:
            parameter.requires_grad_(True)


def set_rates(optimizer: torch.optim.Optimizer, model: nn.Module, factors: Mapping[str, float]) -> None:
    """Split the groups of a fresh optimiser so that each parameter learns at its own factor of the learning rate."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = groups_of(model)  # type: ignore[arg-type]
    split: list[dict[str, Any]] = []
    for old in optimizer.param_groups:
        parts: dict[str, list[nn.Parameter]] = {}
        for parameter in old["params"]:
            parts.setdefault(groups[names[id(parameter)]], []).append(parameter)
        for name, part in parts.items():
            split.append({**old, "params": part, "lr": old["lr"] * factors[name], "factor": factors[name]})
    optimizer.param_groups[:] = split
