"""A machine's converters by where they stand in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aimc.hardware import Converter, Hardware

OF_NORMALISER = "normaliser.counter"
"""The one that is no field of the machine itself."""


def converter_at(hardware: Hardware, place: str) -> Converter:
    """The converter of a place such as `readout`, or :data:`OF_NORMALISER`."""
    return hardware.normaliser.counter if place == OF_NORMALISER else getattr(hardware, place)


def with_converter(hardware: Hardware, place: str, converter: Converter) -> Hardware:
    """The machine with another converter there."""
    if place == OF_NORMALISER:
        return replace(hardware, normaliser=replace(hardware.normaliser, counter=converter))
    changes: dict[str, Any] = {place: converter}
    return replace(hardware, **changes)


def without_levels(converter: Converter) -> Converter:
    """It only clips; a list of levels goes with them. With those of a normaliser goes the floor of what it divides by,
    which is one step of its counter (:attr:`aimc.hardware.Normaliser.least_share`)."""
    spacing = "uniform" if converter.spacing == "listed" else converter.spacing
    return replace(converter, n_levels=None, spacing=spacing, positions=None)
