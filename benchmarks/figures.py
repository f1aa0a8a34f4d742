"""Time and memory against T, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from aimc.plot.style import BLACK, BLUE, RED
from benchmarks.case import DIGITAL, EAGER, SUBJECT, Result
from benchmarks.cases import FORWARD, TRAINING

_STYLE = {
    SUBJECT: (RED, "o-", "gain cells"),
    EAGER: (BLUE, "s--", "gain cells, eager"),
    DIGITAL: (BLACK, "^:", "digital softmax attention"),
}
_SIZE_IN = (10.0, 4.4)


def time_figure(results: Sequence[Result], title: str, window: int) -> Figure:
    """Median time against T, forward on the left, forward and backward on the right, at one W."""
    figure = Figure(figsize=_SIZE_IN, layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, case in ((left, FORWARD), (right, TRAINING)):
        points = _of(results, case, window)
        _draw(axes, points, lambda result: result.median_s)
        axes.set_title(case)
        if points:
            axes.legend(frameon=False, loc="upper left")
    left.set_ylabel("median time")
    left.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms")
    )
    return figure


def memory_figure(results: Sequence[Result], title: str, window: int) -> Figure:
    """Peak memory of forward and backward beyond the inputs against T."""
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    _draw(
        axes,
        _of(results, TRAINING, window),
        lambda result: {name: float(value) for name, value in result.peak_bytes.items()},
    )
    axes.set_ylabel("peak memory beyond the inputs")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 2**20:g} MiB"))
    axes.yaxis.set_major_locator(LogLocator(base=4))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(frameon=False)
    return figure


def _of(results: Sequence[Result], case: str, window: int) -> list[Result]:
    return sorted(
        (r for r in results if r.case == case and r.window == window and not r.failed), key=lambda r: r.tokens
    )


def _draw(axes: Axes, points: Sequence[Result], values: Callable[[Result], dict[str, float]]) -> None:
    for name, (colour, style, text) in _STYLE.items():
        line = [(point.tokens, values(point)[name]) for point in points if name in values(point)]
        if line:
            axes.plot(*zip(*line, strict=True), style, color=colour, label=text, markersize=5)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([point.tokens for point in points])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("tokens T")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25)
