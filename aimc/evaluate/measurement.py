"""How a model is measured: windows, text, chips. The same object in Python and in every Hydra config."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypedDict

from aimc.hardware.checks import require

MOST, MOST_SEED = 10**12, 2**62
"""Counts beyond overflow, and so do numbers of chips."""


@dataclass(slots=True, kw_only=True)
class Measurement:
    """How much of a text is read, in which windows, and over how many chips."""

    context: int | None = None
    """Tokens a window; None: as many as the model has positions."""
    stride: int | None = None
    """Tokens scored a window, and by which windows advance; None: half the context."""
    batch_size: int = 16
    """Windows computed together; fewer where the logits of so many would fill the memory."""
    tokens: int | None = None
    """Tokens of the text, from its start; None: all."""
    chips: int = 1
    """Chips, each a draw of everything random; without anything random one is enough."""
    seed: int = 0
    """Number of the first chip; the others follow it."""

    def __post_init__(self) -> None:
        for name, least in (("context", 2), ("stride", 1), ("batch_size", 1), ("tokens", 2), ("chips", 1), ("seed", 0)):
            value, most = getattr(self, name), MOST_SEED if name == "seed" else MOST
            is_whole = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
            require(
                is_whole or (value is None and name in ("context", "stride", "tokens")),
                name,
                value,
                f"must be a whole number of at least {least} and at most {most:g}",
                f"give {least} or more",
            )
        if self.context is not None and self.stride is not None:
            require(
                self.stride <= self.context,
                "stride",
                self.stride,
                f"windows of {self.context} tokens that far apart leave tokens out",
                f"give {self.context} or less",
            )


class MeasurementFields(TypedDict, total=False):
    """Fields of a :class:`Measurement` as keywords of what measures; the length of the text is the text's own there."""

    context: int | None
    stride: int | None
    batch_size: int
    chips: int
    seed: int


def measurement_of(
    measurement: Measurement | None, fields: MeasurementFields, default: Measurement | None = None
) -> Measurement:
    """What is measured: `measurement` (None: `default`, or one with every field at its default) with `fields` in place
    of its own.

    Raises:
        ConfigError: a value that no measurement can have.
        TypeError: a keyword that no measurement has.
    """
    if measurement is not None and not isinstance(measurement, Measurement):
        raise TypeError(
            f"measurement={measurement!r}: an aimc.evaluate.Measurement is needed; give single settings by name, such"
            " as chips=4"
        )
    start = measurement or default or Measurement()
    if unknown := sorted(set(fields) - MeasurementFields.__optional_keys__):
        raise TypeError(
            f"{', '.join(unknown)}: a measurement has no such setting; it has"
            f" {', '.join(MeasurementFields.__annotations__)}"
        )
    return replace(start, **fields)
