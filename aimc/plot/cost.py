"""Figures of cost: where the energy goes, which unknown matters, and what the whole model gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter, NullLocator, PercentFormatter

from aimc.circuit.cost.attention import Breakdown, Cost
from aimc.circuit.cost.model import Gain
from aimc.circuit.cost.report import si, times
from aimc.circuit.cost.sensitivity import Sensitivity
from aimc.plot.style import BLACK, BLUE, GREEN, ORANGE, RED, SKY

_PART_STYLE = {
    "first array": (BLUE, ""),
    "second array": (SKY, ""),
    "DACs": (GREEN, ""),
    "pulse generators": (GREEN, "///"),
    "counters": (ORANGE, ""),
    "digital adders": (ORANGE, "///"),
    "routing and control": (RED, ""),
    "writes": (BLACK, ""),
    "refresh": (BLACK, "///"),
    "score ADCs": ("#F0E442", ""),
    "digital softmax": ("#CC79A7", ""),
    "level look-ups": (GREEN, "..."),
    "feature transforms": (SKY, "///"),
    "age compensation": ("#CC79A7", "..."),
    "digital recomputation": (RED, "///"),
    "protected tokens": ("#CC79A7", "///"),
    "digital copy": (BLUE, "///"),
    "queue for shared arrays": ("#BBBBBB", ""),
    "normaliser column": ("#F0E442", "///"),
    "position gain": (GREEN, "xxx"),
    "normalising": (ORANGE, "..."),
}
_OTHER_STYLE = ("#BBBBBB", "///")
"""Of a part without a style of its own."""
_BASIS_COLOUR = {"published": BLUE, "derived": SKY, "assumed": ORANGE, "given": GREEN}
_FIELD = {"energy": "energy_j", "latency": "latency_s"}
_LABELLED = 0.04
"""Share of the tallest bar from which a part is named inside it."""


def energy_breakdown(costs: Mapping[str, Cost | Breakdown], *, title: str | None = None) -> Figure:
    """Energy per token by part, one stacked bar each.

    Args:
        costs: what a bar is called to its cost (or its energies alone), all of one scope.
        title: None: says the scope.

    Raises:
        ValueError: nothing to draw, or scopes that cannot be compared.
    """
    scopes = {cost.scope for cost in costs.values() if isinstance(cost, Cost)}
    if not costs or len(scopes) > 1:
        raise ValueError(
            f"costs of {len(costs)} designs, scopes {sorted(scopes)}: bars are compared by height; give one scope, e.g."
            " every .head"
        )
    energies = {name: cost.energy_j if isinstance(cost, Cost) else cost for name, cost in costs.items()}
    figure = Figure(figsize=(3.6 + 1.3 * len(costs), 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title or f"Energy of attention per token and {next(iter(scopes), 'design')}")
    known = dict.fromkeys([*_PART_STYLE, *(name for parts in energies.values() for name in parts)])
    names = [name for name in known if any(parts.get(name) for parts in energies.values())]
    tallest = max(parts.total for parts in energies.values())
    bottom = np.zeros(len(energies))
    for name in names:
        colour, hatch = _PART_STYLE.get(name, _OTHER_STYLE)
        heights = np.array([parts.get(name, 0.0) for parts in energies.values()])
        axes.bar(
            list(energies),
            heights,
            0.62,
            bottom=bottom,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.6,
            label=name,
        )
        for x, (height, low) in enumerate(zip(heights, bottom, strict=True)):
            if height > _LABELLED * tallest:
                ink = BLACK if colour in (SKY, ORANGE, "#F0E442", "#BBBBBB", "#CC79A7") or hatch else "white"
                axes.text(x, low + height / 2, si(height, "J"), ha="center", va="center", color=ink, fontsize="small")
        bottom += heights
    for x, total in enumerate(bottom):
        axes.text(x, total, si(total, "J"), ha="center", va="bottom", fontweight="bold")
    axes.set_ylim(0, 1.08 * tallest)
    axes.set_xlim(-0.6, len(energies) - 0.4)
    axes.set_ylabel("energy per token")
    _bare(axes, "y")
    axes.yaxis.set_major_formatter(EngFormatter(unit="J"))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def sensitivity_tornado(table: Sensitivity, *, most: int = 10) -> Figure:
    """What doubling a parameter does to energy, latency and area: the `most` effective ones of each; colour says where
    a default comes from.

    Args:
        table: of :func:`aimc.circuit.sensitivity`.
        most: bars in one panel.
    """
    figure = Figure(figsize=(12.5, 1.4 + 0.32 * most), layout="constrained")
    figure.suptitle(f"Change of the {table.scope}'s cost when one parameter doubles")
    used: set[str] = set()
    for axes, quantity in zip(figure.subplots(1, 3), ("energy", "latency", "area"), strict=True):
        effects = sorted((e for e in table if getattr(e, quantity) != 0), key=lambda e: -abs(getattr(e, quantity)))[
            :most
        ]
        changes = [getattr(effect, quantity) for effect in effects]
        used |= {effect.basis for effect in effects}
        axes.barh([e.parameter for e in effects], changes, color=[_BASIS_COLOUR[e.basis] for e in effects])
        axes.set_ylim(most - 0.4, -0.6)  # the largest on top, bars equally thick in all panels
        axes.axvline(0, color=BLACK, linewidth=0.8)
        axes.set_title(quantity)
        low, high = min((*changes, 0.0)), max((*changes, 0.0))
        room = 0.27 * ((high - low) or 1.0)
        axes.set_xlim(low - (1.7 * room if low < 0 else 0), high + room)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        for y, change in enumerate(changes):
            text = f" {100 * change:+.1f} % " if abs(change) >= 1e-3 else f" {100 * change:+.1g} % "
            axes.text(
                change, y, text.replace("-", "−"), va="center", ha="left" if change > 0 else "right", fontsize="small"
            )
        _bare(axes, "x")
        axes.tick_params(axis="y", labelsize="small")
    handles = [Patch(color=colour, label=basis) for basis, colour in _BASIS_COLOUR.items() if basis in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def amdahl(
    gains: Sequence[Gain], *, title: str = "What attention on arrays gains: alone, and in the whole model"
) -> Figure:
    """Gain of attention alone beside that of the whole model and its bound, energy on the left, latency on the right,
    logarithmic.

    Args:
        gains: of :func:`aimc.circuit.cost.model`; a gain that is not known has no bar, and says so.
        title: of the figure.
    """
    figure = Figure(figsize=(10.5, 1.9 + 0.85 * len(gains)), layout="constrained")
    figure.suptitle(title)
    bars = (
        ("attention", SKY, "attention alone"),
        ("model", RED, "whole model"),
        ("limit", "#BBBBBB", "whole model, attention at no cost"),
    )
    for axes, quantity in zip(figure.subplots(1, 2, sharey=True), ("energy", "latency"), strict=True):
        largest = 1.0
        for i, (key, colour, label) in enumerate(bars):
            values = [getattr(gain, f"{key}_{quantity}") for gain in gains]
            at = np.arange(len(gains)) + 0.27 * (i - 1)
            axes.barh(at, [value or 1.0 for value in values], 0.25, color=colour, label=label)
            for y, value, gain in zip(at, values, gains, strict=True):
                estimated = key != "attention" and getattr(gain.baseline, f"rest_{_FIELD[quantity]}") is None
                text = f" {times(value)}{' *' if estimated else ''}" if value else " not known"
                axes.text(value or 1.0, y, text, va="center", fontsize="small")
            largest = max(largest, *(value or 1.0 for value in values))
        axes.set_xscale("log")
        axes.set_xlim(1.0 if _all_gain(gains, quantity) else None, largest**1.25 * 1.5)
        axes.set_title(quantity)
        axes.set_xlabel("times less than the digital machine")
        axes.xaxis.set_major_formatter(EngFormatter())
        if largest == 1.0:
            axes.xaxis.set_major_locator(NullLocator())
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(gains)), [gain.baseline.name for gain in gains])
        axes.set_ylim(len(gains) - 0.5, -0.5)
        _bare(axes, "x")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if any(text.get_text().endswith("*") for axes in figure.axes for text in axes.texts):
        handles, labels = [*handles, Line2D([], [], linestyle="")], [*labels, "* with an estimated, ideal digital rest"]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return figure


def _all_gain(gains: Sequence[Gain], quantity: str) -> bool:
    """Whether no bar points to the left of one."""
    return all(
        (getattr(gain, f"{key}_{quantity}") or 1.0) >= 1.0 for gain in gains for key in ("attention", "model", "limit")
    )


def _bare(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis=grid, alpha=0.25)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
