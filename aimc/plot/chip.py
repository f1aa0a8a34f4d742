"""Figures of a whole chip: the budget of error, and what time does to programmed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from aimc.evaluate.ageing import AgedPerplexity
from aimc.evaluate.perplexity import Perplexity
from aimc.plot.style import BLACK, BLUE, GREEN, ORANGE, RED, SKY, new_axes
from aimc.static.programming import TIMES_S

_COLOURS = (RED, BLUE, GREEN, ORANGE)


def budget_points(budget: Mapping[str, Perplexity], *, reference: str = "digital") -> Figure:
    """Perplexity of each row: mean over chips, standard deviation as error bar, every chip as a dot; the reference as a
    line.

    Args:
        budget: name to perplexity, see :func:`aimc.evaluate.error_budget`.
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


def ageing_curve(curves: Mapping[str, Sequence[AgedPerplexity]], *, digital: float | None = None) -> Figure:
    """Perplexity against time since programming, on a logarithmic clock: a panel with global drift compensation, and
    one without.

    Args:
        curves: name of a model to its measurements, see :func:`aimc.evaluate.ageing`; error bars are standard
            deviations. At least one.
        digital: perplexity of the digital model, drawn as a line.

    Raises:
        ValueError: nothing to draw.
    """
    kinds = [kind for kind in (True, False) if any(r.compensated is kind for curve in curves.values() for r in curve)]
    if not kinds:
        raise ValueError("curves holds no measurement; measure some with aimc.evaluate.ageing")
    figure = Figure(figsize=(7.0, 1.0 + 2.9 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
    for axes, kind in zip(panels, kinds, strict=True):
        axes.set_title(f"Static tiles drift, {'with' if kind else 'without'} global drift compensation")
        axes.set_ylabel("held-out perplexity")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, alpha=0.25)
        for (name, curve), colour in zip(curves.items(), _COLOURS * len(curves), strict=False):
            points = sorted((r for r in curve if r.compensated is kind), key=lambda r: r.since_programming_s)
            if points:
                times, means, spreads = zip(
                    *((r.since_programming_s, r.perplexity.mean, r.perplexity.std) for r in points), strict=True
                )
                axes.errorbar(times, means, yerr=spreads, fmt="o-", color=colour, markersize=4, capsize=3, label=name)
        if digital is not None:
            axes.axhline(digital, color=BLACK, linestyle=":", label=f"digital: {digital:.1f}")
        axes.legend(frameon=False)
    panels[-1].set_xscale("log")
    panels[-1].set_xticks(list(TIMES_S.values()), list(TIMES_S))
    panels[-1].xaxis.set_minor_locator(NullLocator())
    panels[-1].set_xlabel("time since programming")
    return figure
