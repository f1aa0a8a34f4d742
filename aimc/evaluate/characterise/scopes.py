"""Marks in a profile: which part of a model runs, so that an operator's class can be told from where it is.

Parts are found by the names of their classes, and, for models whose recurrence is a function of their module
(transformers' Mamba and its hybrids), by the names of those functions. Marks exist only inside the block.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import FunctionType
from typing import Any
from unittest.mock import patch

from torch import nn
from torch.profiler import record_function

from aimc.evaluate.characterise.operators import (
    ATTENTION,
    CONVOLUTION,
    EMBEDDING,
    MIXER,
    NORMALISATION,
    PRODUCT,
    SCAN,
)

PREFIX, FORWARD = "aimc::part::", "aimc::forward::"
_MODULES = (
    (NORMALISATION, re.compile(r"Norm")),
    (EMBEDDING, re.compile(r"^Embedding$")),
    (PRODUCT, re.compile(r"^(Linear|Conv1D|NonDynamicallyQuantizableLinear)$")),
    (CONVOLUTION, re.compile(r"^(Conv\dd|\w*ShortConv\w*)$")),
    (
        MIXER,
        re.compile(r"Mixer$|SSM|S4|StateSpace|Hyena|LongConv|FFTConv|Slot|Recurren|DeltaNet"),
    ),
    (ATTENTION, re.compile(r"Attention$|SelfAttn|SdpaAttention|^GainCellAttention")),
)
_CONTAINER = re.compile(r"(Model|Block|Layer|ForCausalLM|MLP|Mlp|Backbone|Config)$")
_FUNCTIONS = (
    (CONVOLUTION, re.compile(r"conv1d(?!.*scan)")),
    (SCAN, re.compile(r"scan|state_update|segment_sum|recurren|delta_rule")),
)


def part_of(module: nn.Module) -> str | None:
    """Which part of a model a module is, by the name of its class; None: only a container, or an activation."""
    name = type(module).__name__
    for part, pattern in _MODULES:
        if (found := pattern.search(name)) and found[0] and (part == NORMALISATION or not _CONTAINER.search(name)):
            return part
    return None


@contextmanager
def marked(model: nn.Module, ended: Callable[[int, float], None] | None = None) -> Iterator[None]:
    """Inside the block, a profile of `model` has a mark around each of its parts, and one with its number around each
    call of the whole.

    Args:
        model: whose calls are numbered from 0.
        ended: called behind each call of the whole, with its number and the second it took.
    """
    handles, open_marks = [], []

    def before(mark: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            entered = record_function(mark)
            entered.__enter__()
            open_marks.append(entered)

        return hook

    def after(*_: Any) -> None:
        open_marks.pop().__exit__(None, None, None)

    count, started = [0], [0.0]

    def before_all(*_: Any) -> None:
        started[0] = time.perf_counter()
        before(f"{FORWARD}{count[0]}")()

    def after_all(*_: Any) -> None:
        after()
        seconds = time.perf_counter() - started[0]
        if ended is not None:
            ended(count[0], seconds)
        count[0] += 1

    for module in model.modules():
        if module is not model and (part := part_of(module)) is not None:
            handles += [
                module.register_forward_pre_hook(before(PREFIX + part)),
                module.register_forward_hook(after, always_call=True),
            ]
    handles += [
        model.register_forward_pre_hook(before_all),
        model.register_forward_hook(after_all, always_call=True),
    ]
    try:
        with _marked_functions(model):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _marked_functions(model: nn.Module) -> Iterator[None]:
    """Functions of the files that the model's modules come from, if their names say that they convolve or scan."""
    files = {type(module).__module__ for module in model.modules()}
    with ExitStack() as stack:
        for name in files - {"torch.nn.modules.linear"}:
            if name.startswith("torch."):
                continue
            for key, value in list(vars(sys.modules[name]).items()):
                if isinstance(value, FunctionType) and (part := _part_of_function(key)) is not None:
                    stack.enter_context(patch.object(sys.modules[name], key, _with_mark(value, PREFIX + part)))
        yield


def _part_of_function(name: str) -> str | None:
    return next((part for part, pattern in _FUNCTIONS if pattern.search(name)), None)


def _with_mark(function: Callable[..., Any], mark: str) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(mark):
            return function(*args, **kwargs)

    return call
