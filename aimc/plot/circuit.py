"""Figures of the circuit designer's bench: transistors, cells, retention, budgets, and what they do to a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from aimc.circuit import BudgetLine, GainCell, Retention, TransferFit, Transistor
from aimc.plot.style import BLACK, BLUE, GREEN, ORANGE, RED, SKY, new_axes, style_axes

if TYPE_CHECKING:
    from aimc.evaluate.tradeoff import Tradeoff

_LINES = (BLUE, ORANGE, GREEN, RED, SKY, BLACK)
_SIZE_IN = (9.0, 3.8)
SMALLEST_LSB = 1e-4
"""Where the axis of a budget begins: what is smaller does not matter."""


def transistor_curves(
    transistors: Mapping[str, Transistor], *, drain_v: float = 0.9, gate_range_v: tuple[float, float] = (-0.2, 1.2)
) -> Figure:
    """Drain current against gate voltage, logarithmic on the left (weak inversion), linear on the right (strong
    inversion).

    Args:
        transistors: name to transistor; of p types the mirror image is drawn.
        drain_v: drain-source voltage in volt.
        gate_range_v: gate-source voltages in volt.
    """
    figure = Figure(figsize=_SIZE_IN, layout="constrained")
    logarithmic, linear = figure.subplots(1, 2)
    gate = np.linspace(*gate_range_v, 301)
    for (name, transistor), colour in zip(transistors.items(), _LINES * len(transistors), strict=False):
        sign = 1 if transistor.polarity == "n" else -1
        current = np.abs(transistor.current(sign * gate, 0.0, sign * drain_v))
        for axes in (logarithmic, linear):
            axes.plot(gate, current, "-" if sign == 1 else "--", color=colour, label=name)
            axes.axvline(transistor.threshold_v, color=colour, linestyle=":", linewidth=1)
    logarithmic.set_yscale("log")
    for axes, title in ((logarithmic, "Weak inversion: an exponential"), (linear, "Strong inversion: a power law")):
        style_axes(axes, title, "gate-source voltage (dotted: threshold)", "drain current")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(unit="V"))
        axes.yaxis.set_major_formatter(EngFormatter(unit="A"))
    logarithmic.legend(frameon=False)
    return figure


def read_curves(cell: GainCell, *, n_reads: int = 5) -> Figure:
    """Signed read current of a cell against stored voltage, for several heights of the read pulse."""
    figure, axes = new_axes("What a pulse of each height reads", "stored voltage", "current into the bit line")
    stored = cell.stored_grid(181)
    reads = np.linspace(0.0, cell.read_v, n_reads + 1)[1:]
    for read_v, shade in zip(reads, np.linspace(0.25, 1.0, n_reads), strict=True):
        axes.plot(stored, cell.read_current(stored, read_v), color=BLUE, alpha=shade, label=f"{read_v:.2g} V")
    axes.axvline(cell.rest_v, color=BLACK, linestyle=":", linewidth=1)
    axes.axhline(0.0, color=BLACK, linewidth=0.8)
    axes.xaxis.set_major_formatter(EngFormatter(unit="V"))
    axes.yaxis.set_major_formatter(EngFormatter(unit="A"))
    axes.legend(frameon=False, title="read pulse")
    return figure


def transfer_fit(stored_v: Sequence[float], charge: Sequence[float], fit: TransferFit, *, unit: str = "C") -> Figure:
    """A curve, the polynomial that stands for it, and what the polynomial misses, in steps between storage levels where
    they are known.

    Args:
        stored_v: `[N]`, in volt.
        charge: `[N]`.
        fit: the polynomial.
        unit: of the charge; "" for signal units.
    """
    figure = Figure(figsize=(7.0, 5.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    stored, values = np.asarray(stored_v, dtype=float), np.asarray(charge, dtype=float)
    grid = np.linspace(stored.min(), stored.max(), 301)
    above.plot(stored, values, ".", color=BLACK, markersize=4, label="data")
    above.plot(grid, fit(grid), color=RED, label=f"polynomial of degree {len(fit.coefficients) - 1}")
    above.plot(
        grid, fit.linear_slope * (grid - fit.offset_v), "--", color=BLUE, label="straight line (surrogate gradient)"
    )
    style_axes(above, "Cell transfer and its fit", "", "charge of the longest pulse" if unit == "C" else "output")
    above.yaxis.set_major_formatter(EngFormatter(unit=unit))
    above.legend(frameon=False)
    scale = 1.0 if fit.level_step is None else fit.level_step
    below.plot(stored, (values - fit(stored)) / scale, ".-", color=RED, markersize=4)
    below.axhline(0.0, color=BLACK, linewidth=0.8)
    style_axes(below, "", "stored voltage", "data − fit" + ("" if fit.level_step is None else " (LSB)"))
    if fit.level_step is None:
        below.yaxis.set_major_formatter(EngFormatter(unit=unit))
    below.xaxis.set_major_formatter(EngFormatter(unit="V"))
    return figure


def retention(held: Retention, *, window_s: float | None = None) -> Figure:
    """Stored voltages against time, simulated (lines) and as the emulator's one exponential (dashes)."""
    title = (
        f"Retention: τ = {_eng(held.fit.tau_s, 's')}, towards {_eng(held.fit.target_v, 'V')}, missed by at most"
        f" {_eng(held.fit.max_error_v, 'V')}"
    )
    figure, axes = new_axes(title, "time since the write", "stored voltage")
    decay = np.exp(-((held.times_s / held.fit.tau_s) ** held.fit.stretch))
    for index, trace in enumerate(held.traces_v):
        axes.plot(held.times_s, trace, color=BLUE, label="circuit" if index == 0 else None)
        fitted = held.fit.target_v + (trace[0] - held.fit.target_v) * decay
        axes.plot(held.times_s, fitted, "--", color=RED, label="emulator" if index == 0 else None)
    if window_s is not None:
        axes.axvline(window_s, color=BLACK, linestyle=":", label="a token leaves the window")
    axes.xaxis.set_major_formatter(EngFormatter(unit="s"))
    axes.yaxis.set_major_formatter(EngFormatter(unit="V"))
    axes.legend(loc="upper right", framealpha=0.9)
    return figure


