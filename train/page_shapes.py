"""What a page is made of: tables, sections, and charts of the few shapes that its numbers have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aimc.plot.charts import Chart, Series

Results = dict[str, Any]
RISE = "rise of perplexity, %"


@dataclass(slots=True)
class Table:
    """Words in rows."""

    header: list[str]
    rows: list[list[str]]
    marked: list[int] = field(default_factory=list)
    """Rows that stand out."""
    prose: bool = False
    """Whether its cells are sentences."""


@dataclass(slots=True)
class Section:
    """One heading and what is under it."""

    title: str
    words: str = ""
    items: list[Chart | Table] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    """Lines to be copied."""


def with_intervals(name: str, x: list[Any], intervals: list[Results], scale: float = 100.0, **more: Any) -> Series:
    """Intervals as points; percent unless another scale is given."""
    ends = {end: [scale * interval[end] for interval in intervals] for end in ("value", "low", "high")}
    unit = " %" if scale == 100.0 else ""
    words = more.pop("words", None) or [
        f"{at}: {value:.3g}{unit} ({low:.3g} … {high:.3g})"
        for at, value, low, high in zip(x, ends["value"], ends["low"], ends["high"], strict=True)
    ]
    return Series(name=name, x=x, y=ends["value"], low=ends["low"], high=ends["high"], words=words, **more)


def bars(name: str, title: str, x_label: str, series: Sequence[Series], **look: Any) -> Chart:
    """Lengths by name."""
    return Chart(name=name, kind="bars", title=title, x_label=x_label, y_label="", series=list(series), **look)


def dots(name: str, title: str, x_label: str, values: Mapping[str, list[float]]) -> Chart:
    """Every value as a dot beside its name: one a chip."""
    series = [
        Series(
            name=label,
            x=[label] * len(own),
            y=own,
            words=[f"chip {i}: {value:.2f}" for i, value in enumerate(own)],
        )
        for label, own in values.items()
    ]
    return Chart(name=name, kind="strip", title=title, x_label=x_label, y_label="", series=series)


def rises(
    name: str, title: str, x_label: str, series: Sequence[Series], marks: Sequence[float], of: str = "", **look: Any
) -> Chart:
    """Rise of perplexity against something, with lines across at some rises, which are `of` something."""
    lines = [(100 * rise, f"{of} +{100 * rise:g} %".lstrip()) for rise in marks]
    return Chart(
        name=name, kind="curves", title=title, x_label=x_label, y_label=RISE, series=list(series), marks=lines, **look
    )


def heat(
    name: str,
    title: str,
    rows: tuple[str, Sequence[Any]],
    columns: tuple[str, Sequence[Any]],
    values: Mapping[tuple[str, str], float],
    what: str,
) -> Chart:
    """A number for each pair of two axes, which are a name and values each; where there is none, a hole. `what`: these
    numbers, with their unit."""
    row_names, column_names = ([str(value) for value in axis[1]] for axis in (rows, columns))
    return Chart(
        name=name,
        kind="heat",
        title=title,
        x_label=columns[0],
        y_label=rows[0],
        columns=column_names,
        rows=row_names,
        z=[[values.get((row, column), math.nan) for column in column_names] for row in row_names],
        z_label=what,
    )
