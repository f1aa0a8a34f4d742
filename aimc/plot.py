"""The project's figures, as matplotlib figures to show, save or restyle. Colours are Okabe and Ito's, safe for the colour-blind."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import ArrayLike

from aimc.evaluate import Perplexity

BLACK, ORANGE, SKY, GREEN, BLUE, RED = "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00"
_STAGE_STYLE = {
    "control": (BLACK, "-", "digital, same extra tokens"),
    "linear": (BLUE, "-", "linear cell"),
    "finetune": (RED, "-", "nonlinear cell, fine-tuning"),
}
_SIZE_IN = (7.0, 4.2)
_LINES = (ORANGE, BLUE, GREEN, RED, SKY)
EMPTY = "#BBBBBB"
"""Where a slot holds nothing yet."""


def new_axes(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """A figure with one pair of axes in the project's style."""
    figure = Figure(figsize=_SIZE_IN, layout="constrained")
    return figure, dress(figure.add_subplot(), title, x_label, y_label)


def dress(axes: Axes, title: str, x_label: str, y_label: str) -> Axes:
    """What all figures have in common: names on the axes, no box, a faint grid."""
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25)
    return axes


def adaptation_curve(perplexities: Sequence[float], *, reference: float | None = None, digital: float | None = None) -> Figure:
    """Perplexity against iterations of statistics matching; the first point is the unadapted model.

    Args:
        perplexities: one value before the first update and one after each.
        reference: perplexity of the model whose statistics are matched.
        digital: perplexity of the digital model.
    """
    figure, axes = new_axes("Adaptation: statistics matching, no gradient", "iteration", "held-out perplexity")
    axes.plot(range(len(perplexities)), perplexities, "o-", color=RED, label="nonlinear cell")
    for value, name, colour, style in ((reference, "linear cell (reference)", BLUE, "--"), (digital, "digital", BLACK, ":")):
        if value is not None:
            axes.axhline(value, color=colour, linestyle=style, label=f"{name}: {value:.1f}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def training_curves(histories: Mapping[str, Sequence[Mapping[str, float]]], *, digital: float | None = None) -> Figure:
    """Validation perplexity against training tokens, all stages on one axis; fine-tuning starts where linear training ended.

    Args:
        histories: stage name to its training log, lines with `tokens` and `eval_perplexity` (others are passed over).
        digital: perplexity of the digital model before, on the same validation text, drawn as a line.
    """
    figure, axes = new_axes("Hardware-aware training", "training tokens (millions)", "validation perplexity")
    linear_tokens = max((line["tokens"] for line in histories.get("linear", ())), default=0)
    for stage, history in histories.items():
        colour, style, name = _STAGE_STYLE[stage]
        start = linear_tokens if stage == "finetune" else 0
        points = [((line["tokens"] + start) / 1e6, line["eval_perplexity"]) for line in history if "eval_perplexity" in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, marker=".", color=colour, label=name)
    if digital is not None:
        axes.axhline(digital, color=BLACK, linestyle=":", label=f"digital before: {digital:.1f}")
    axes.legend(frameon=False)
    return figure


def label(name: str) -> str:
    """How a non-ideality is written in tables and figures: fields of `Noise` in words, anything else as it is."""
    names = {
        "clean": "clean",
        "write_v": "write noise",
        "read_qk": "read noise, first array",
        "read_av": "read noise, second array",
        "mismatch_gain": "gain mismatch",
        "mismatch_offset_v": "offset mismatch",
        "column_gain": "column gain error",
        "column_offset": "column offset",
        "tau_spread": "spread of retention",
        "all": "all together",
    }
    return names.get(name, name)


def nonideality_bars(sweep: Mapping[str, Perplexity]) -> Figure:
    """What each non-ideality adds to the perplexity: mean over chips, standard deviation as error bar, every chip as a dot.

    Args:
        sweep: name (a field of `Noise`, `all`, or free text) to perplexity, the clean one first; the bars are relative to it.
    """
    (_, clean), *rows = sweep.items()
    title = f"What each non-ideality costs (clean perplexity {clean.mean:.1f})"
    figure, axes = new_axes(title, "increase of held-out perplexity over clean (%)", "")

    def increase(perplexity: float) -> float:
        return 100 * (perplexity / clean.mean - 1)

    colours = [SKY] * (len(rows) - 1) + [ORANGE]
    spread = [100 * p.std / clean.mean for _, p in rows]
    axes.barh([label(name) for name, _ in rows], [increase(p.mean) for _, p in rows], xerr=spread, color=colours, capsize=3, ecolor=BLACK)
    for row, (_, p) in enumerate(rows):
        axes.plot([increase(value) for value in p.per_chip], [row] * len(p.per_chip), ".", color=BLACK, alpha=0.5, markersize=4)
    axes.axvline(0.0, color=BLACK, linewidth=1)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    return figure


def ring_buffer(
    voltages: ArrayLike, times_s: ArrayLike, *, rest_v: float, slots: Sequence[int] = (), pause_s: tuple[float, float] | None = None
) -> Figure:
    """What the slots of an array hold while tokens come: an image of slots against time, and below it some slots as lines.

    Args:
        voltages: `[N, W, D]`, at each time in each slot and feature, in volt; NaN where a slot is empty. Shown is the mean over the
            features of their distance from rest.
        times_s: `[N]`, at least two, evenly spaced, in second.
        rest_v: rest voltage of the cells.
        slots: which are drawn as lines.
        pause_s: begin and end of a time without tokens, in second.
    """
    distance = np.ma.masked_invalid(np.abs(np.asarray(voltages) - rest_v).mean(axis=-1))
    times = np.asarray(times_s, dtype=float)
    figure = Figure(figsize=(_SIZE_IN[0], 6.4), layout="constrained")
    (image_axes, bar_axes), (axes, nothing) = figure.subplots(2, 2, sharex="col", height_ratios=(5, 3), width_ratios=(30, 1))
    nothing.set_axis_off()
    extent = (times[0], 2 * times[-1] - times[-2], -0.5, distance.shape[1] - 0.5)  # a column lasts until the next
    image_axes.set_facecolor(EMPTY)
    image = image_axes.imshow(distance.T, aspect="auto", origin="lower", interpolation="none", vmin=0, extent=extent)
    image_axes.set_title("The ring buffer: slots fade until they are overwritten (grey: still empty)")
    image_axes.set_ylabel("slot")
    figure.colorbar(image, cax=bar_axes, format=EngFormatter(unit="V"), label="mean |voltage − rest|")
    for slot, colour in zip(slots, _LINES * len(slots), strict=False):
        axes.step(times, distance[:, slot], where="post", color=colour, label=f"slot {slot}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("mean |voltage − rest|")
    axes.yaxis.set_major_formatter(EngFormatter(unit="V"))
    axes.xaxis.set_major_formatter(EngFormatter(unit="s"))
    axes.set_xlabel("time")
    if pause_s is not None:
        axes.axvspan(*pause_s, color=BLACK, alpha=0.08, linewidth=0, label="pause")
        for at in pause_s:
            image_axes.axvline(at, color="white", linestyle="--", linewidth=1)
    if slots or pause_s is not None:
        axes.legend(frameon=False, ncols=len(slots) + 1, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def stored_voltages(
    snapshots: Mapping[str, ArrayLike],
    *,
    rest_v: float,
    supply_v: float,
    title: str = "Voltages in the cells of one array: leaking turns cells white, a new token colours its slot",
) -> Figure:
    """What every cell of one array holds at several moments, or every cell of several arrays, side by side on one scale about the rest voltage.

    Args:
        snapshots: what the moment is to the voltages `[W, D]`, slots by features, in volt; NaN where a slot is empty. At least one.
        rest_v: white on the scale.
        supply_v: end of the scale.
        title: over all panels.
    """
    figure = Figure(figsize=(1.2 + 2.1 * len(snapshots), 4.6), layout="constrained")
    panels = figure.subplots(1, len(snapshots), sharex=True, sharey=True, squeeze=False)[0]
    reach = max(supply_v - rest_v, rest_v)
    for axes, (moment, voltages) in zip(panels, snapshots.items(), strict=True):
        axes.set_facecolor(EMPTY)
        image = axes.imshow(
            np.ma.masked_invalid(voltages),
            aspect="auto",
            origin="lower",
            interpolation="none",
            cmap="RdBu_r",
            vmin=rest_v - reach,
            vmax=rest_v + reach,
        )
        axes.set_title(moment, fontsize="medium")
        axes.set_xlabel("feature")
    panels[0].set_ylabel("slot")
    figure.suptitle(title)
    figure.colorbar(image, ax=list(panels), format=EngFormatter(unit="V"), label=f"stored voltage (rest: {rest_v:g} V)")
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG in one step, 150 dots an inch."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, dpi=150, format="png")
    os.replace(temporary, path)
