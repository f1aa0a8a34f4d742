"""What the circuit models refuse, and what they warn of."""

from __future__ import annotations

from aimc.hardware import ConfigError


class CircuitError(ConfigError):
    """A circuit, curve or fit that cannot be used; the message says what, why, and what to do. One bad field is a plain
    `ConfigError`."""


class CircuitWarning(UserWarning):
    """The circuit can be built, and the model on it will suffer: the message says how."""
