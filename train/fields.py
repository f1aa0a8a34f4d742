"""The one way in which a config states what a field may be, and checks it: type, range, choice.

A range stands at its field, so nobody can check one side of it and forget the other, and no number is ever infinite
or NaN. `__post_init__` of every config is one call of :func:`check`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import RunError

T = TypeVar("T")
MOST = 1e12
"""No number of a config is larger, unless it says so: beyond, counts of a machine overflow."""
_RULE = "rule"
_KINDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """What a number may be; None: no such bound."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    hint: str = ""

    def holds(self, value: float) -> bool:
        """Whether a number is finite and inside."""
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        bounds = [f"{word} {bound:g}" for word, bound in words.items() if bound is not None]
        if self.most is None and self.below is None:
            bounds.append("finite")
        return f"must be {' and '.join(bounds)}{f'; {self.hint}' if self.hint else ''}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The names that a text may be."""

    names: tuple[str, ...]

    def holds(self, value: str) -> bool:
        """Whether it is one of them."""
        return value in self.names

    def __str__(self) -> str:
        return f"unknown; use one of {', '.join(self.names)}"


def number(default: float | None, **bounds: Any) -> Any:
    """A field that holds a number inside a :class:`Range`, whose bounds the keywords are."""
    return field(default=default, metadata={_RULE: Range(**bounds)})


def choice(default: str, names: tuple[str, ...]) -> Any:
    """A field that holds one of a few names."""
    return field(default=default, metadata={_RULE: Choice(names)})


def with_fields(brought: Mapping[str, tuple[type, Any]]) -> Callable[[type[T]], type[T]]:
    """A class decorator, under `@dataclass`: fields that others bring along, as name: (type, default)."""

    def extend(cls: type[T]) -> type[T]:
        cls.__annotations__ = {name: kind for name, (kind, _) in brought.items()} | cls.__annotations__
        for name, (_, default) in brought.items():
            setattr(cls, name, default)
        return cls

    return extend


def check(config: Any) -> None:
    """Check every field of a config for its type, its range and its choices.

    Raises:
        RunError: the first that is wrong; the message begins with its name.
    """
    kinds = _kinds_of(config.__class__)
    for item in fields(config):
        value, allowed = getattr(config, item.name), kinds[item.name]
        if value is None and type(None) in allowed:
            continue
        if not any(_is_a(value, kind) for kind in allowed):
            raise RunError(f"{item.name}={value!r}: must be {_named(allowed)}")
        if isinstance(value, str) and not (value and value.isprintable()):
            raise RunError(f"{item.name}={value!r}: must be a text, of characters that can be printed")
        rule = item.metadata.get(_RULE)
        if isinstance(value, float) and rule is None and not math.isfinite(value):
            raise RunError(f"{item.name}={value}: must be a finite number")
        bounded = isinstance(rule, Range) and (rule.most, rule.below) != (None, None)
        if isinstance(value, (int, float)) and not bounded and math.isfinite(value) and value > MOST:
            raise RunError(f"{item.name}={value:g}: must be at most {MOST:g}, for counts beyond it overflow")
        if rule is not None and not rule.holds(value):
            raise RunError(f"{item.name}={value}: {rule}")


@cache
def _kinds_of(cls: type) -> dict[str, tuple[Any, ...]]:
    """The types that each field allows, `X | None` taken apart."""
    hints = get_type_hints(cls)
    return {
        item.name: get_args(hint) if get_origin(hint := hints[item.name]) in (Union, UnionType) else (hint,)
        for item in fields(cls)
    }


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(item, get_args(kind)[0]) for item in value)
    if kind is Any:
        return True
    if kind in (int, float):  # in Python a bool is an int, and an int is as good as a float
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _named(kinds: tuple[Any, ...]) -> str:
    names = [_KINDS.get(kind) or getattr(kind, "__name__", str(kind)) for kind in kinds if kind is not type(None)]
    return " or ".join([*names, *(["null"] if type(None) in kinds else [])])
