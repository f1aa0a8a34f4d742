"""Sizes and full scales of a head's two arrays."""

from __future__ import annotations

from dataclasses import dataclass

from aimc.hardware.checks import check_fields, require, require_choice, require_positive

FULL_SCALES = ("global", "layer", "head")


@dataclass(slots=True, kw_only=True)
class Array:
    """Sizes and full scales of the two arrays of one head."""

    window: int = 1024
    """W, tokens held: a ring buffer of W slots, token s in slot `s mod W`. A multiple of `rows`."""
    rows: int = 64
    """R, tokens per sub-tile of the second array: they share one charge, one clip and one quantisation."""
    saturation_qk: float = 80.0
    """S_sat, charge in signal units at which the charge-to-pulse circuit gives its longest pulse."""
    saturation_av: float = 40.0
    """A_sat, charge in signal units at which a sub-tile's counter is full."""
    full_scales: str = "global"
    """For how many heads one reference serves: `global`: S_sat, A_sat and `normaliser.full_scale` as they are, on the
    whole chip; `layer`, `head`: times a factor of each layer or query head, which the model's layers hold and
    calibration sets (:func:`aimc.calibrate_ranges` for a softmax, :func:`aimc.fit_full_scales` for pulses)."""

    def __post_init__(self) -> None:
        check_fields(self, "array")
        require(
            self.rows >= 1, "array.rows", self.rows, "a sub-tile holds at least one token", "64 is the published size"
        )
        require(
            self.window >= 1 and self.window % self.rows == 0,
            "array.window",
            self.window,
            f"the window must be a positive multiple of the sub-tile, array.rows={self.rows}, because every sub-tile is"
            " full size",
            f"use {max(1, (2 * self.window + self.rows) // (2 * self.rows)) * self.rows}",
        )
        require_positive("array.saturation_qk", self.saturation_qk, "signal units")
        require_positive("array.saturation_av", self.saturation_av, "signal units")
        require_choice("array.full_scales", self.full_scales, FULL_SCALES)

    @property
    def n_tiles(self) -> int:
        """J = W / R, sub-tiles of the second array."""
        return self.window // self.rows
