"""The figure of a characterisation: time, memory and energy by length, where the time goes, and the roofline."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter

from aimc.evaluate.characterise.estimates import ARRAYS, DIGITAL, STATES
from aimc.evaluate.characterise.operators import CLASSES
from aimc.evaluate.characterise.point import Phase, Point, series
from aimc.evaluate.characterise.running import Characterisation
from aimc.plot.style import BLACK, BLUE, EMPTY, GREEN, ORANGE, RED, SKY, style_axes

_MODEL_COLOURS = (BLUE, RED, GREEN, ORANGE, "#CC79A7", SKY, BLACK)
_MARKERS = "osD^vPX"
_CLASS_COLOURS = dict(
    zip(CLASSES, (BLUE, GREEN, ORANGE, RED, "#CC79A7", SKY, "#F0E442", "#777777", BLACK, EMPTY), strict=True)
)
_CACHE_LINE = (0, (1, 3))
_LINEAR = 4
"""Span of values below which an axis is linear, from zero."""
_MACHINE_LINES = {DIGITAL: ":", ARRAYS: "--", STATES: "-."}


def characterisation(found: Characterisation, *, title: str = "") -> Figure:
    """Six panels: time to first token and per output token, peak memory, energy per output token, shares of time by
    class of operator at each model's longest length, and the roofline.

    Measured points are joined by full lines; what the cost model says of the same models is dotted (digital), dashed
    (attention on gain cells) or dash-dotted (states too).

    Args:
        found: of :func:`aimc.evaluate.characterise.characterise`.
        title: of the figure: the machine.

    Raises:
        ValueError: nothing was measured.
    """
    if not any(point.first_token_s for point in found.points):
        raise ValueError("none of the points was run, so there is nothing to draw; raise point_s or memory_gb")
    models = list(dict.fromkeys(point.model for point in found.points))
    style = {m: (c, k) for m, c, k in zip(models, cycle(_MODEL_COLOURS), cycle(_MARKERS), strict=False)}
    figure = Figure(figsize=(13.5, 8.6), layout="constrained")
    figure.suptitle(title)
    (first, token, memory), (energy, classes, roofline) = figure.subplots(2, 3)
    _curves(first, found, style, "first_token_s", "Time to first token", "s")
    _curves(token, found, style, "token_s", "Time per output token", "s")
    _curves(memory, found, style, "peak_bytes", "Peak memory, weights included", "B", estimated=False)
    by_counter = any(point.token_j for point in found.points)
    words = "measured and estimated" if by_counter else "estimated"
    _curves(energy, found, style, "token_j", f"Energy per output token ({words})", "J")
    _class_bars(classes, found)
    _roofline(roofline, found, style)
    _legend(figure, found, style)
    return figure


def _curves(
    axes: Axes,
    found: Characterisation,
    style: Mapping[str, tuple[str, str]],
    name: str,
    title: str,
    unit: str,
    *,
    estimated: bool = True,
) -> None:
    """One quantity against length."""
    style_axes(axes, title, "tokens of the prompt", "")
    for model, values in series(found.points, name).items():
        colour, marker = style[model]
        axes.plot(list(values), list(values.values()), marker=marker, color=colour, markersize=4.5)
    for model, values in series(found.points, "cache_bytes").items() if name == "peak_bytes" else ():
        axes.plot(list(values), list(values.values()), color=style[model][0], linestyle=_CACHE_LINE, linewidth=1.3)
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for estimate in found.estimates if estimated else []:
        lines.setdefault((estimate.model, estimate.machine), []).append((estimate.length, getattr(estimate, name)))
    for (model, machine), pairs in lines.items():
        axes.plot(*zip(*pairs, strict=True), linestyle=_MACHINE_LINES[machine], color=style[model][0], linewidth=1.3)
    drawn = [float(y) for line in axes.lines for y in line.get_ydata()]  # type: ignore
    for point in found.points:
        if point.not_run:
            axes.axvline(point.length, color=style[point.model][0], alpha=0.25, linewidth=0.8, zorder=0)
    axes.set_xscale("log", base=2)
    if drawn and max(drawn) > _LINEAR * min(drawn):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(drawn) < 300 * min(drawn) else (1.0,)))
    else:
        axes.set_ylim(0, None)
    lengths = sorted({point.length for point in found.points})
    axes.set_xticks(lengths, [f"{n // 1024}k" if n >= 1024 and n % 1024 == 0 else str(n) for n in lengths])
    axes.yaxis.set_major_formatter(EngFormatter(unit=unit))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _bars(points: list[Point]) -> list[tuple[str, Phase]]:
    """The longest profiled point of each model, prompt and token."""
    longest = {point.model: point for point in points if point.prompt.profiled_s}
    return [
        (f"{point.model}\n{point.length:,}, {call}", phase)
        for point in longest.values()
        for call, phase in (("prompt", point.prompt), ("token", point.token))
        if phase.profiled_s
    ]


def _class_bars(axes: Axes, found: Characterisation) -> None:
    """Stacked shares of time."""
    bars = _bars(found.points)
    where = "device" if any(any(phase.device_s.values()) for _, phase in bars) else "host"
    style_axes(axes, f"Share of {where} time by class of operator", "", "")
    left = np.zeros(len(bars))
    shares = [phase.shares() for _, phase in bars]
    for name in CLASSES:
        widths = np.array([share.get(name, 0.0) for share in shares])
        if widths.any():
            axes.barh(range(len(bars)), widths, 0.7, left=left, color=_CLASS_COLOURS[name], label=name)
            left += widths
    axes.set_yticks(range(len(bars)), [label for label, _ in bars], fontsize="small")
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(False, axis="y")


def _roofline(axes: Axes, found: Characterisation, style: Mapping[str, tuple[str, str]]) -> None:
    """Reached rates under what the machine can do."""
    style_axes(axes, "Under the measured roofline", "operations a byte, operators unfused", "")
    rates: list[float] = []
    for point in found.points:
        colour, marker = style[point.model]
        for phase, seconds, filled in ((point.prompt, point.first_token_s, True), (point.token, point.token_s, False)):
            if phase.flops is None or not phase.intensity or not seconds:
                continue
            rates.append(phase.intensity)
            face = colour if filled else "white"
            axes.plot(phase.intensity, phase.flops / seconds, marker, color=colour, markerfacecolor=face, markersize=5)
    if found.roofline is not None:
        ends = (min([*rates, found.roofline.ridge]) / 3, max([*rates, found.roofline.ridge]) * 4)
        at = np.geomspace(*ends, 200)
        axes.plot(at, [found.roofline.roof(x) for x in at], color=BLACK, linewidth=1.2)
        axes.annotate("filled: prompt\nopen: token", (0.04, 0.86), xycoords="axes fraction", fontsize="small")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(EngFormatter(unit="FLOP/s"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, found: Characterisation, style: Mapping[str, tuple[str, str]]) -> None:
    """Models, machines and classes, below."""
    weights = {point.model: point.weights for point in found.points}
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=colour, marker=marker, label=f"{model} ({weights[model]} weights)")
        for model, (colour, marker) in style.items()
    ]
    machines = {estimate.machine for estimate in found.estimates}
    handles += [
        Line2D([], [], color=BLACK, linestyle=line, label=f"cost model: {machine}")  # type: ignore[arg-type]
        for machine, line in _MACHINE_LINES.items()
        if machine in machines
    ]
    if series(found.points, "cache_bytes"):
        handles.append(Line2D([], [], color=BLACK, linestyle=_CACHE_LINE, label="of the peak: K/V and state"))
    used = {name for _, phase in _bars(found.points) for name in phase.shares()}
    handles += [Patch(color=_CLASS_COLOURS[name], label=name) for name in CLASSES if name in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize="small")
