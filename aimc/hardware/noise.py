"""What of the hardware is random."""

from __future__ import annotations

from dataclasses import dataclass, fields

from aimc.hardware.checks import ConfigError, check_fields

FROZEN_IN_CHIP = ("mismatch_gain", "mismatch_offset_v", "column_gain", "column_offset", "tau_spread")
"""Fields of :class:`Noise` that are drawn once, at fabrication."""

MOST_TAU_SPREAD = 5.0
"""Of a logarithm: more is a percentage by mistake, and overflows."""


@dataclass(slots=True, kw_only=True)
class Noise:
    """Random non-idealities, each a standard deviation, each 0 (off) by default, each independent of the others."""

    write_v: float = 0.0
    """Write noise in volt, drawn once per written value; its physical floor is √(kT/C)."""
    read_qk: float = 0.0
    """Read noise of the first array, as a fraction of the full scale at hand (`array.saturation_qk`, times the factor
    of a head or layer where `array.full_scales` says so), drawn at every read."""
    read_av: float = 0.0
    """Read noise of the second array, as a fraction of the full scale at hand (`array.saturation_av`, likewise; of the
    normaliser's column its own), drawn at every read of every sub-tile."""
    mismatch_gain: float = 0.0
    """Relative spread of a cell's charge; frozen per (layer, K/V head, array, slot, feature) of one chip."""
    mismatch_offset_v: float = 0.0
    """Spread of a cell's rest voltage in volt; frozen like `mismatch_gain`."""
    column_gain: float = 0.0
    """Relative gain error of a column's readout circuit; frozen per (layer, K/V head, array, column). A column of the
    first array is a slot (one charge-to-pulse circuit), of the second a (sub-tile, feature) pair (one counter)."""
    column_offset: float = 0.0
    """Offset of a column's readout circuit, as a fraction of its full scale, as for `read_qk` and `read_av`; frozen
    like `column_gain`."""
    tau_spread: float = 0.0
    """Spread σ of the retention time from cell to cell: `τ_cell = τ·exp(σ·ξ)`, ξ standard normal, frozen like
    `mismatch_gain`. Log-normal, because leakage is a subthreshold current, exponential in a threshold voltage that is
    spread normally. Felt only where cells leak."""

    def __post_init__(self) -> None:
        check_fields(self, "noise")
        for name in self.__slots__:  # the fields; noises are made for every call of an operator
            value = getattr(self, name)
            if value < 0:
                raise ConfigError(f"noise.{name}={value!r}: a standard deviation is not negative; 0 switches it off")
        if self.tau_spread > MOST_TAU_SPREAD:
            raise ConfigError(
                f"noise.tau_spread={self.tau_spread!r}: retention times would differ from cell to cell by factors of"
                f" e^{self.tau_spread:g}; give a spread of their logarithm up to {MOST_TAU_SPREAD:g}, 0.1 for 10 %"
            )

    def only(self, name: str) -> Noise:
        """This noise with every field but `name` switched off."""
        return Noise(**{name: getattr(self, name)})

    def scaled(self, factor: float) -> Noise:
        """This noise with every field times `factor`."""
        return Noise(**{f.name: factor * getattr(self, f.name) for f in fields(self)})

    def active(self) -> list[str]:
        """Names of the fields that are not off."""
        return [f.name for f in fields(self) if getattr(self, f.name) > 0]

    def is_fresh(self) -> bool:
        """Whether any of it is drawn anew in every call, so that a seed is needed."""
        return bool(self.write_v or self.read_qk or self.read_av)

    def frozen(self) -> list[str]:
        """Names of the fields that are not off and belong to one chip."""
        return [name for name in self.active() if name in FROZEN_IN_CHIP]

    def is_frozen_in_chip(self) -> bool:
        """Whether any of it belongs to one chip, so that a chip must be chosen."""
        return bool(self.frozen())
