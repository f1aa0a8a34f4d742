"""Hardware as a flat list of numbers: a registered operator takes plain values only, and a compiler guards on each of
them."""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from aimc.hardware import (
    ACTIVATIONS,
    BACKENDS,
    CODINGS,
    FULL_SCALES,
    GRADIENTS,
    HARDWARE_VERSION,
    NOISE_GRADIENTS,
    RECOMPUTED,
    ROTATIONS,
    SELECTIONS,
    SPACINGS,
    Hardware,
)

_NONE = -1e30
"""Stands for None, where no true value is that."""
_CHOICES = {
    "activation": ACTIVATIONS,
    "backend": BACKENDS,
    "coding": CODINGS,
    "full_scales": FULL_SCALES,
    "gradient": GRADIENTS,
    "noise_gradient": NOISE_GRADIENTS,
    "recompute": RECOMPUTED,
    "rotation_av": ROTATIONS,
    "rotation_qk": ROTATIONS,
    "select": SELECTIONS,
    "spacing": SPACINGS,
}
"""The names that a field of names may have: a name travels as its number."""


def _leaves(of: Any, *before: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and type of every field of numbers, names and lists."""
    hints = typing.get_type_hints(type(of))
    for f in fields(of):
        value = getattr(of, f.name)
        if is_dataclass(value):
            yield from _leaves(value, *before, f.name)
        else:
            yield (*before, f.name), hints[f.name]


_LEAVES = list(_leaves(Hardware()))
_PLACES = [(path[:-1], path[-1], _CHOICES.get(path[-1]), "list" in str(hint)) for path, hint in _LEAVES]
_WHOLE = [int in (hint, *typing.get_args(hint)) for _, hint in _LEAVES]
_TRUTH = [hint is bool for _, hint in _LEAVES]


def pack(hardware: Hardware) -> list[float]:
    """All fields."""
    numbers: list[float] = []
    for parents, name, choices, is_list in _PLACES:
        at: Any = hardware
        for parent in parents:
            at = getattr(at, parent)
        value = getattr(at, name)
        if value is None:
            numbers.append(_NONE)
        elif choices is not None:
            numbers.append(float(choices.index(value)))
        elif is_list:
            numbers.append(float(len(value)))
            numbers += value
        else:
            numbers.append(float(value))
    return numbers


def unpack(numbers: Sequence[float]) -> Hardware:
    """The inverse of :func:`pack`; shared by all who ask, so not to be changed."""
    return _unpacked(tuple(numbers))


@functools.lru_cache(maxsize=256)
def _unpacked(numbers: tuple[float, ...]) -> Hardware:
    data: dict[str, Any] = {"version": HARDWARE_VERSION}
    values = iter(numbers)
    for (parents, name, choices, is_list), whole, truth in zip(_PLACES, _WHOLE, _TRUTH, strict=True):
        value: Any = next(values)
        if value == _NONE:
            value = None
        elif choices is not None:
            value = choices[int(value)]
        elif is_list:
            value = [next(values) for _ in range(int(value))]
        elif whole or truth:
            value = bool(value) if truth else int(value)
        at = data
        for parent in parents:
            at = at.setdefault(parent, {})
        at[name] = value
    return Hardware.from_dict(data)
