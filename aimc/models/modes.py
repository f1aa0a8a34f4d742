"""Evaluation for a while: the one way that anything here puts a model into it and leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation, so that nothing is dropped and nothing drawn for training; then each as it was, also
    after an exception.

    `model.train()` afterwards would not do: it puts modules into training that somebody keeps in evaluation.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
