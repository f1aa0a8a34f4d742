"""From which length on one model takes less than another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossover:
    """Of two models in one quantity."""

    quantity: str
    winner: str
    """Model that takes less at the longest length that both have."""
    other: str
    from_length: float | None
    """Length from which on it takes less, interpolated on logarithms between measured ones; None: at all of them."""
    until: int
    """Longest length that both have."""

    def __str__(self) -> str:
        at = (
            f"at all lengths to {self.until:,}"
            if self.from_length is None
            else f"from about {self.from_length:,.0f} on"
        )
        return f"{self.winner} takes less than {self.other} {at}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """Who takes least of a quantity at one length."""

    quantity: str
    length: int
    model: str
    value: float
    second: str | None
    """Who takes least of the others; None: there is no other."""
    ratio: float | None
    """What the second takes, in what the first takes."""
    missing: tuple[str, ...]
    """Models that were not measured at this length."""


def winners(quantity: str, curves: Mapping[str, Mapping[int, float]], models: Sequence[str]) -> list[Winner]:
    """The one that takes least at every length that somebody has.

    Args:
        quantity: what is compared, smaller is better.
        curves: model to length to value, above zero.
        models: all that there are, measured or not.
    """
    found = []
    for length in sorted({length for curve in curves.values() for length in curve}):
        first, *others = sorted(
            ((curve[length], model) for model, curve in curves.items() if length in curve), key=lambda pair: pair[0]
        )
        found.append(
            Winner(
                quantity=quantity,
                length=length,
                model=first[1],
                value=first[0],
                second=others[0][1] if others else None,
                ratio=others[0][0] / first[0] if others else None,
                missing=tuple(model for model in models if length not in curves.get(model, {})),
            )
        )
    return found


def crossovers(quantity: str, curves: Mapping[str, Mapping[int, float]]) -> list[Crossover]:
    """Every pair of models that have at least two lengths in common.

    Args:
        quantity: what is compared, smaller is better.
        curves: model to length to value, above zero.
    """
    found = []
    for first, second in combinations(curves, 2):
        lengths = sorted(set(curves[first]) & set(curves[second]))
        if len(lengths) < 2:
            continue
        ratios = {at: math.log(curves[first][at] / curves[second][at]) for at in lengths}
        if ratios[lengths[-1]] == 0:
            continue
        winner, other = (first, second) if ratios[lengths[-1]] < 0 else (second, first)
        found.append(
            Crossover(
                quantity=quantity,
                winner=winner,
                other=other,
                from_length=_last_change(ratios, lengths),
                until=lengths[-1],
            )
        )
    return found


def _last_change(ratios: Mapping[int, float], lengths: list[int]) -> float | None:
    """Where the logarithm of a ratio has its last change of sign."""
    for low, high in zip(lengths[-2::-1], lengths[:0:-1], strict=True):
        if ratios[low] * ratios[high] <= 0:
            share = ratios[low] / (ratios[low] - ratios[high])
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return None
