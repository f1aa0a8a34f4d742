"""A cost in parts."""

from __future__ import annotations

import math


class Breakdown(dict[str, float]):
    """A sum divided into its parts: part to value, in a fixed order."""

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return math.fsum(self.values())

    def scaled(self, factor: float) -> Breakdown:
        """Every part times `factor`."""
        return Breakdown({name: value * factor for name, value in self.items()})

    def plus(self, other: Breakdown) -> Breakdown:
        """The sum of two, part by part."""
        return Breakdown({name: self.get(name, 0.0) + other.get(name, 0.0) for name in {**self, **other}})
