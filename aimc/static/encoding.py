"""An aihwkit configuration as JSON and back, to the value: nothing is pickled, and nothing but aihwkit's own classes is
ever built.

Dataclasses, noise models, conductance converters and drift compensations are written as class name and fields, enums by
name, classes by name, tensors and dictionaries as lists.
"""

from __future__ import annotations

import importlib
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import torch

from aimc.static.install import require_aihwkit

PACKAGE = "aihwkit"
"""Only classes that this package defines are written or built."""
PARTS = ("aihwkit.simulator.", "aihwkit.inference.")
"""Where its configurations live: no other module is imported because a file names it."""
_TAGS = ("object", "enum", "class", "tensor", "dict", "tuple")


class EncodingError(ValueError):
    """A configuration that cannot be written as JSON, or JSON that is no configuration."""


def encode(value: Any) -> Any:
    """`value` as what `json.dumps` takes.

    Raises:
        EncodingError: an object of a class that is not aihwkit's.
    """
    if value is None or isinstance(value, bool | int | float | str) and not isinstance(value, Enum):
        return value
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, torch.Tensor):
        return {"tensor": value.detach().cpu().tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Enum):
        return {"enum": _path(type(value)), "name": value.name}
    if isinstance(value, type):
        return {"class": _path(value)}
    path = _path(type(value))
    _check_kind(type(value), path)
    return {"object": path, "fields": {name: encode(item) for name, item in _state(value).items()}}


def decode(data: Any) -> Any:
    """The value that :func:`encode` wrote.

    Raises:
        EncodingError: it names a class that is not aihwkit's, or that this version of aihwkit does not have, or is
            damaged.
        MissingAihwkit: aihwkit is not installed.
    """
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    tag = next((tag for tag in _TAGS if tag in data), None)
    try:
        if tag == "tuple":
            return tuple(decode(item) for item in data["tuple"])
        if tag == "dict":
            return {decode(key): decode(item) for key, item in data["dict"]}
        if tag == "tensor":
            return torch.tensor(data["tensor"], dtype=getattr(torch, data["dtype"]))
        if tag == "enum":
            kind = _class(data["enum"])
            if not issubclass(kind, Enum):
                raise EncodingError(f"{data['enum']} is no enum; use another copy of the file")
            return kind[data["name"]]
        if tag == "class":
            return _class(data["class"])
        if tag == "object":
            return _built(data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, EncodingError):
            raise
        raise EncodingError(f"a configuration of static tiles is damaged ({type(error).__name__}: {error})") from error
    raise EncodingError(f"a configuration of static tiles is damaged: {sorted(data)} stand for nothing known")


def _state(value: Any) -> dict[str, Any]:
    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return dict(value.__dict__)


def _built(data: dict[str, Any]) -> Any:
    kind = _class(data["object"])
    _check_kind(kind, data["object"])
    state = {name: decode(item) for name, item in data["fields"].items()}
    if not is_dataclass(kind):
        bare: Any = object.__new__(kind)  # noise models and their parts are what their attributes are
        bare.__dict__.update(state)
        return bare
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(state) - known):
        raise EncodingError(
            f"{data['object']} has no field {', '.join(unknown)}: the tiles were saved with another version of aihwkit;"
            " install that one"
        )
    built: Any = kind()
    for name, item in state.items():
        setattr(built, name, item)
    return built


def _path(kind: type) -> str:
    if kind.__module__.split(".")[0] != PACKAGE or "." in kind.__qualname__:
        raise EncodingError(
            f"{kind.__module__}.{kind.__qualname__} is not one of aihwkit's classes: a model on it could not be saved"
            " without pickling code; use aihwkit's own configurations, noise models, converters and compensations"
        )
    return f"{kind.__module__}.{kind.__qualname__}"


def _class(path: str) -> type:
    module, _, name = path.rpartition(".")
    if not module.startswith(PARTS):
        raise EncodingError(
            f"{path} is not one of aihwkit's classes, and nothing else is built from a file; do not trust where it came"
            " from"
        )
    require_aihwkit()
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise EncodingError(
            f"{path}: this version of aihwkit has no such class ({error}); install the one the tiles were saved with"
        ) from error
    if not isinstance(found, type) or found.__module__ != module:
        raise EncodingError(f"{path} is not a class of aihwkit's; use another copy of the file")
    return found


def _check_kind(kind: type, path: str) -> None:
    """Objects are configurations and the parts of noise models, nothing that does more than hold values."""
    from aihwkit.inference.compensation.base import BaseDriftCompensation
    from aihwkit.inference.converter.base import BaseConductanceConverter
    from aihwkit.inference.noise.base import BaseNoiseModel

    if not is_dataclass(kind) and not issubclass(
        kind, (BaseNoiseModel, BaseConductanceConverter, BaseDriftCompensation)
    ):
        raise EncodingError(
            f"{path} is no configuration, noise model, conductance converter or drift compensation; leave it out"
        )
