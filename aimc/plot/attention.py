"""Figures of one attention head on its arrays, stage by stage, in the style of :mod:`aimc.plot`.

All arrays are of one head and without batch: T query positions, S key positions, D features, J sub-tiles, W slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from aimc.hardware import Array, Cell, Converter, Leakage
from aimc.ops.effects.cell import transfer
from aimc.ops.effects.converters import adc, dac
from aimc.ops.effects.leakage import decay_factor
from aimc.plot.style import BLACK, BLUE, EMPTY, GREEN, ORANGE, RED, SKY, style_axes

_SIGNAL = "(signal units)"
_BARS = (SKY, ORANGE, GREEN, BLUE)
_WIDTH_IN = 9.0


def converters(parts: Mapping[str, tuple[ArrayLike, Converter, str]]) -> Figure:
    """What DACs make of the values that reach them: staircases, the values as dots on them, the clipped ends shaded.

    Args:
        parts: what is converted, to the values (any shape), their converter, and the unit of both (`V`; empty:
            dimensionless).
    """
    figure = Figure(figsize=(_WIDTH_IN, 3.6), layout="constrained")
    for axes, (name, (values, converter, unit)) in zip(
        figure.subplots(1, len(parts), squeeze=False)[0], parts.items(), strict=True
    ):
        x = np.asarray(values, dtype=float).ravel()
        low, high = min(x.min(), converter.v_min), max(x.max(), converter.v_max)
        below, above = np.mean(x < converter.v_min), np.mean(x > converter.v_max)
        levels = "no" if converter.n_levels is None else converter.n_levels
        style_axes(
            axes,
            f"{name}: {levels} levels\nclipped: {below:.0%} below, {above:.0%} above",
            "value before the DAC",
            "value after the DAC",
        )
        ramp = np.linspace(low, high, 2001)
        axes.plot(ramp, dac(torch.as_tensor(ramp), converter), color=BLACK, linewidth=1)
        axes.plot(x, dac(torch.as_tensor(x), converter), "o", color=BLUE, alpha=0.35, markersize=4, markeredgewidth=0)
        for start, end in ((low, converter.v_min), (converter.v_max, high)):
            axes.axvspan(start, end, color=ORANGE, alpha=0.2, linewidth=0)
        if unit:
            axes.xaxis.set_major_formatter(EngFormatter(unit=unit, sep=" "))
            axes.yaxis.set_major_formatter(EngFormatter(unit=unit, sep=" "))
        axes.title.set_fontsize("medium")
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 5, 10]))
    return figure


def pulses(widths_s: ArrayLike, labels: Sequence[str], *, longest_s: float, title: str) -> Figure:
    """A timing diagram: which line is driven how long.

    Args:
        widths_s: pulse widths `[N]`, in second.
        labels: of the lines, N.
        longest_s: the longest pulse there is, in second.
        title: of the figure.
    """
    figure = Figure(figsize=(7.0, 1.3 + 0.16 * len(labels)), layout="constrained")
    _pulse_bars(figure.add_subplot(), widths_s, labels, longest_s, title)
    return figure


def leakage(leak: Leakage, levels_v: ArrayLike, *, rest_v: float, marks: Mapping[str, float]) -> Figure:
    """Stored voltages on their way to where they leak, on a logarithmic axis of time.

    Args:
        leak: the retention; its `tau_s` is known.
        levels_v: voltages that were written, `[N]`, in volt.
        rest_v: where they go, unless `leak.target_v` says otherwise.
        marks: what a time is to the time, in second; drawn as lines.

    Raises:
        ValueError: the cells do not leak.
    """
    if leak.tau_s is None:
        raise ValueError(
            "leakage.tau_s is None: cells that do not leak make no picture of leakage; give a retention time in second"
        )
    end_v = rest_v if leak.target_v is None else leak.target_v
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = style_axes(
        figure.add_subplot(),
        f"Leakage: towards {end_v:g} V with τ = {EngFormatter('s')(leak.tau_s)}",
        "time since writing",
        "stored voltage",
    )
    times_s = np.geomspace(min([*marks.values(), leak.tau_s]) / 2, 10 * leak.tau_s, 400)
    decay = decay_factor(torch.as_tensor(times_s / leak.tau_s), 1.0, dtype=torch.float64).numpy()
    for level in np.asarray(levels_v, dtype=float):
        axes.semilogx(times_s, end_v + (level - end_v) * decay, color=BLUE if level >= end_v else RED)
    axes.axhline(end_v, color=BLACK, linestyle=":", linewidth=1)
    for name, at_s in marks.items():
        axes.axvline(at_s, color=BLACK, linestyle="--", linewidth=1)
        axes.annotate(
            name,
            (at_s, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
        )
    axes.set_title(axes.get_title(), pad=20)
    axes.xaxis.set_major_formatter(EngFormatter(unit="s"))
    axes.yaxis.set_major_formatter(EngFormatter(unit="V"))
    return figure


def cell_transfer(cell: Cell, voltages: ArrayLike) -> Figure:
    """Charge that the longest pulse draws from a cell against its voltage; below, how many cells hold which voltage.

    Args:
        cell: its transfer is drawn over the supply, beside the straight line of its surrogate slope.
        voltages: stored, any shape, in volt; few distinct values.
    """
    held, n_cells = np.unique(np.asarray(voltages, dtype=float).round(9), return_counts=True)
    v = np.linspace(0.0, cell.supply_v, 401)
    figure = Figure(figsize=(7.0, 5.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    style_axes(above, "The cell: stored voltage to charge", "", f"charge of the longest pulse\n{_SIGNAL}")
    above.plot(v, _charge(cell, v), color=BLUE, label="this cell, p(u)")
    above.plot(
        v,
        cell.surrogate_slope * (v - cell.offset_v),
        "--",
        color=BLACK,
        linewidth=1,
        label=f"linear cell, {cell.surrogate_slope:g} / V",
    )
    above.plot(held, _charge(cell, held), "o", color=RED, label="what is stored here")
    above.axvline(cell.offset_v, color=BLACK, linestyle=":", linewidth=1, label=f"rest, {cell.offset_v:g} V")
    above.legend(frameon=False)
    style_axes(below, "", "stored voltage", "cells")
    below.bar(held, n_cells, width=0.02 * cell.supply_v, color=RED)
    below.xaxis.set_major_formatter(EngFormatter(unit="V"))
    return figure


def charge_build_up(charges: ArrayLike, *, title: str) -> Figure:
    """How a line sums the charges of its cells: each as a bar, and what has come together so far as a staircase.

    Args:
        charges: of the cells on one line, `[D]`, in signal units.
        title: of the figure.
    """
    parts = np.asarray(charges, dtype=float)
    total = parts.cumsum()
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = style_axes(figure.add_subplot(), title, "feature d", f"charge {_SIGNAL}")
    axes.bar(
        range(len(parts)),
        parts,
        color=[BLUE if part >= 0 else RED for part in parts],
        label="of this cell (blue: +, red: −)",
    )
    axes.step(range(len(parts)), total, where="mid", color=BLACK, label="so far")
    axes.plot(len(parts) - 1, total[-1], "o", color=BLACK, label=f"S = {total[-1]:.1f}")
    axes.axhline(0.0, color=BLACK, linewidth=1)
    axes.set_xlim(-1, len(parts))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return figure


def charge_to_pulse(
    charges: ArrayLike, tokens: Sequence[str], *, saturation: float, longest_s: float, title: str
) -> Figure:
    """One query's charges, the circuit that turns each into a pulse, and the pulses.

    Args:
        charges: S of the keys that the query sees, `[S]`, in signal units.
        tokens: their texts, S.
        saturation: S_sat, in signal units.
        longest_s: the longest pulse, in second.
        title: of the figure.
    """
    S = np.asarray(charges, dtype=float)
    figure = Figure(figsize=(_WIDTH_IN, 1.5 + 0.2 * len(tokens)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(4, 3, 4))
    figure.suptitle(title)
    style_axes(left, "charge S", f"{_SIGNAL}", "")
    left.barh(range(len(S)), S, color=[BLUE if s >= 0 else RED for s in S])
    _name_lines(left, tokens)
    for at in (0.0, saturation):
        left.axvline(at, color=BLACK, linestyle=":", linewidth=1)
    style_axes(middle, "charge-to-pulse", f"S {_SIGNAL}", "φ")
    ends = min(S.min(), -0.2 * saturation), max(S.max(), 1.2 * saturation)
    middle.plot((ends[0], 0.0, saturation, ends[1]), (0.0, 0.0, 1.0, 1.0), color=BLACK, linewidth=1)
    middle.plot(S, np.clip(S / saturation, 0.0, 1.0), "o", color=BLUE, markersize=5)
    _pulse_bars(right, np.clip(S / saturation, 0.0, 1.0) * longest_s, tokens, longest_s, "pulse into the second array")
    return figure


def token_maps(maps: Mapping[str, tuple[ArrayLike, str]], tokens: Sequence[str], *, row: int | None = None) -> Figure:
    """Numbers of all pairs of tokens as images, side by side: a query a row, a key a column, the future grey.

    Args:
        maps: title to numbers `[T, T]` and what they are (named on the colour bar). Where any is negative, blue is
            negative and red positive.
        tokens: their texts, T.
        row: a query to be framed; None: none.
    """
    n = len(tokens)
    future = np.triu(np.ones((n, n), dtype=bool), k=1)
    figure = Figure(figsize=(1.0 + 4.6 * len(maps), 5.0), layout="constrained")
    panels = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    for axes, (title, (numbers, meaning)) in zip(panels, maps.items(), strict=True):
        shown = np.ma.masked_array(np.asarray(numbers, dtype=float), mask=future)
        signed = shown.min() < 0
        reach = float(np.abs(shown).max())
        axes.set_facecolor(EMPTY)
        image = axes.imshow(
            shown,
            cmap="RdBu_r" if signed else "viridis",
            vmin=-reach if signed else 0.0,
            vmax=reach,
            interpolation="none",
        )
        axes.set_title(title)
        axes.set_xlabel("key")
        axes.set_xticks(range(n), map(_printable, tokens), rotation=90, fontsize="small")
        _name_lines(axes, tokens)
        if row is not None:
            axes.add_patch(Rectangle((-0.5, row - 0.5), row + 1, 1, fill=False, edgecolor=ORANGE, linewidth=2))
        figure.colorbar(image, ax=axes, label=meaning, shrink=0.8)
    panels[0].set_ylabel("query")
    return figure


def counters(charges: ArrayLike, counts: ArrayLike, readout: Converter) -> Figure:
    """Charge of each column of the sub-tiles and what its counter makes of it; of several sub-tiles also the digital
    sum.

    Args:
        charges: before the counters, `[J, D]`, as fractions of A_sat.
        counts: A, `[J, D]`, as fractions of A_sat.
        readout: the counters; the tick marks inside the axis are its levels.
    """
    fills, A = np.atleast_2d(np.asarray(charges, dtype=float)), np.atleast_2d(np.asarray(counts, dtype=float))
    n_tiles, n_features = A.shape
    n_panels = n_tiles + (n_tiles > 1)
    figure = Figure(figsize=(7.0, 1.4 + (1.6 if n_tiles > 1 else 2.6) * n_panels), layout="constrained")
    panels = figure.subplots(n_panels, 1, sharex=True, squeeze=False)[:, 0]
    rows = [(f"sub-tile {j}", fills[j], A[j]) for j in range(n_tiles)]
    if n_tiles > 1:
        rows.append(("digital sum", fills.sum(axis=0), A.sum(axis=0)))
    levels = adc(torch.linspace(readout.v_min, readout.v_max, 20001, dtype=torch.float64), readout).numpy()
    reach = 1.1 * max(np.abs(numbers).max() for _, *pair in rows for numbers in pair)
    for axes, (name, fill, count) in zip(panels, rows, strict=True):
        style_axes(axes, "", "", f"{name}\n(of A_sat)")
        axes.bar(range(n_features), fill, color=SKY, label="charge" if axes is panels[0] else None)
        axes.plot(
            range(n_features),
            count,
            "_",
            color=BLACK,
            markersize=9,
            markeredgewidth=2,
            label="number" if axes is panels[0] else None,
        )
        axes.axhline(0.0, color=BLACK, linewidth=1)
        axes.grid(False, axis="x")
        if readout.n_levels is not None and name != "digital sum":
            axes.set_yticks(np.unique(levels.round(9)), minor=True)
            axes.tick_params(axis="y", which="minor", direction="in", length=4)
        axes.set_ylim(-reach, reach)  # last: ticks widen the limits
    panels[-1].set_xlabel("feature d")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle("Second array: charge and counters")
    figure.legend(frameon=False, ncols=2, loc="outside lower center")
    return figure


def grouped_bars(
    values: Mapping[str, ArrayLike],
    labels: Sequence[str],
    *,
    title: str,
    x_label: str,
    y_label: str,
    share: bool = False,
) -> Figure:
    """Several machines' numbers side by side.

    Args:
        values: name to numbers `[N]`; at most four.
        labels: under the bars, N.
        title, x_label, y_label: in words.
        share: the numbers are shares of one, shown in percent.

    Raises:
        ValueError: more than four machines.
    """
    if len(values) > len(_BARS):
        raise ValueError(
            f"{len(values)} machines side by side: at most {len(_BARS)} can be told apart by colour; draw several"
            " figures"
        )
    figure = Figure(figsize=(_WIDTH_IN, 3.8), layout="constrained")
    axes = style_axes(figure.add_subplot(), "", x_label, y_label)
    width = 0.8 / len(values)
    for i, (colour, (name, numbers)) in enumerate(zip(_BARS, values.items(), strict=False)):
        axes.bar(
            np.arange(len(labels)) + (i + 0.5) * width - 0.4,
            np.asarray(numbers, dtype=float),
            width,
            color=colour,
            label=name,
        )
    axes.set_xticks(range(len(labels)), map(_printable, labels), rotation=90 if max(map(len, labels)) > 2 else 0)
    axes.axhline(0.0, color=BLACK, linewidth=1)
    axes.grid(False, axis="x")
    if share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(frameon=False, ncols=len(values), loc="lower right", bbox_to_anchor=(1.0, 1.0))
    axes.set_title(title, loc="left")
    return figure


def ring(array: Array, tokens: Sequence[str]) -> Figure:
    """Which token is in which slot, token by token: written into the slot of its position modulo W, then ageing until
    it is overwritten.

    Args:
        array: window and rows of a sub-tile; a small window, so that the texts can be read.
        tokens: their texts, T.
    """
    n, window = len(tokens), array.window
    ages = np.array([[(t - slot) % window if slot <= t else np.nan for t in range(n)] for slot in range(window)])
    figure = Figure(figsize=(_WIDTH_IN, 1.8 + 0.28 * window), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor(EMPTY)
    image = axes.imshow(
        np.ma.masked_invalid(ages),
        aspect="auto",
        origin="upper",
        cmap="viridis_r",
        vmin=0,
        vmax=window - 1,
        interpolation="none",
    )
    for t, token in enumerate(tokens):
        axes.text(t, t % window, _printable(token), ha="center", va="center", fontsize="x-small", color=BLACK)
    for tile in range(1, array.n_tiles):
        axes.axhline(tile * array.rows - 0.5, color=RED, linewidth=2)
    axes.set_title(
        "The ring buffer: token s is written into slot s mod W (red: borders of sub-tiles, grey: still empty)"
    )
    axes.set_xlabel("token that is being read and written, t")
    axes.set_ylabel("slot")
    axes.set_xticks(range(n))
    axes.set_yticks(range(window))
    figure.colorbar(image, label="age of what the slot holds (tokens)")
    return figure


def _charge(cell: Cell, voltages: np.ndarray) -> np.ndarray:
    return transfer(torch.as_tensor(voltages - cell.offset_v), cell).numpy()


def _pulse_bars(axes: Axes, widths_s: ArrayLike, labels: Sequence[str], longest_s: float, title: str) -> None:
    style_axes(axes, title, "time", "")
    axes.barh(range(len(labels)), np.asarray(widths_s, dtype=float), color=GREEN, height=0.7)
    axes.axvline(longest_s, color=BLACK, linestyle=":", linewidth=1)
    axes.xaxis.set_major_formatter(EngFormatter(unit="s"))
    axes.set_xlim(0.0, 1.05 * longest_s)
    axes.grid(False, axis="y")
    _name_lines(axes, labels)


def _name_lines(axes: Axes, labels: Sequence[str]) -> None:
    """A label per row, the first on top."""
    axes.set_yticks(range(len(labels)), map(_printable, labels), fontsize="small")
    axes.set_ylim(len(labels) - 0.5, -0.5)


def _printable(token: str) -> str:
    """A token without the space before it; a lone sign in quotes, so that it is seen; a line feed as a sign; a dollar
    is no formula."""
    text = token.strip(" ").replace("\n", "⏎").replace("$", r"\$")
    return text if any(map(str.isalnum, text)) else f'"{text}"'
