"""What matching of the attention outputs came to."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, kw_only=True)
class LayerOutput:
    """How close one layer's attention is to the reference's, on the reference's inputs."""

    layer: int
    """Its number in the model, in which skipped layers count."""
    error_before: float
    """Squared error of the block's output, behind its output projection, over the power of the reference's."""
    error_after: float
    explained_before: list[float] = field(default_factory=list)
    """Per head, of what it adds to the output through its part of the output projection: one minus squared error over
    the power about the mean of each feature; below zero where the mean itself would be closer. Behind the projection,
    because a gain or a rotation of a head that the trained projection undoes is no error."""
    explained_after: list[float] = field(default_factory=list)


class Errors:
    """Means over the layers of a report."""

    __slots__ = ()
    layers: Any

    @property
    def error_before(self) -> float:
        """Mean over the layers of the relative squared error of the attention output, before."""
        return statistics.fmean(layer.error_before for layer in self.layers)

    @property
    def error_after(self) -> float:
        """The same afterwards."""
        return statistics.fmean(layer.error_after for layer in self.layers)


@dataclass(slots=True, kw_only=True)
class OutputMatching(Errors):
    """How the matching went."""

    layers: list[LayerOutput] = field(default_factory=list)
    history: list[float] = field(default_factory=list)
    """Mean over the layers of the relative squared error, of each step's batch, before the step."""
    own_stream_from: int | None = None
    """Step from which the model read its own hidden states; None: it never did."""
    stopped_early: bool = False
    """Whether it ended before all steps were made, because the error no longer fell."""
    n_tokens: int = 0
    """Tokens trained on, those read again counted again."""
    seconds: float = 0.0
    """Of training and measuring."""

    @property
    def steps(self) -> int:
        """Steps made."""
        return len(self.history)

    def __str__(self) -> str:
        own = "" if self.own_stream_from is None else f", from step {self.own_stream_from + 1} on its own hidden states"
        head = (
            f"{len(self.layers)} layers matched in {self.steps} steps, {self.n_tokens} tokens and {self.seconds:.0f} s"
            f"{own}{' (stopped early)' if self.stopped_early else ''}: mean relative error {self.error_before:.3f} →"
            f" {self.error_after:.3f}"
        )
        rows = [
            f"{of.layer:>5}  {of.error_before:>7.3f} → {of.error_after:<7.3f}"
            f"  {_shown(of.explained_before):>17} → {_shown(of.explained_after)}"
            for of in self.layers
        ]
        return "\n".join([head, "layer  relative error     explained variance of the heads: mean (worst)", *rows])


def _shown(of_heads: list[float]) -> str:
    return f"{statistics.fmean(of_heads):.3f} ({min(of_heads):.3f})"
