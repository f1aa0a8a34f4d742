"""The points that a stage's training resumes from: `checkpoint-<step>`, each whole, with a manifest of its files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from aimc.models.manifest import MANIFEST, damage_of

from .files import finish, put_in_place, remove

PREFIX = "checkpoint-"
PARTIAL = ".partial"
"""Folder inside a stage's, in which a point is written; it is renamed into the stage's when it is whole."""


def last_intact(folder: Path, say: Callable[[Any], None], until: int | None = None) -> Path | None:
    """The newest point whose every file is as it was saved; None: there is none.

    Args:
        folder: what a stage resumes from.
        say: gets a line for each newer point that is damaged.
        until: the last step that counts; None: all do.
    """
    for point in reversed([x for x in _points(folder) if until is None or step_of(x) <= until]):
        damage = damage_of(point)
        if damage is None:
            return point
        say(f"  {point} is damaged ({damage}) and is not resumed from; trying the point before it")
    return None


def step_of(point: Path) -> int:
    """Steps that were done."""
    return int(point.name.removeprefix(PREFIX))


def keep(folder: Path, step: int, n_kept: int, losses: Mapping[int, float]) -> None:
    """Put the point that was written for `step` in place for good, then drop all but the last few up to it, and the
    best. Later ones were damaged, or training would have gone on from there.

    Args:
        folder: what a stage resumes from.
        step: that was done last.
        n_kept: the newest so many.
        losses: of validation, by step; the one with the lowest of these is kept too. Empty: none is for that.
    """
    written, place = folder / PARTIAL / f"{PREFIX}{step}", folder / f"{PREFIX}{step}"
    finish(written)
    remove(place)
    put_in_place(written, place)
    remove(folder / PARTIAL)
    points = _points(folder)
    known = [point for point in points if step_of(point) <= step]
    kept = [*known[-n_kept:], *filter(None, [best_of(known, losses)])]
    for point in points:
        if point not in kept:
            remove(point)


def best_of(points: Iterable[Path], losses: Mapping[int, float]) -> Path | None:
    """The point whose step has the lowest loss, the first of several; None: no step of theirs has one."""
    measured = [point for point in points if step_of(point) in losses]
    return min(measured, key=lambda point: losses[step_of(point)], default=None)


def best_intact(folder: Path, losses: Mapping[int, float]) -> Path | None:
    """As :func:`best_of`, of the points whose every file is as it was saved."""
    return best_of((point for point in _points(folder) if damage_of(point) is None), losses)


def _points(folder: Path) -> list[Path]:
    """By step. One without a manifest was not written to its end."""
    found = [path.parent for path in folder.glob(f"{PREFIX}*/{MANIFEST}")]
    return sorted((path for path in found if path.name.removeprefix(PREFIX).isdecimal()), key=step_of)
