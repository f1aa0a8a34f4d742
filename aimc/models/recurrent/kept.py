"""What a module makes of its weights alone, such as discretised poles, made once and not for every token."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

T = TypeVar("T")
_KEPT: WeakKeyDictionary[nn.Module, dict[str, tuple[Any, Any]]] = WeakKeyDictionary()


def kept(make: Callable[[Any], T]) -> Callable[[Any], T]:
    """A method without arguments whose result is kept while the module's own parameters are the same ones, unchanged.

    Nothing is kept in training, with gradients, or inside a compiled graph, where it would be out of date or a leak.
    It is beside the module, not in it: copies and checkpoints know nothing of it. A weight that is written to through
    its `.data` does not count that as a change; write to the weight itself, under `torch.no_grad()`.
    """

    @functools.wraps(make)
    def made(self: nn.Module) -> T:
        weights = list(self.parameters(recurse=False))
        if torch.compiler.is_compiling() or self.training or torch.is_grad_enabled():
            return make(self)
        if any(weight.is_inference() for weight in weights):  # they do not count their changes
            return make(self)
        now = [(id(w), w._version, w.data_ptr(), w.device, w.dtype) for w in weights]
        of_module = _KEPT.setdefault(self, {})
        before = of_module.get(make.__name__)
        if before is None or before[0] != now:
            before = of_module[make.__name__] = (now, make(self))
        return before[1]

    return made
