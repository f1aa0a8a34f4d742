"""Charts as data, and as figures of the project's style; a page draws the same ones so that values can be read off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from aimc.plot.style import BLACK, BLUE, GREEN, ORANGE, RED, SKY, new_axes

COLOURS = (
    *(BLUE, ORANGE, GREEN, RED, SKY, "#CC79A7", "#8C6D31", "#7B4FA3", "#666666", "#1B7F79", "#B8860B", "#E377C2"),
    "#17202A",
)
"""Of the series of a chart, in order; of more than these the first ones again."""
KINDS = ("bars", "curves", "strip", "heat")
MOST_INSIDE = 6
"""Series whose names have room inside the axes; more stand beside them."""


@dataclass(slots=True, kw_only=True)
class Series:
    """Points that belong together."""

    name: str
    x: list[Any]
    """Numbers, or names of bars."""
    y: list[float]
    low: list[float] | None = None
    """Lower ends of the intervals of `y`."""
    high: list[float] | None = None
    words: list[str] | None = None
    """What a point says when it is pointed at."""
    line: bool = True
    """Of `curves`: points joined by a line."""
    large: bool = False
    """Of `curves`: points that stand out."""


@dataclass(slots=True, kw_only=True)
class Chart:
    """One figure.

    `bars`: horizontal, x names, y lengths. `curves`: y against x. `strip`: every y as a dot beside the name x. `heat`:
    `z[row][column]` over names of columns and rows.
    """

    name: str
    """Of its files."""
    kind: str
    title: str
    x_label: str
    y_label: str
    series: list[Series] = field(default_factory=list)
    log_x: bool = False
    log_y: bool = False
    marks: list[tuple[float, str]] = field(default_factory=list)
    """Lines across at a y, with their words."""
    columns: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    z: list[list[float]] = field(default_factory=list)
    z_label: str = ""
    """What the numbers of `z` are, with their unit."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: no such chart; use one of {', '.join(KINDS)}")


def figure_of(chart: Chart) -> Figure:
    """A chart as a figure."""
    figure, axes = new_axes(chart.title, chart.x_label, chart.y_label)
    {"bars": _bars, "curves": _curves, "strip": _strip, "heat": _heat}[chart.kind](axes, chart)
    if chart.kind in ("bars", "strip"):
        figure.set_size_inches(7.0, 1.4 + 0.42 * len(_names(chart)))
    if len(chart.series) > 1 and chart.kind != "strip":
        beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        axes.legend(frameon=False, fontsize="small", **(beside if len(chart.series) > MOST_INSIDE else {}))
    return figure


def _names(chart: Chart) -> list[str]:
    return list(dict.fromkeys(name for series in chart.series for name in series.x))


def ends(series: Series) -> tuple[list[float], list[float]] | None:
    """Lengths of the error bars below and above each point; none where an interval is open."""
    if series.low is None or series.high is None:
        return None
    below = [max(0.0, y - low) if math.isfinite(low) else 0.0 for y, low in zip(series.y, series.low, strict=True)]
    above = [max(0.0, high - y) if math.isfinite(high) else 0.0 for y, high in zip(series.y, series.high, strict=True)]
    return below, above


def _bars(axes: Axes, chart: Chart) -> None:
    names = _names(chart)
    width = 0.8 / len(chart.series)
    for i, (series, colour) in enumerate(zip(chart.series, cycle(COLOURS), strict=False)):
        at = [names.index(name) + (i - (len(chart.series) - 1) / 2) * width for name in series.x]
        axes.barh(at, series.y, width, color=colour, label=series.name, xerr=ends(series), ecolor=BLACK, capsize=2)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.grid(False, axis="y")
    if chart.log_x:
        axes.set_xscale("log")
        _plain(axes.xaxis)


def _curves(axes: Axes, chart: Chart) -> None:
    for series, colour in zip(chart.series, cycle(COLOURS), strict=False):
        style = "-" if series.line else "none"
        size = 9 if series.large else 4
        marker = "*" if series.large else "o"
        bars = ends(series)
        look: dict[str, Any] = {"color": colour, "linestyle": style, "marker": marker, "markersize": size}
        axes.errorbar(series.x, series.y, yerr=bars, label=series.name, capsize=2, elinewidth=0.7, **look)
    for at, words in chart.marks:
        axes.axhline(at, color=BLACK, linewidth=0.8, linestyle=":")
        axes.annotate(words, (1.0, at), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize="small")
    if chart.log_x:
        axes.set_xscale("log")
        _plain(axes.xaxis)
    if chart.log_y:
        axes.set_yscale("log")
        _plain(axes.yaxis)


def _plain(axis: Axis) -> None:
    """Numbers as they are written, at 1, 2 and 5 of each decade; at more of less than one."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high > 10 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _strip(axes: Axes, chart: Chart) -> None:
    names = _names(chart)
    for series in chart.series:
        axes.plot(series.y, [names.index(name) for name in series.x], "o", color=BLUE, alpha=0.6, markersize=5)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()


def _heat(axes: Axes, chart: Chart) -> None:
    image = axes.imshow(chart.z, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(chart.columns)), chart.columns)
    axes.set_yticks(range(len(chart.rows)), chart.rows)
    axes.grid(False)
    low, high = image.get_clim()
    for row, values in enumerate(chart.z):
        for column, value in enumerate(values):
            if math.isfinite(value):
                ink = "white" if value < (low + high) / 2 else BLACK
                axes.text(column, row, short(value), ha="center", va="center", color=ink, fontsize="small")
    axes.figure.colorbar(image, ax=axes, label=chart.z_label)


def short(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


def table_of(chart: Chart) -> tuple[list[str], list[Sequence[Any]]]:
    """Header and rows of a chart's numbers."""
    if chart.kind == "heat":
        return ["", *chart.columns], [[row, *values] for row, values in zip(chart.rows, chart.z, strict=True)]
    rows: list[Sequence[Any]] = []
    for series in chart.series:
        none: list[Any] = [None] * len(series.y)
        ends_of = zip(series.x, series.y, series.low or none, series.high or none, strict=True)
        rows += [[series.name, *values] for values in ends_of]
    return ["series", chart.x_label or "x", chart.y_label or "y", "low", "high"], rows
