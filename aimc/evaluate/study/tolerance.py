"""How large each non-ideality may be: the size at which perplexity rises by so much, by bisection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from aimc.evaluate.study.draws import Measured
from aimc.evaluate.study.effects import Effect, written
from aimc.evaluate.study.intervals import Bootstrap, Interval, Samples
from aimc.evaluate.study.points import Point
from aimc.evaluate.study.runner import Runner
from aimc.hardware import Hardware, Noise

STEP = 2.0
"""Ratio of neighbouring sizes of a search: between them the rise follows a power of the size."""
MILDEST = 1000.0
"""Factor below the stated size at which a search gives up."""
MOST_LEVELS = 256
MOST_ROUNDS = 20
"""Rounds of a search, each of one size a target at most; none was seen to need half of them."""
SMALL_RISE = 1e-3
"""Below that the rise says nothing of the power that it follows."""
LARGEST_STEP = 8.0
"""Most that a size is multiplied or divided by at once."""


@dataclass(slots=True)
class Size:
    """Of one effect, for one rise."""

    rise: float
    """Of perplexity, such as 0.05."""
    size: Interval | None
    """The size at which it is reached; an end that is 0 or infinite is outside the range that was searched. None: it is
    not reached within that range."""
    words: str


@dataclass(slots=True)
class Curve:
    """What was measured of one effect."""

    name: str
    label: str
    unit: str
    grows: bool
    """Whether a larger size is worse."""
    own: float | None
    """Its size on the machine of the study; None: off."""
    tolerances: list[Size]
    sizes: list[float]
    """All that were measured, from mild to bad."""
    rises: list[Interval]
    """Of perplexity at these, relative to the model on its own machine without noise."""


@dataclass(slots=True)
class Search:
    """The bisection of one effect, for several rises at once, on a ladder of sizes from mild to bad: searches for
    different rises, of this study and of later ones, then meet on the same rungs, which are measured once."""

    effect: Effect
    machine: Hardware
    """Without noise."""
    own: float | None
    targets: Sequence[float]
    base: Measured
    first: list[int] = field(default_factory=list)
    """Rungs to begin with; none: the one that is nearest to the size at hand."""
    found: dict[int, Measured] = field(default_factory=dict)
    """Measured points by rung."""
    failed: set[int] = field(default_factory=set)
    rungs: list[float] = field(init=False)
    """Sizes, from mild to bad."""

    def __post_init__(self) -> None:
        self.rungs = _ladder(self.effect, self.machine, self.own or self.effect.start)

    def point(self, rung: int) -> Point:
        """The machine with the effect that bad, and no noise besides."""
        size = self.rungs[rung]
        words = written(self.effect, size)
        return Point(hardware=self.effect.at(self.machine, size), label=f"{self.effect.label} {words}")

    def rise(self, rung: int) -> float:
        """Of perplexity; a machine that broke is as bad as can be."""
        value = self.found[rung].perplexity / self.base.perplexity - 1 if rung in self.found else math.inf
        return value if math.isfinite(value) else math.inf

    def wanted(self) -> list[int]:
        """The next rungs to measure; none: the search is over."""
        if not self.found and not self.failed:
            return self.first or [self._nearest(self.own or self.effect.start)]
        asked: list[int] = []
        for target in self.targets:
            rung = self._next(target)
            if rung is not None and rung not in asked:
                asked.append(rung)
        return asked

    def narrow(self) -> None:
        """Begin anew with the rungs about each target."""
        about = {rung for target in self.targets for rung in self._around(target) if rung in self.found}
        self.first = sorted(about) or self.first
        self.found, self.failed = {}, set()

    def _nearest(self, size: float) -> int:
        return min(range(len(self.rungs)), key=lambda rung: abs(math.log(self.rungs[rung] / size)))

    def _next(self, target: float) -> int | None:
        """Half-way between the worst rung that is below the target and the next one that is not; or, where the target
        is beyond all that was measured, where a rise that follows the square of the size meets it."""
        below, above = self._around(target)
        if below is not None and above is not None:
            if above - below == 1:
                return None
            middle = self._nearest(math.sqrt(self.rungs[below] * self.rungs[above]))
            return min(max(middle, below + 1), above - 1)
        at = below if below is not None else above
        assert at is not None  # there is a point
        rise = self.rise(at)
        ratio = math.sqrt(target / rise) if SMALL_RISE < rise < math.inf else math.inf
        ratio = min(max(ratio, 1 / ratio), LARGEST_STEP)
        grows = self.effect.grows == (below is not None)
        guess = self._nearest(self.rungs[at] * (ratio if grows else 1 / ratio))
        if below is not None:
            return None if at == len(self.rungs) - 1 else max(guess, at + 1)
        return None if at == 0 else min(guess, at - 1)

    def _around(self, target: float) -> tuple[int | None, int | None]:
        """The rung up to which all that was measured is below the target, and the next one that was measured."""
        below = None
        for rung in sorted([*self.found, *self.failed]):
            if self.rise(rung) >= target:
                return below, rung
            below = rung
        return below, None


def _ladder(effect: Effect, machine: Hardware, start: float) -> list[float]:
    """Sizes by factors of two about the start, from where nothing was seen to matter; of levels every number."""
    if effect.is_whole:
        many = max(MOST_LEVELS, int(start))
        return [float(n) for n in dict.fromkeys(effect.whole(machine, n) for n in range(many, 1, -1))]
    step = STEP if effect.grows else 1 / STEP
    down = math.ceil(math.log(MILDEST) / math.log(STEP))
    up = math.floor(math.log(max(1.0, effect.worst / start if effect.grows else start / effect.worst)) / math.log(STEP))
    return [start * step**k for k in range(-down, up + 1)]


def tolerances(
    runner: Runner,
    machine: Hardware,
    effects: Sequence[Effect],
    rises: Sequence[float] = (0.01, 0.05, 0.2),
    *,
    few_chips: int = 2,
    **bootstrap: Any,
) -> list[Curve]:
    """The size of each effect at which perplexity rises by so much over that of the model on its own machine, without
    noise and with nothing else changed.

    Searches of all effects go on side by side. Between two points a rise is interpolated along a power of the size,
    also in each resample, which is where the intervals come from.

    Args:
        machine: with every effect at its stated size: where the searches start.
        effects: to be searched.
        rises: of perplexity, above 0.
        few_chips: on which searches find where to look; the sizes there are measured on all.
        bootstrap: as for :func:`aimc.evaluate.study.sensitivity.sensitivity`.

    Raises:
        ValueError: the model on its own machine could not be measured.
    """
    own = runner.bench.own
    clean = Point(hardware=_silent(own), label="own machine, no noise")
    (base,) = runner.run([clean])
    if base is None:
        raise ValueError(f"what all is compared with failed: {runner.failures[-1].reason}")
    searches = [Search(effect, clean.hardware, effect.size(machine), sorted(rises), base) for effect in effects]
    _search(runner, searches, few_chips)
    for search in searches:
        search.narrow()
    _search(runner, searches, None)
    draws = Bootstrap(n_chips=len(runner.bench.chips), n_stretches=len(base.count), **bootstrap)
    return [_curve(search, draws) for search in searches]


def _search(runner: Runner, searches: Sequence[Search], chips: int | None) -> None:
    """All searches side by side, so that all processes have work."""
    for _ in range(MOST_ROUNDS):
        asked = [(search, rung) for search in searches for rung in search.wanted()]
        if not asked:
            return
        found = runner.run([search.point(rung) for search, rung in asked], chips)
        for (search, rung), point in zip(asked, found, strict=True):
            if point is None:
                search.failed.add(rung)
            else:
                search.found[rung] = point


def most_draws(effects: Sequence[Effect], rises: Sequence[float], n_chips: int, few_chips: int = 2) -> int:
    """Draws of the searches, by experience: on few chips a size a rise and four to get there, on the others one about
    each rise and two more; what is not random on a single chip."""
    few = min(few_chips, n_chips)
    noisy = (4 + len(rises)) * few + (2 + len(rises)) * (n_chips - few)
    return 1 + sum(noisy if effect.kind == "noise" else 5 + 2 * len(rises) for effect in effects)


def _silent(machine: Hardware) -> Hardware:
    return replace(machine, noise=Noise())


def _curve(search: Search, draws: Bootstrap) -> Curve:
    rungs = sorted(search.found)
    values = np.array([search.rise(rung) for rung in rungs])
    base = draws.perplexities(search.base)
    samples = np.array([draws.perplexities(search.found[rung]) / base - 1 for rung in rungs])  # [points, R]
    effect, sizes = search.effect, [search.rungs[rung] for rung in rungs]
    return Curve(
        name=effect.name,
        label=effect.label,
        unit=effect.unit,
        grows=effect.grows,
        own=search.own,
        tolerances=[_tolerance(search, target, sizes, values, samples, draws) for target in search.targets],
        sizes=sizes,
        rises=[draws.interval(value, row) for value, row in zip(values, samples, strict=True)],
    )


def _tolerance(
    search: Search, target: float, sizes: Sequence[float], values: Samples, samples: Samples, draws: Bootstrap
) -> Size:
    if not sizes:
        return Size(target, None, "not measured")
    effect = search.effect
    sign = 1.0 if effect.grows else -1.0
    badness = [sign * math.log(size) for size in sizes]
    x = crossing(badness, values, target)
    if not math.isfinite(x):
        words = f"{'beyond' if x > 0 else 'within'} {written(effect, sizes[-1 if x > 0 else 0])}"
        return Size(target, None, words)
    # At the ends of the range a resample may cross nowhere: its size is then 0 or infinite.
    inside = draws.interval(x, np.array([crossing(badness, column, target) for column in samples.T]))
    with np.errstate(over="ignore"):
        size, *ends = (float(np.exp(sign * end)) for end in (inside.value, inside.low, inside.high))
    size, *ends = (_allowed(search, end) for end in (size, *ends))
    return Size(target, Interval(size, min(ends), max(ends)), written(effect, size))


def _allowed(search: Search, size: float) -> float:
    """Of levels the fewest that are enough; 0 and infinity, which say "beyond", stay."""
    if not search.effect.is_whole or not 0 < size < math.inf:
        return size
    return min((number for number in search.rungs if number >= size - 1e-9), default=math.inf)


def crossing(xs: Sequence[float], rises: Samples, target: float) -> float:
    """Badness, the logarithm of a size, at which rises that were measured at `xs` first meet the target; −∞ or ∞ where
    they are all above, or all below even one step beyond the last.

    Between two points a rise follows a power of the size; from one that is nothing (or is below it by noise) the
    square.
    """
    for i, rise in enumerate(rises):
        if rise < target:  # not true of a rise that is no number
            continue
        if i == 0:
            return -math.inf
        return _between(xs[i - 1], xs[i], float(rises[i - 1]), float(rise), target)
    if len(xs) > 1 and SMALL_RISE < rises[-2] < rises[-1]:
        power = math.log(rises[-1] / rises[-2]) / (xs[-1] - xs[-2])
        beyond = math.log(target / rises[-1]) / power
        if beyond <= math.log(STEP):
            return xs[-1] + float(beyond)
    return math.inf


def _between(x: float, to: float, rise: float, worse: float, target: float) -> float:
    if not math.isfinite(worse):  # or no number: the machine broke
        return (x + to) / 2
    if rise > SMALL_RISE / 10:
        return x + (to - x) * math.log(target / rise) / math.log(worse / rise)
    share = (target - rise) / (worse - rise)
    low, high = math.exp(2 * x), math.exp(2 * to)
    return 0.5 * math.log(low + share * (high - low))
