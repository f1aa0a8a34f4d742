"""Hardware as one string: a registered operator takes plain values only, and a compiler guards on each of the fields
that are read for it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from aimc.hardware import HARDWARE_VERSION, Hardware


def _paths(of: Any, before: str = "") -> Iterator[str]:
    for f in fields(of):
        value = getattr(of, f.name)
        if is_dataclass(value):
            yield from _paths(value, f"{before}{f.name}.")
        else:
            yield before + f.name


_PATHS = tuple(path for path in _paths(Hardware()) if path != "backend")
_PLACES = [(path.rpartition(".")[0], path.rpartition(".")[2]) for path in _PATHS]


def pack(hardware: Hardware) -> str:
    """All fields but `backend`, which the caller has followed already."""
    values = [getattr(getattr(hardware, part) if part else hardware, name) for part, name in _PLACES]
    return _written(values) if torch.compiler.is_compiling() else repr(values)


def _written(value: Any) -> str:
    """`repr`, which a compiler does not know of numbers that it takes for variable."""
    if isinstance(value, list):
        return "[" + ", ".join([_written(item) for item in value]) + "]"
    return f"'{value}'" if isinstance(value, str) else str(value)


@functools.lru_cache(maxsize=256)
def unpack(packed: str) -> Hardware:
    """The inverse of :func:`pack`; shared by all who ask, so not to be changed."""
    data: dict[str, Any] = {"version": HARDWARE_VERSION}
    for path, value in zip(_PATHS, ast.literal_eval(packed), strict=True):
        *parents, name = path.split(".")
        at = data
        for parent in parents:
            at = at.setdefault(parent, {})
        at[name] = value
    return Hardware.from_dict(data)
