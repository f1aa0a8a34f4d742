"""What a run came to: adaptation, training, non-idealities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from aimc.evaluate.perplexity import Perplexity
from aimc.plot.style import BLACK, BLUE, ORANGE, RED, SKY, new_axes

_CURVE_COLOURS = (BLUE, RED, ORANGE, SKY)
"""Of the training curves of analog models, in order; those of digital ones are black."""


def adaptation_curve(
    perplexities: Sequence[float], *, reference: float | None = None, digital: float | None = None
) -> Figure:
    """Perplexity against iterations of statistics matching; the first point is the unadapted model.

    Args:
        perplexities: one value before the first update and one after each.
        reference: perplexity of the model whose statistics are matched.
        digital: perplexity of the digital model.
    """
    figure, axes = new_axes("Adaptation: statistics matching, no gradient", "iteration", "held-out perplexity")
    axes.plot(range(len(perplexities)), perplexities, "o-", color=RED, label="nonlinear cell")
    for value, name, colour, style in (
        (reference, "linear cell (reference)", BLUE, "--"),
        (digital, "digital", BLACK, ":"),
    ):
        if value is not None:
            axes.axhline(value, color=colour, linestyle=style, label=f"{name}: {value:.1f}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def training_curves(histories: Mapping[str, Sequence[Mapping[str, float]]], *, digital: float | None = None) -> Figure:
    """Validation perplexity against training tokens, all stages on one axis.

    Args:
        histories: a training log by the curve's name, lines with `tokens`, counted from where the whole training began,
            and `eval_perplexity` (others are passed over). A name that begins with `digital` is drawn black.
        digital: perplexity of the digital model before, on the same validation text, drawn as a line.
    """
    figure, axes = new_axes("Hardware-aware training", "training tokens (millions)", "validation perplexity")
    colours = cycle(_CURVE_COLOURS)
    for name, history in histories.items():
        colour = BLACK if name.startswith("digital") else next(colours)
        points = [(line["tokens"] / 1e6, line["eval_perplexity"]) for line in history if "eval_perplexity" in line]
        if points:
            axes.plot(*zip(*points, strict=True), "-", marker=".", color=colour, label=name)
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
    """What each non-ideality adds to the perplexity: mean over chips, standard deviation as error bar, every chip as a
    dot.

    Args:
        sweep: name (a field of `Noise`, `all`, or free text) to perplexity, the clean one first; the bars are relative
            to it.
    """
    (_, clean), *rows = sweep.items()
    title = f"What each non-ideality costs (clean perplexity {clean.mean:.1f})"
    figure, axes = new_axes(title, "increase of held-out perplexity over clean (%)", "")

    def increase(perplexity: float) -> float:
        return 100 * (perplexity / clean.mean - 1)

    colours = [SKY] * (len(rows) - 1) + [ORANGE]
    spread = [100 * p.std / clean.mean for _, p in rows]
    axes.barh(
        [label(name) for name, _ in rows],
        [increase(p.mean) for _, p in rows],
        xerr=spread,
        color=colours,
        capsize=3,
        ecolor=BLACK,
    )
    for row, (_, p) in enumerate(rows):
        axes.plot(
            [increase(value) for value in p.per_chip],
            [row] * len(p.per_chip),
            ".",
            color=BLACK,
            alpha=0.5,
            markersize=4,
        )
    axes.axvline(0.0, color=BLACK, linewidth=1)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    return figure


def rescue_curves(curves: Mapping[str, Mapping[float, Perplexity]], *, digital: float | None = None) -> Figure:
    """Perplexity against the scale of the non-idealities, a line a model: mean over chips, standard deviation as error
    bar, the worst chip as a dot.

    Args:
        curves: perplexity by scale, by the model's name, see :func:`aimc.evaluate.rescue`.
        digital: perplexity of the digital model, drawn as a line.
    """
    title = "Rescue: training under non-idealities"
    figure, axes = new_axes(title, "scale of the non-idealities", "held-out perplexity")
    colours = cycle(_CURVE_COLOURS)
    for (name, curve), colour in zip(curves.items(), colours, strict=False):
        points = curve.values()
        axes.errorbar(
            list(curve),
            [p.mean for p in points],
            [p.std for p in points],
            marker="o",
            color=colour,
            capsize=3,
            label=name,
        )
        axes.plot(list(curve), [max(p.per_chip) for p in points], ".", color=colour, alpha=0.5, markersize=4)
    if digital is not None:
        axes.axhline(digital, color=BLACK, linestyle=":", label=f"digital: {digital:.1f}")
    axes.set_yscale("log")  # equal distances are equal losses in nat
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.0, 0.5)))
    axes.legend(frameon=False)
    return figure
