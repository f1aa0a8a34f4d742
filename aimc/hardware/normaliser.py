"""A column of the second array that counts how much pulse went in."""

from __future__ import annotations

from dataclasses import dataclass, field

from aimc.hardware.checks import check_fields, require, require_from_zero, require_positive
from aimc.hardware.converter import Converter


@dataclass(slots=True, kw_only=True)
class Normaliser:
    """One more column in every sub-tile, whose cells are tied to one voltage for good: its counter reads Σφ, and
    digital logic divides the head's output by the sum over the sub-tiles, one reciprocal a token and head.

    Tied cells neither leak nor take write noise, and their mismatch averages over the tokens of a sub-tile; the column
    has a counter like any other, with its levels, gain and offset error and read noise.
    """

    is_on: bool = False
    """False: there is no such column, as in the published hardware."""
    full_scale: float = 16.0
    """Pulses of full length in one sub-tile at which its counter is full. With `array.rows` it never is; less may fill,
    and has less noise, which is a fraction of it. Times a factor of each layer or head, where `array.full_scales` says
    so."""
    counter: Converter = field(default_factory=Converter)
    """From that share to a number, inside [0, 1]. The smallest number that divides is one step of it."""
    least: float = 0.0
    """Pulses that digital logic divides by at least, where that is more than one step. A first token has met but one
    pulse, a short one perhaps: divided by that, what its counter rounds is blown up, and gradients are."""

    def __post_init__(self) -> None:
        check_fields(self, "normaliser")
        require_positive("normaliser.full_scale", self.full_scale, "pulses of full length")
        require(
            self.least >= 0.0,
            "normaliser.least",
            self.least,
            "a sum of pulses is at least so much",
            "0.25 pulses are usual, 0 leaves it at one step of the counter",
        )
        require(
            self.counter.v_min == 0.0 and self.counter.v_max <= 1.0,
            "normaliser.counter.v_min, normaliser.counter.v_max",
            (self.counter.v_min, self.counter.v_max),
            "a sum of pulses is not negative, and 1 is a full counter",
            "set v_min to 0 and v_max to at most 1",
        )
        require_from_zero(
            "normaliser.counter.positions",
            self.counter.positions,
            "a sub-tile that no pulse has entered counts nothing",
        )

    @property
    def least_share(self) -> float:
        """What is divided by at least, in full scales, whatever `least` says: one step of the counter, so that a query
        that has met next to nothing is not blown up (the first one, where levels are listed); of a counter without
        levels a thousandth of its range."""
        if self.counter.positions is not None:
            return self.counter.positions[1]
        return self.counter.v_max / ((self.counter.n_levels or 1025) - 1)
