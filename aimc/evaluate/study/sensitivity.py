"""Which non-ideality costs how much: each alone, and everything but each, at stated sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aimc.evaluate.study.draws import Measured
from aimc.evaluate.study.effects import Effect, without, written
from aimc.evaluate.study.intervals import Bootstrap, Interval
from aimc.evaluate.study.points import Point
from aimc.evaluate.study.runner import Runner
from aimc.hardware import Hardware


@dataclass(slots=True)
class Row:
    """One non-ideality."""

    name: str
    label: str
    size: str
    """In words."""
    alone: Interval | None
    """Rise of perplexity when it alone is on, relative to none; None: it could not be measured."""
    saved: Interval | None
    """Share of the perplexity that goes when it alone is switched off: 1 − without it ÷ with all."""
    per_chip: list[float]
    """Perplexity when it alone is on, one a chip."""


@dataclass(slots=True)
class Sensitivity:
    """A ranking, the costliest first; those that could not be measured are last."""

    none: Interval
    """Perplexity with every effect of the study off."""
    all: Interval
    """Perplexity with all of them on."""
    rise: Interval
    """Of all, relative to none."""
    per_chip: list[float]
    """Perplexity with all on, one a chip."""
    rows: list[Row] = field(default_factory=list)


def points_of(machine: Hardware, effects: Sequence[Effect]) -> dict[str, Point]:
    """What is measured: none, all, each alone, all but each."""
    bare = without(machine, effects)
    points = {"none": Point(hardware=bare, label="no effect"), "all": Point(hardware=machine, label="all effects")}
    for effect in effects:
        alone = effect.taken_from(machine, bare)
        points[f"alone {effect.name}"] = Point(hardware=alone, label=f"{effect.label} alone")
        points[f"but {effect.name}"] = Point(hardware=effect.off(machine), label=f"all but {effect.label}")
    return points


def sensitivity(runner: Runner, machine: Hardware, effects: Sequence[Effect], **bootstrap: Any) -> Sensitivity:
    """Measure and rank.

    An effect alone and an effect left out answer two questions: what it does to an otherwise ideal machine, and what
    mending it would bring. They differ where effects add up more or less than singly.

    Args:
        machine: with every effect at its stated size, noise included.
        effects: to be switched; what else the machine has stays.
        bootstrap: `resamples`, `confidence`, `seed` of :class:`aimc.evaluate.study.intervals.Bootstrap`.

    Raises:
        ValueError: none of it could be measured.
    """
    points = points_of(machine, effects)
    found = dict(zip(points, runner.run(list(points.values())), strict=True))
    none, everything = found["none"], found["all"]
    if none is None or everything is None:
        reasons = "; ".join(failure.reason for failure in runner.failures) or "no reason given"
        raise ValueError(f"the machine with all effects and the one with none are what all is compared with: {reasons}")
    draws = Bootstrap(n_chips=len(runner.bench.chips), n_stretches=len(none.count), **bootstrap)
    rows = [
        _row(effect, machine, found[f"alone {effect.name}"], found[f"but {effect.name}"], none, everything, draws)
        for effect in effects
    ]
    rows.sort(key=lambda row: -max(row.alone.value, 0.0) if row.alone else float("inf"))
    return Sensitivity(
        none=draws.perplexity(none),
        all=draws.perplexity(everything),
        rise=draws.rise(everything, none),
        per_chip=everything.per_chip,
        rows=rows,
    )


def _row(
    effect: Effect,
    machine: Hardware,
    alone: Measured | None,
    but: Measured | None,
    none: Measured,
    everything: Measured,
    draws: Bootstrap,
) -> Row:
    if but is None:
        saved = None
    else:
        rest = draws.rise(but, everything)
        saved = Interval(-rest.value, -rest.high, -rest.low)
    return Row(
        name=effect.name,
        label=effect.label,
        size=written(effect, effect.size(machine)),
        alone=None if alone is None else draws.rise(alone, none),
        saved=saved,
        per_chip=[] if alone is None else alone.per_chip,
    )
