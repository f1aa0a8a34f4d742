"""The points that a stage's training resumes from: `checkpoint-<step>`, each whole, with a manifest of its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from aimc.models.manifest import MANIFEST, damage_of

from .files import finish, put_in_place, remove

PREFIX = "checkpoint-"
PARTIAL = ".partial"
"""Folder inside a stage's, in which a point is written; it is renamed into the stage's when it is whole."""


def last_intact(folder: Path, say: Callable[[Any], None]) -> Path | None:
    """The newest point whose every file is as it was saved; None: there is none.

    Args:
        folder: what a stage resumes from.
        say: gets a line for each newer point that is damaged.
    """
    for point in reversed(_points(folder)):
        damage = damage_of(point)
        if damage is None:
            return point
        say(f"  {point} is damaged ({damage}) and is not resumed from; trying the point before it")
    return None


def step_of(point: Path) -> int:
    """Steps that were done."""
    return int(point.name.removeprefix(PREFIX))


def keep(folder: Path, step: int, n_kept: int) -> None:
    """Put the point that was written for `step` in place for good, then drop all but the last few up to it. Later ones
    were damaged, or training would have gone on from there."""
    written, place = folder / PARTIAL / f"{PREFIX}{step}", folder / f"{PREFIX}{step}"
    finish(written)
    remove(place)
    put_in_place(written, place)
    remove(folder / PARTIAL)
    points = _points(folder)
    kept = [point for point in points if step_of(point) <= step][-n_kept:]
    for point in points:
        if point not in kept:
            remove(point)


def _points(folder: Path) -> list[Path]:
    """By step. One without a manifest was not written to its end."""
    found = [path.parent for path in folder.glob(f"{PREFIX}*/{MANIFEST}")]
    return sorted((path for path in found if path.name.removeprefix(PREFIX).isdecimal()), key=step_of)
