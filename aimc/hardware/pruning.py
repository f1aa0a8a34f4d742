"""Which tokens the analog scores select for exact attention in digital."""

from __future__ import annotations

from dataclasses import dataclass

from aimc.hardware.checks import check_fields, require, require_choice

SELECTIONS = ("share", "threshold")
RECOMPUTED = ("scores", "values")


@dataclass(slots=True, kw_only=True)
class Pruning:
    """How the activation `pruned_softmax` selects: the first array only says which tokens matter, and a digital copy of
    their keys and values gives exact attention over those.

    Sources: hybrid analog-digital pruning with a threshold (arXiv 2409.04940); SPRINT (arXiv 2209.00606).
    """

    select: str = "share"
    """`share`: a ramp ADC counts down from the full scale and stops at the step at which enough columns have fired.
    `threshold`: one comparator a column, at a voltage of its head."""
    kept_share: float = 0.25
    """Share of the tokens that a query sees in the arrays that are kept, in (0, 1], rounded up to whole tokens; tokens
    that share the last step of the ramp are all kept. With `threshold` it is what calibration aims at."""
    threshold: float = 0.0
    """Comparator level in full scales of the score, of heads that were not calibrated; used by `threshold` only."""
    hysteresis: float = 0.0
    """By how many full scales lower a comparator lets go of a token than it takes it; 0: none. `threshold` only."""
    recompute: str = "scores"
    """What is digital: `scores`: the scores of kept tokens and their values, exactly. `values`: the values alone, and
    the softmax is over what the score ADC has read."""

    @property
    def remembers(self) -> bool:
        """Whether a comparator's answer depends on those before."""
        return self.select == "threshold" and self.hysteresis > 0

    def __post_init__(self) -> None:
        check_fields(self, "pruning")
        require_choice("pruning.select", self.select, SELECTIONS)
        require_choice("pruning.recompute", self.recompute, RECOMPUTED)
        require(
            0 < self.kept_share <= 1,
            "pruning.kept_share",
            self.kept_share,
            "a share of the tokens is above 0 and at most 1",
            "a quarter is usual",
        )
        require(
            self.hysteresis >= 0,
            "pruning.hysteresis",
            self.hysteresis,
            "a comparator lets go below the level at which it takes",
            "give 0 for none",
        )
