"""What K/V arrays hold while tokens come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import ArrayLike

from aimc.plot.style import BLACK, BLUE, EMPTY, GREEN, ORANGE, RED, SIZE_IN, SKY

_LINES = (ORANGE, BLUE, GREEN, RED, SKY)


def ring_buffer(
    voltages: ArrayLike,
    times_s: ArrayLike,
    *,
    rest_v: float,
    slots: Sequence[int] = (),
    pause_s: tuple[float, float] | None = None,
) -> Figure:
    """What the slots of an array hold while tokens come: an image of slots against time, and below it some slots as
    lines.

    Args:
        voltages: `[N, W, D]`, at each time in each slot and feature, in volt; NaN where a slot is empty. Shown is the
            mean over the features of their distance from rest.
        times_s: `[N]`, at least two, evenly spaced, in second.
        rest_v: rest voltage of the cells.
        slots: which are drawn as lines.
        pause_s: begin and end of a time without tokens, in second.
    """
    distance = np.ma.masked_invalid(np.abs(np.asarray(voltages) - rest_v).mean(axis=-1))
    times = np.asarray(times_s, dtype=float)
    figure = Figure(figsize=(SIZE_IN[0], 6.4), layout="constrained")
    (image_axes, bar_axes), (axes, nothing) = figure.subplots(
        2, 2, sharex="col", height_ratios=(5, 3), width_ratios=(30, 1)
    )
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
    """What every cell of one array holds at several moments, or every cell of several arrays, side by side on one scale
    about the rest voltage.

    Args:
        snapshots: what the moment is to the voltages `[W, D]`, slots by features, in volt; NaN where a slot is empty.
            At least one.
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
