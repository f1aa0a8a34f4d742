"""Grids over any field of a machine, each point over the same chips: Monte-Carlo, one loop less to write."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aimc.evaluate.study.bench import Bench
from aimc.evaluate.study.effects import ideal
from aimc.evaluate.study.intervals import Bootstrap, Interval
from aimc.evaluate.study.points import Point, Setup
from aimc.evaluate.study.runner import Failure, Runner
from aimc.hardware import ConfigError

Axes = Mapping[str, Sequence[Any]]
"""Values by path."""


@dataclass(slots=True)
class Cell:
    """One point of a grid."""

    values: dict[str, Any]
    """By path."""
    perplexity: Interval
    rise: Interval
    """Over the machine that the grid starts from."""
    per_chip: list[float]
    """Perplexity, one a chip."""


@dataclass(slots=True)
class Grid:
    """All points, in the order of the axes."""

    axes: dict[str, list[Any]]
    base: Interval
    """Perplexity of the machine that the grid starts from."""
    cells: list[Cell] = field(default_factory=list)
    refused: list[Failure] = field(default_factory=list)
    """Points that no hardware can have, and why."""


def size_of(axes: Axes) -> int:
    """Points of a grid."""
    return math.prod(len(values) for values in axes.values())


def require_axes(start: Setup, axes: Axes) -> None:
    """Check that every axis is a field with values, before anything is measured.

    Raises:
        ConfigError: it is not.
    """
    known = start.changed({})
    for path, values in axes.items():
        if not isinstance(values, (list, tuple)) or not values:
            raise ConfigError(f"grid.{path}={values!r}: an axis is a list of values; write {path}:[1,2,3]")
        try:
            known.changed({path: values[0]})
        except ConfigError as error:
            if "no field" in str(error) or "no such field" in str(error):
                raise ConfigError(f"grid.{error}") from error


def points_of(
    bench: Bench, start: Setup, axes: Axes, *, trained: bool = False
) -> tuple[list[Point], list[dict[str, Any]], list[Failure]]:
    """Points that can be, their values, and those that cannot."""
    points, kept, refused = [], [], []
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        label = ", ".join(f"{path}={value}" for path, value in values.items())
        try:
            points.append(point_of(bench, start.changed(values), label, trained=trained))
        except (ValueError, TypeError) as error:
            refused.append(Failure(label, " ".join(str(error).split())))
            continue
        kept.append(values)
    return points, kept, refused


def point_of(bench: Bench, setup: Setup, label: str, *, trained: bool = False) -> Point:
    """The point of a setup.

    Raises:
        ConfigError: layers that the model has not on arrays, or all of them digital.
    """
    analog, digital = None, set(setup.digital_layers)
    if digital:
        heads = bench.heads
        if strange := digital - set(heads):
            raise ConfigError(
                f"digital_layers={sorted(strange)}: the model has no such layers on arrays; there are {sorted(heads)}"
            )
        analog = {layer: [layer not in digital] * count for layer, count in heads.items()}
    machine = setup.machine
    rest = ideal(machine) if analog is not None else None
    return Point(hardware=machine, label=label, analog=analog, rest=rest, trained=trained)


def grid(runner: Runner, start: Setup, axes: Axes, *, trained: bool = False, **bootstrap: Any) -> Grid:
    """Measure every combination of values on the bench's chips.

    Args:
        start: the machine whose fields change; relative to it, as it is, perplexities rise.
        axes: values by path, see :meth:`aimc.evaluate.study.points.Setup.changed`.
        trained: train each point for the bench's few steps first.
        bootstrap: as for :func:`aimc.evaluate.study.sensitivity.sensitivity`.

    Raises:
        ConfigError: an axis that is no field.
        ValueError: the machine that the grid starts from could not be measured.
    """
    require_axes(start, axes)
    points, values, refused = points_of(runner.bench, start, axes, trained=trained)
    base = point_of(runner.bench, start, "where the grid starts", trained=trained)
    first, *found = runner.run([base, *points])
    if first is None:
        raise ValueError(f"the machine that the grid starts from failed: {runner.failures[-1].reason}")
    draws = Bootstrap(n_chips=len(runner.bench.chips), n_stretches=len(first.count), **bootstrap)
    cells = [
        Cell(at, draws.perplexity(point), draws.rise(point, first), point.per_chip)
        for at, point in zip(values, found, strict=True)
        if point is not None
    ]
    return Grid({path: list(axis) for path, axis in axes.items()}, draws.perplexity(first), cells, refused)
