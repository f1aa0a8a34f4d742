"""Confidence intervals by bootstrap over chips and text, the same chips and stretches drawn for every machine: what is
compared was measured on the same, so its difference is known better than either.

Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993): percentile intervals, section 13.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aimc.evaluate.study.draws import Measured

Samples = NDArray[np.float64]


@dataclass(slots=True)
class Interval:
    """A number and where it may lie."""

    value: float
    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        """Whether both may be the same."""
        return self.low <= other.high and other.low <= self.high


@dataclass(slots=True)
class Bootstrap:
    """Draws with replacement, one set for all.

    Chips and stretches of text are drawn apart from each other, because every chip reads every stretch. Of n chips
    n − 1 are drawn at a time, which makes the spread of a mean of few chips as wide as it is; of the text likewise.

    Args:
        n_chips: of machines that are random.
        n_stretches: of the text.
        resamples: sets that are drawn.
        confidence: share of them inside an interval.
        seed: of the drawing.
    """

    n_chips: int
    n_stretches: int
    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def weights(self) -> tuple[NDArray[np.int64], Samples]:
        """Chips `[R, n]`, and how often each stretch is drawn, `[R, K]`."""
        generator = np.random.default_rng(self.seed)
        chips = generator.integers(self.n_chips, size=(self.resamples, max(1, self.n_chips - 1)))
        k = self.n_stretches
        text = generator.multinomial(max(1, k - 1), np.full(k, 1 / k), size=self.resamples)
        return chips, text.astype(np.float64)

    def perplexities(self, point: Measured) -> Samples:
        """Perplexity, mean over the chips of each set, `[R]`."""
        return self._of_chips(np.exp(self._means(point.loss, point)))

    def divergences(self, point: Measured) -> Samples:
        """Divergence in nat a token, `[R]`."""
        assert point.kl is not None  # asked for by whoever calls
        return self._of_chips(self._means(point.kl, point))

    def perplexity(self, point: Measured) -> Interval:
        """Of one machine."""
        return self.interval(point.perplexity, self.perplexities(point))

    def divergence(self, point: Measured) -> Interval:
        """Of one machine from the reference."""
        return self.interval(point.divergence, self.divergences(point))

    def rise(self, point: Measured, base: Measured) -> Interval:
        """Perplexity ÷ that of another machine, less 1."""
        samples = self.perplexities(point) / self.perplexities(base) - 1
        return self.interval(point.perplexity / base.perplexity - 1, samples)

    def interval(self, value: float, samples: Samples) -> Interval:
        """What holds `confidence` of the samples; samples that are no number (a machine that broke) count as high."""
        tail = 50 * (1 - self.confidence)
        known = np.where(np.isnan(samples), np.inf, samples)
        low, high = np.percentile(known, [tail, 100 - tail], method="nearest")
        return Interval(float(value), float(low), float(high))

    def _means(self, sums: Samples, point: Measured) -> Samples:
        """Mean over the tokens of each set's text, one a chip, `[chips, R]`."""
        _, text = self.weights()
        return sums @ text.T / (point.count @ text.T)

    def _of_chips(self, values: Samples) -> Samples:
        """Mean over each set's chips of values `[chips, R]`; a machine that is not random has one, which is every
        chip's."""
        if len(values) == 1:
            return values[0]
        chips, _ = self.weights()
        # a point may have fewer chips than the study: those it has are the first ones
        inside = chips % len(values)
        return np.take_along_axis(values.T, inside, axis=1).mean(1)


def bootstrap_over(n_chips: int, points: Sequence[Measured | None], **settings: float) -> Bootstrap:
    """One that fits some points, all of the same text.

    Raises:
        ValueError: none was measured.
    """
    for point in points:
        if point is not None:
            return Bootstrap(n_chips=n_chips, n_stretches=len(point.count), **settings)  # type: ignore[arg-type]
    raise ValueError("nothing was measured, so there is nothing to draw from; see the failures")
