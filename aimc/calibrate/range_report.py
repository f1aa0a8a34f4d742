"""What range calibration chose."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class LayerRanges:
    """What one layer was calibrated to."""

    layer: int = 0
    """Its number in the model, in which skipped layers count."""
    query: list[float] = field(default_factory=list)
    """Per head, |q| that gives the longest pulse."""
    key: list[float] = field(default_factory=list)
    """Per K/V head, distance from the middle of k that fills the storage range on one side of rest."""
    value: list[float] = field(default_factory=list)
    """Likewise for v."""
    score: list[float] = field(default_factory=list)
    """Per head, |logit| that fills the score ADC; empty where one reference serves the chip."""
    readout: list[float] = field(default_factory=list)
    """Per head, |Σ pulse·v| of a sub-tile that fills its counter; likewise."""
    error: list[float] = field(default_factory=list)
    """Per head, squared error of the attention output over the power of digital attention's; only where it was
    searched."""


@dataclass(slots=True, kw_only=True)
class RangeReport:
    """What the calibration chose."""

    layers: list[LayerRanges] = field(default_factory=list)
    method: str = "percentile"
    """How."""
    percentile: float = 0.0
    """Percentile of the converters' full scales, and of the ranges unless they were chosen by statistics."""
    range_share: float = 0.0
    """Share of the storage range that is used."""
    score_full_scale: float = 0.0
    """Full scale of the ADC, in units of `array.saturation_qk`: of all heads, or the largest of any."""
    readout_full_scale: float = 0.0
    """Full scale of the counters, in units of `array.saturation_av`, likewise."""

    @property
    def error(self) -> float:
        """Mean over all heads of the squared relative error of the attention output; NaN where it was not searched."""
        of_heads = [error for layer in self.layers for error in layer.error]
        return sum(of_heads) / len(of_heads) if of_heads else float("nan")

    def __str__(self) -> str:
        how = (
            f"mean relative error of the attention output {self.error**0.5:.1%}"
            if self.method == "output_error"
            else f"percentile {self.percentile:g}, {self.range_share:.0%} of the storage range"
        )
        return (
            f"{len(self.layers)} layers calibrated ({how}); score ADC to ±{self.score_full_scale:.3g} of"
            f" array.saturation_qk, counters to ±{self.readout_full_scale:.3g} of array.saturation_av"
        )
