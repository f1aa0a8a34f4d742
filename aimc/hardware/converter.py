"""What a DAC, an ADC or a counter is."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from aimc.hardware.checks import check_fields, require, require_choice

CODINGS = ("unsigned", "sign_magnitude", "rounded")
SPACINGS = ("uniform", "equal_charge", "listed")


@dataclass(slots=True, kw_only=True)
class Converter:
    """A DAC, an ADC or a counter: clip to `[v_min, v_max]`, then round to `n_levels` values, all inside that range."""

    n_levels: int | None = None
    """Number of distinct output values; None: clip only."""
    v_min: float = 0.0
    """Lower clip (volt for storage, pulse fraction for the input, full scales for the readout)."""
    v_max: float = 1.0
    """Upper clip, same unit as `v_min`."""
    coding: str = "unsigned"
    """`unsigned`: n levels from v_min to v_max. `sign_magnitude`: step v_max/(n/2−1) about zero, n−1 distinct values
    for even n.
    `rounded`: multiples of (v_max−v_min)/(n−1), which can leave the range (what the published code does)."""
    spacing: str = "uniform"
    """Where an `unsigned` converter's levels lie. `uniform`: equal steps. `equal_charge` (storage DAC only): equal
    steps of the charge that the cell gives, so that the cell acts as a straight line of the number that is written; a
    lookup in the DAC. `listed`: at `positions`; a number goes to the nearest."""
    positions: list[float] | None = None
    """The levels of `listed` spacing, rising, inside [v_min, v_max]; None for the other spacings."""
    inl: float = 0.0
    """Integral nonlinearity: largest deviation from the straight line through the end points, as a fraction of `v_max −
    v_min`, of either sign; × (n_levels − 1) it is in LSB (sign and magnitude: × (n_levels − 2)). 0: straight. The
    deviation is a parabola, `inl·4z(1−z)` at the
    position z from 0 to 1 in the range: the first power-series term that vanishes at both ends. A DAC puts out
        displaced levels; an ADC or
    counter has displaced thresholds and ideal codes. In a range about zero it is largest at zero, so there it acts
    as an offset."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.n_levels is not None:
            require(
                self.n_levels >= 2,
                "n_levels",
                self.n_levels,
                "a converter has at least 2 levels",
                "use null (None) for an ideal one",
            )
        require(
            self.v_min < self.v_max,
            "v_min, v_max",
            (self.v_min, self.v_max),
            "the clip range is empty or upside down",
            "give v_min < v_max",
        )
        require_choice("coding", self.coding, CODINGS)
        require(
            abs(self.inl) < 0.25,
            "inl",
            self.inl,
            "from a quarter of the range on the characteristic turns back before it reaches the end of the range",
            "give a fraction between -0.25 and 0.25; half an LSB is 0.5 / (n_levels - 1)",
        )
        self._check_spacing()
        if self.coding == "sign_magnitude":
            require(
                self.v_min == -self.v_max,
                "v_min, v_max",
                (self.v_min, self.v_max),
                "sign and magnitude needs a symmetric range",
                "give v_min = −v_max",
            )
            require(
                self.n_levels is None or (self.n_levels >= 4 and self.n_levels % 2 == 0),
                "n_levels",
                self.n_levels,
                "sign and magnitude needs an even number of levels, at least 4 (one bit is the sign)",
                "use 4, 8, 16, 32, …",
            )

    def _check_spacing(self) -> None:
        require_choice("spacing", self.spacing, SPACINGS)
        require(
            self.spacing == "uniform" or self.coding == "unsigned",
            "spacing",
            self.spacing,
            f"levels of coding={self.coding!r} are where that coding puts them",
            "use coding='unsigned', or spacing='uniform'",
        )
        given = self.positions is not None
        require(
            given == (self.spacing == "listed"),
            "positions",
            self.positions,
            "a list of levels and spacing='listed' need each other",
            "give both or neither",
        )
        if self.positions is None:
            return
        rising = all(a < b for a, b in pairwise(self.positions))
        require(
            len(self.positions) >= 2
            and rising
            and self.v_min <= self.positions[0]
            and self.positions[-1] <= self.v_max,
            "positions",
            self.positions,
            f"levels are at least two rising values between v_min={self.v_min} and v_max={self.v_max}",
            "sort them, drop doubles, and keep them inside the range",
        )
        require(
            self.n_levels is None or self.n_levels == len(self.positions),
            "n_levels",
            self.n_levels,
            f"{len(self.positions)} positions are listed",
            "leave n_levels out, or give as many",
        )
        self.n_levels = len(self.positions)
