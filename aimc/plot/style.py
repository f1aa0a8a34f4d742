"""What all figures have in common: colours (Okabe and Ito's, safe for the colour-blind), axes, and the way to a
file."""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN, BLUE, RED = "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00"
EMPTY = "#BBBBBB"
"""Where a slot holds nothing yet."""
SIZE_IN = (7.0, 4.2)


def new_axes(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """A figure with one pair of axes in the project's style."""
    figure = Figure(figsize=SIZE_IN, layout="constrained")
    return figure, style_axes(figure.add_subplot(), title, x_label, y_label)


def style_axes(axes: Axes, title: str, x_label: str, y_label: str) -> Axes:
    """What all figures have in common: names on the axes, no box, a faint grid."""
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25)
    return axes


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG in one step, 150 dots an inch."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, dpi=150, format="png")
    os.replace(temporary, path)
