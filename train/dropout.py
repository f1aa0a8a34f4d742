"""A model's dropout, left out while a stage trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def dropout(model: nn.Module, is_on: bool) -> Iterator[None]:
    """Nothing is dropped while it lasts, unless `is_on`; afterwards each layer's probability is what it was. What a
    model reads from its config at every pass, as Falcon does, stays."""
    if is_on:
        yield
        return
    found = [(module, name, value) for module in model.modules() for name, value in _probabilities(module)]
    for module, name, _ in found:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)


def _probabilities(module: nn.Module) -> list[tuple[str, Any]]:
    """Of a layer of dropout, or of a module that calls the function with a number of its own, as OPT's do."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return [("p", module.p)]
    return [(name, value) for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]
