"""Figures of a whole chip: the budget of error, and what time does to programmed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from aimc.evaluate import Perplexity
from aimc.plot import BLACK, BLUE, GREEN, ORANGE, RED, SKY, new_axes
from aimc.static.aging import TIMES_S, Retention

LOG_BEYOND = 1.5
"""Perplexities that differ by more than this factor are drawn on a logarithmic axis."""
_COLOURS = (RED, BLUE, GREEN, ORANGE)


def budget_points(budget: Mapping[str, Perplexity], *, reference: str = "digital") -> Figure:
    """Perplexity of each row: mean over chips, standard deviation as error bar, every chip as a dot; the reference as a line.

    Args:
        budget: name to perplexity, see :func:`aimc.static.error_budget`.
        reference: name of the row that the others are compared with.

    Raises:
        KeyError: no row of that name.
    """
    base = budget[reference].mean
    figure, axes = new_axes("Budget of error: which part of the chip costs what", "held-out perplexity", "")
    axes.axvline(base, color=BLACK, linestyle=":", linewidth=1)
    for row, (name, p) in enumerate(budget.items()):
        colour = SKY if name == reference else RED
        axes.plot(p.per_chip, [row] * len(p.per_chip), ".", color=BLACK, alpha=0.5, markersize=4)
        axes.errorbar(p.mean, row, xerr=p.std, fmt="o", color=colour, ecolor=colour, capsize=4, markersize=7)
        change = "" if name == reference else f" ({100 * (p.mean / base - 1):+.1f} %)"
        axes.annotate(f"{p.mean:.1f}{change}", (p.mean, row), (0, 9), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(budget)), list(budget))
    axes.margins(x=0.2)
    axes.set_ylim(len(budget) - 0.6, -0.6)
    axes.grid(False, axis="y")
    return figure


def retention_curve(curves: Mapping[str, Sequence[Retention]], *, digital: float | None = None) -> Figure:
    """Perplexity against time since programming, on a logarithmic clock; solid with global drift compensation, dashed without.

    Args:
        curves: name of a model to its measurements, see :func:`aimc.static.retention`; error bars are standard deviations.
        digital: perplexity of the digital model, drawn as a line.
    """
    figure, axes = new_axes("Static tiles drift: perplexity after programming", "time since programming", "held-out perplexity")
    for (name, curve), colour in zip(curves.items(), _COLOURS * len(curves), strict=False):
        for compensated, style in ((True, "o-"), (False, "s--")):
            points = sorted((r for r in curve if r.compensated is compensated), key=lambda r: r.since_programming_s)
            if points:
                axes.errorbar(
                    [r.since_programming_s for r in points],
                    [r.perplexity.mean for r in points],
                    yerr=[r.perplexity.std for r in points],
                    fmt=style,
                    color=colour,
                    markersize=4,
                    capsize=3,
                    label=f"{name}, {'drift compensated' if compensated else 'not compensated'}",
                )
    if digital is not None:
        axes.axhline(digital, color=BLACK, linestyle=":", label=f"digital: {digital:.1f}")
    axes.set_xscale("log")
    axes.set_xticks(list(TIMES_S.values()), list(TIMES_S))
    axes.xaxis.set_minor_locator(NullLocator())
    values = [r.perplexity.mean for curve in curves.values() for r in curve]
    if max(values) > LOG_BEYOND * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(ScalarFormatter())
        axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.legend(frameon=False)
    return figure
