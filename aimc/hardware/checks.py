"""What a field of a config must be, and the error that names it."""

from __future__ import annotations

import math


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