def noise_budget(lines: Sequence[BudgetLine]) -> Figure:
    """What limits a cell, in steps between its storage levels, on a logarithmic axis; a step is the line to stay left
    of."""
    figure, axes = new_axes(
        "Error budget at the storage node", "size in steps between storage levels, LSB (dotted: half a step)", ""
    )
    for row, line in enumerate(lines):
        axes.barh(row, max(line.lsb - SMALLEST_LSB, 0.0), left=SMALLEST_LSB, color=SKY if line.is_random else ORANGE)
        end = max(line.lsb, SMALLEST_LSB)
        axes.annotate(
            _eng(line.volt, "V"),
            (end, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            backgroundcolor="white",
        )
    axes.set_yticks(range(len(lines)), [line.name for line in lines])
    axes.set_xscale("log")
    axes.set_xlim(SMALLEST_LSB, max(10.0, 20 * max((line.lsb for line in lines), default=1.0)))
    axes.axvline(0.5, color=BLACK, linestyle=":", zorder=0)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    handles = [axes.barh(0, 0, color=colour) for colour in (SKY, ORANGE)]
    axes.legend(handles, ["random (standard deviation)", "systematic (largest)"], frameon=False, loc="lower right")
    return figure


def tradeoff(result: Tradeoff) -> Figure:
    """Perplexity against energy per token over a sweep; error bars over chips, the Pareto front as a line.

    Args:
        result: of :func:`aimc.evaluate.tradeoff.sweep`.
    """
    figure, axes = new_axes(f"What {result.parameter} buys", "energy per token in attention", "held-out perplexity")
    front = sorted((p for p in result.points if p.on_front), key=lambda p: p.energy_j)
    axes.plot(
        [p.energy_j for p in front],
        [p.perplexity.mean for p in front],
        "-",
        color=BLACK,
        linewidth=1,
        label="Pareto front",
    )
    for point in result.points:
        colour = RED if point.on_front else SKY
        axes.errorbar(
            point.energy_j, point.perplexity.mean, yerr=point.perplexity.std, fmt="o", color=colour, capsize=3
        )
        axes.annotate(
            point.label,
            (point.energy_j, point.perplexity.mean),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize="small",
        )
    if result.digital is not None:
        axes.axhline(result.digital, color=BLACK, linestyle=":", label=f"digital: {result.digital:.1f}")
    axes.xaxis.set_major_formatter(EngFormatter(unit="J"))
    axes.margins(x=0.12, y=0.12)
    axes.legend(frameon=False)
    return figure


def _eng(value: float, unit: str) -> str:
    """With an SI prefix."""
    return EngFormatter(unit=unit, places=2)(value)
