"""Floating-point operations and bytes of a model's calls, counted operator by operator.

Products, convolutions and attention: two operations a multiply-accumulate, by PyTorch's own formulas where it has them
(a depthwise convolution counts its groups); attention that is causal over a square counts the half that is needed. A
Fourier transform of n points counts 5·n·log2 n, half for real input; every other operator one a value that it writes.
Bytes: what each operator reads and writes, views nothing, as if no cache held anything from one to the next; so they
are what unfused operators move at most, and the arithmetic intensity is a lower bound.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(slots=True)
class Work:
    """What one call of a model computes and moves."""

    flops: float = 0.0
    bytes_moved: float = 0.0
    n_operators: int = 0

    @property
    def intensity(self) -> float:
        """Operations a byte; 0 where nothing is moved."""
        return self.flops / self.bytes_moved if self.bytes_moved else 0.0


def work_of(model: nn.Module, call: Callable[[], Any]) -> list[Work]:
    """The calls of `model` that `call` makes, in order."""
    mode = _Counter()
    with _by_call(model, mode), mode:
        call()
    return mode.calls


@contextmanager
def _by_call(model: nn.Module, mode: _Counter) -> Iterator[None]:
    def before(*_: Any) -> None:
        mode.calls.append(Work())
        mode.inside = True

    def after(*_: Any) -> None:
        mode.inside = False

    handles = [model.register_forward_pre_hook(before), model.register_forward_hook(after, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Work] = []
        self.inside = False
        self._views: dict[Any, bool] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.inside and not self._is_view(func):
            work = self.calls[-1]
            read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            work.n_operators += 1
            work.flops += _flops(func, args, kwargs, out, written)
            work.bytes_moved += sum(x.numel() * x.element_size() for x in (*read, *written))
        return out

    def _is_view(self, func: Any) -> bool:
        """Whether an operator only looks at its argument differently, or only asks for memory."""
        if func not in self._views:
            returns = func._schema.returns
            aliases = [r.alias_info for r in returns]
            looks = bool(aliases) and all(a is not None and not a.is_write for a in aliases)
            self._views[func] = looks or func.overloadpacket.__name__.startswith(("empty", "new_empty", "detach"))
        return self._views[func]


def _flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, written: list[Tensor]) -> float:
    packet = func.overloadpacket
    name = packet.__name__
    if "scaled_dot_product" in name:
        return _attention_flops(args, kwargs, func)
    if packet in flop_registry:
        return float(flop_registry[packet](*args, **kwargs, out_val=out))
    if "fft" in name:
        points = max(x.numel() for x in (args[0], *written))
        lengths = [max(args[0].shape[d], written[0].shape[d]) for d in args[1]]
        real = not (args[0].is_complex() and written[0].is_complex())
        return sum(5 * points * math.log2(max(n, 2)) for n in lengths) / (2 if real else 1)
    return float(sum(x.numel() for x in written))


def _attention_flops(args: tuple[Any, ...], kwargs: dict[str, Any], func: Any) -> float:
    query, key, value = args[:3]
    names = [argument.name for argument in func._schema.arguments]
    at = names.index("is_causal") if "is_causal" in names else None
    causal = kwargs.get("is_causal", args[at] if at is not None and at < len(args) else False)
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    pairs = n_queries * (n_queries + 1) / 2 if causal and n_queries == n_keys else n_queries * n_keys
    return 2 * math.prod(query.shape[:-2]) * pairs * (query.shape[-1] + value.shape[-1])


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, each storage once (tied weights are one)."""
    storages: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def read_weights(model: nn.Module) -> int:
    """Weights that a token reads: all parameters, less the tables of which it takes a row (embeddings that are no
    head)."""
    tables = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    heads = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    looked_up = sum(weight.numel() for key, weight in tables.items() if key not in heads)
    return sum(p.numel() for p in model.parameters()) - looked_up


def cache_bytes(cache: Any) -> tuple[int, int]:
    """Bytes of keys and values, and of states (recurrent and convolution) that a cache holds, each storage once.

    Keys and values are what a layer's `keys` and `values` hold, in every layer that has them: those of a hybrid count.
    A bounded memory of slots is a state, whatever it is called inside.

    Args:
        cache: of transformers, or anything with tensors in it.
    """
    keys_and_values: dict[int, int] = {}
    for layer in getattr(cache, "layers", []):
        if "Slot" in type(layer).__name__:
            continue
        for tensor in tree_leaves((getattr(layer, "keys", None), getattr(layer, "values", None))):
            if isinstance(tensor, Tensor):
                keys_and_values[tensor.untyped_storage().data_ptr()] = tensor.numel() * tensor.element_size()
    everything: dict[int, int] = {}
    seen: set[int] = set()
    _collect(cache, everything, seen)
    states = sum(size for key, size in everything.items() if key not in keys_and_values)
    return sum(keys_and_values.values()), states


def _is_cache(kind: type) -> bool:
    """Whether a class, by its name or its place, is a cache or a part of one."""
    here = kind.__module__.startswith(("transformers.cache", "aimc"))
    return here or re.search("Cache|State", kind.__name__) is not None


def _collect(owner: Any, found: dict[int, int], seen: set[int]) -> None:
    """Tensors in attributes, lists and mappings of a cache."""
    if id(owner) in seen or isinstance(owner, (str, bytes, int, float, nn.Module, type)) or owner is None:
        return
    seen.add(id(owner))
    if isinstance(owner, Tensor):
        if owner.dtype != torch.int64:  # positions are no state
            found[owner.untyped_storage().data_ptr()] = owner.numel() * owner.element_size()
        return
    parts: list[Any] = []
    if isinstance(owner, dict):
        parts = list(owner.values())
    elif isinstance(owner, (list, tuple)):
        parts = list(owner)
    elif hasattr(owner, "__dict__") and (
        type(owner).__module__.startswith(("transformers.cache", "aimc"))
        or re.search("Cache|State", type(owner).__name__)
    ):
        parts = list(vars(owner).values())
    elif hasattr(owner, "__slots__"):
        parts = [getattr(owner, name, None) for name in owner.__slots__]
    for part in parts:
        _collect(part, found, seen)
