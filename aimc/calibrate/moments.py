"""Mean and spread per head, exact over batches and processes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from aimc.models.ranks import exact_sum


@dataclass(slots=True)
class Moments:
    """Count, sum and sum of squares of a quantity, per head, in float64: exact over batches, in whatever order they
    come and however many processes have read them."""

    counts: list[float] = field(default_factory=list)
    """A batch each."""
    totals: list[Tensor] = field(default_factory=list)
    """`[H]` each."""
    squares: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor) -> None:
        """Take in `[B, H, T, D]`."""
        x = x.detach().double()
        self.counts.append(x.numel() / x.shape[1])
        self.totals.append(x.sum(dim=(0, 2, 3)).cpu())
        self.squares.append(x.square().sum(dim=(0, 2, 3)).cpu())

    @property
    def count(self) -> float:
        """Values a head."""
        return math.fsum(self.counts)

    @property
    def n_heads(self) -> int:
        """Heads that were seen."""
        return self.totals[0].numel()

    @property
    def mean(self) -> Tensor:
        """`[H]`."""
        return exact_sum(self.totals) / self.count

    @property
    def std(self) -> Tensor:
        """`[H]`, of the population."""
        return (exact_sum(self.squares) / self.count - self.mean.square()).clamp(min=0).sqrt()


LayerMoments = dict[str, Moments]
"""Part (query, key, value, output) to its moments."""


def moments_of(parts: dict[str, Tensor]) -> LayerMoments:
    """Of parts `[B, H, T, D]` that are all there is."""
    moments = {part: Moments() for part in parts}
    for part, x in parts.items():
        moments[part].add(x)
    return moments
