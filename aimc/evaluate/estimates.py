"""Means over the tokens of a text, over chips, with their standard errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True, kw_only=True)
class Estimate:
    """A number measured on a text, and how sure it is."""

    mean: float
    """Mean over the chips."""
    stderr: float | None
    """Standard error of `mean` over the text, see :func:`block_stderr`; None: the text is shorter than two blocks."""
    std: float
    """Over the chips, see :func:`std_over`."""
    per_chip: list[float]
    """One value a chip."""

    def __float__(self) -> float:
        return self.mean

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + ("" if self.stderr is None else f" ± {self.stderr:.4f}")


def std_over(per_chip: Sequence[float]) -> float:
    """Sample standard deviation over chips: 0 for a single one, NaN where a chip gave no finite number."""
    if len(per_chip) < 2:
        return 0.0
    # Statistics would end in an error that names neither the chip nor what it gave.
    return statistics.stdev(per_chip) if all(map(math.isfinite, per_chip)) else math.nan


def block_stderr(values: Tensor, block: int) -> float | None:
    """Standard error of the mean of `values`, `[N]`, neighbours of which go together.

    Tokens of one passage are easy or hard together, so they count as one draw: the text is cut into K equal stretches
    of at least `block` tokens, and of their sums' deviations comes sqrt(K / (K − 1) Σ sum²) / N. With blocks of one
    value that is s / sqrt(N).

    Args:
        values: one a token, in the order of the text.
        block: tokens a stretch; the context of the measurement, so that windows that overlap are not counted as
            independent.

    Returns:
        None where there are fewer than two stretches.
    """
    count = len(values) // block
    if count < 2:
        return None
    centred = values.double() - values.double().mean()
    sums = torch.stack([part.sum() for part in centred.tensor_split(count)])
    return math.sqrt(count / (count - 1) * float(sums.square().sum())) / len(values)


def mean_of(per_chip: Sequence[Tensor], block: int) -> Estimate:
    """Mean over tokens of values `[N]`, one tensor a chip."""
    return _estimate([float(values.mean()) for values in per_chip], per_chip, [1.0] * len(per_chip), block)


def exp_mean_of(per_chip: Sequence[Tensor], block: int) -> Estimate:
    """exp of the mean over tokens, such as a perplexity of losses; its error by the delta method."""
    means = [float(values.mean().double().exp()) for values in per_chip]  # infinite where math's would be an error
    return _estimate(means, per_chip, means, block)


def _estimate(means: list[float], per_chip: Sequence[Tensor], slopes: Sequence[float], block: int) -> Estimate:
    """Chips read the same text: their tokens are averaged before the error over the text is taken."""
    moved = torch.stack([slope * values.double() for slope, values in zip(slopes, per_chip, strict=True)]).mean(0)
    return Estimate(
        mean=statistics.fmean(means),
        stderr=block_stderr(moved, block),
        std=std_over(means),
        per_chip=means,
    )
