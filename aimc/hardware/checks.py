"""What a field of a config must be, and the error that names it."""

from __future__ import annotations

import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn


class ConfigError(ValueError):
    """A hardware field has a value that no device can have; the message names the field and the remedy."""


def require(condition: bool, field_name: str, got: object, why: str, remedy: str) -> None:
    """Raise :class:`ConfigError` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{field_name}={got!r}: {why}; {remedy}")


def require_choice(field_name: str, got: str, choices: tuple[str, ...]) -> None:
    """One of a few names."""
    require(got in choices, field_name, got, "unknown choice", f"use one of {', '.join(choices)}")


def require_positive(field_name: str, got: float, unit: str) -> None:
    """A finite number above zero."""
    require(
        math.isfinite(got) and got > 0,
        field_name,
        got,
        f"must be a positive number of {unit}",
        "give a value above zero",
    )


def require_from_zero(field_name: str, positions: list[float] | None, why: str) -> None:
    """Levels, where they are listed, begin at 0."""
    require(positions is None or positions[0] == 0.0, field_name, positions, why, "begin the list with 0")


def check_fields(config: Any, path: str = "") -> None:
    """Hold every field of a dataclass to its annotation; the first thing that its `__post_init__` does.

    Understood are `bool`, `int`, `float`, `str`, dataclasses, `list[…]` and `… | None`. Numbers of numpy become
    Python's, whole numbers become floats where a float is annotated, and tuples and one-dimensional arrays become
    lists. A truth value is no number. No number may be infinite or NaN: "off" is None or 0, and says so in the field's
    docstring.

    Args:
        config: an instance of a dataclass.
        path: where it stands, for messages: `array` makes `array.window`.

    Raises:
        ConfigError: a field has a value of another type, or one that is not finite.
    """
    rules = _RULES.get(type(config))
    if rules is None:
        rules = _RULES[type(config)] = _rules_of(type(config))
    for name, plain, convert in rules:
        value = getattr(config, name)
        kind = type(value)
        if kind in plain and (kind is not float or math.isfinite(value)):
            continue
        try:
            object.__setattr__(config, name, convert(value))  # also of a frozen one
        except _Refused as refused:
            where = f"{path}.{name}" if path else name
            raise ConfigError(f"{where}={value!r}: {refused}") from None


class _Refused(Exception):
    """Why and what to do, without the name of the field."""


_Convert = Callable[[Any], Any]
_Rule = tuple[str, frozenset[type], _Convert]
"""Name of a field, types that need no look (a float's only if it is finite), and what becomes of all others."""
_RULES: dict[type, list[_Rule]] = {}
"""By class, found once: configs are made for every call of an operator."""


def _rules_of(cls: type) -> list[_Rule]:
    hints = typing.get_type_hints(cls)
    return [(f.name, *_rule(hints[f.name])) for f in fields(cls)]


def _rule(hint: Any) -> tuple[frozenset[type], _Convert]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType) and len(arguments) == 2 and types.NoneType in arguments:
        plain, convert = _rule(next(a for a in arguments if a is not types.NoneType))
        return plain | {types.NoneType}, lambda value: None if value is None else convert(value)
    if origin is list:
        plain, convert = _rule(arguments[0])
        return frozenset(), lambda value: _list(value, plain, convert)
    if hint in _SCALARS:
        return frozenset({hint}), _SCALARS[hint]
    if is_dataclass(hint):
        return frozenset({hint}), lambda value: _instance(value, hint)  # type: ignore[arg-type]
    raise TypeError(f"fields of type {hint!r} are not understood; teach aimc.hardware.checks what they hold")


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        _refuse(value, "a number", "give a plain number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _Refused("not a finite number, and no device has such a value; give a finite one")
    return number


def _int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        whole = isinstance(value, float) and value.is_integer()
        _refuse(value, "a whole number", f"write {int(value)}" if whole else "give an int")
    return int(value)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        _refuse(value, "a truth value", "give True or False")
    return value


def _str(value: Any) -> str:
    if not isinstance(value, str):
        _refuse(value, "a name", "give a str")
    return str(value)


_SCALARS: dict[Any, _Convert] = {float: _float, int: _int, bool: _bool, str: _str}


def _instance(value: Any, cls: type) -> Any:
    if not isinstance(value, cls):
        mapping = isinstance(value, Mapping)
        _refuse(
            value,
            f"a {cls.__name__}",
            f"write {cls.__name__}(…)" + (", or build the whole of a mapping with its from_dict" if mapping else ""),
        )
    return value


def _list(value: Any, plain: frozenset[type], convert: _Convert) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        value = value.tolist() if hasattr(value, "tolist") else value  # an array of numpy
        if not isinstance(value, list):
            _refuse(value, "a list", "give a list")
    if plain.issuperset(map(type, value)) and (float not in plain or all(map(math.isfinite, value))):
        return list(value)
    return [convert(item) for item in value]


def _refuse(value: Any, expected: str, remedy: str) -> NoReturn:
    kind = "None" if value is None else f"of type {type(value).__name__}"
    raise _Refused(f"it is {kind}, and this field is {expected}, so it would fail later and elsewhere; {remedy}")
