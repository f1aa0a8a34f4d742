"""`python -m benchmarks.pictures`: the pictures in docs/pictures, made again.

Those of the machine, cells and costs come from the library alone; those of a study are drawn from its results, which
`python -m train.study` writes (`--study FOLDER`; docs/howto/study.md has the command), those of routes from what
`python -m benchmarks.recipes --curve-every STEPS` writes (`--recipes FOLDER`), and the rescue curves are measured
(`--rescue CLEAN NOISY`, two checkpoints on arrays; three minutes of one core for the shipped sizes).
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image
from transformers import AutoTokenizer, GPT2Config

import aimc
from aimc import presets
from aimc.circuit import ModelShape, attention_cost, fit_transfer, noise_budget, silicon_cell, to_hardware
from aimc.plot.charts import Chart, Series, figure_of
from aimc.plot.style import GREEN, ORANGE, SKY
from benchmarks.recipe_rows import CONTROL, FULL, PUBLISHED_ROUTE
from benchmarks.recipe_tables import mean_and_half_width
from train.page_views import sections_of

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
DOTS_PER_INCH = 100
FROM_STUDY = ("sensitivity", "tolerance")
"""Charts of a study that pages show."""
ROUTES = {
    CONTROL: "digital, same extra tokens",
    FULL: "normaliser and signed queries, direct",
    "… with a layer-wise start": "published hardware, direct",
    PUBLISHED_ROUTE: "published hardware, published route",
}
"""Rows of `benchmarks.recipes` whose curves are drawn, and what they are called there."""
SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
RESCUE_TOKENS, RESCUE_CHIPS = 8192, 8
MEASURED = ("routes", "rescue")
"""Pictures of runs."""
BOXES = {
    "q DAC": (0.0, 2.0, SKY, "query\nDAC: pulse width"),
    "k DAC": (0.0, 0.8, SKY, "key\nDAC: voltage"),
    "v DAC": (0.0, -0.4, SKY, "value\nDAC: voltage"),
    "K": (2.6, 1.4, ORANGE, "K array\ngain cells\ncharge S"),
    "φ": (5.0, 1.4, GREEN, "charge-to-pulse\nφ = clip(S/S_sat, 0, 1)"),
    "V": (7.6, 0.5, ORANGE, "V array\na sub-tile per\n64 tokens"),
    "count": (10.0, 0.5, SKY, "counters\nand digital sum"),
}
"""Left end and middle of each box, its colour, what it is."""
ARROWS = (("q DAC", "K"), ("k DAC", "K"), ("K", "φ"), ("φ", "V"), ("v DAC", "V"), ("V", "count"))


def machine() -> Figure:
    """One head: two analog arrays, and what stands between, in front and behind."""
    figure = Figure(figsize=(9.0, 3.0), layout="constrained")
    axes = figure.add_subplot()
    for left, middle, colour, words in BOXES.values():
        axes.add_patch(
            FancyBboxPatch((left, middle - 0.45), 1.9, 0.9, boxstyle="round,pad=0.05", facecolor=colour, alpha=0.35)
        )
        axes.text(left + 0.95, middle, words, ha="center", va="center", fontsize=8)
    for start, end in ARROWS:
        _arrow(axes, start, end)
    axes.set(xlim=(-0.2, 12.2), ylim=(-1.1, 2.7))
    axes.set_axis_off()
    return figure


def _arrow(axes: Axes, start: str, end: str) -> None:
    left, from_y, *_ = BOXES[start]
    right, to_y, *_ = BOXES[end]
    axes.annotate(
        "", xy=(right - 0.07, to_y), xytext=(left + 1.97, from_y), arrowprops={"arrowstyle": "->", "color": "0.3"}
    )


def fit() -> Figure:
    """A cell's sweep and the polynomial through it."""
    cell = silicon_cell()
    stored = np.linspace(0.0, cell.supply_v, 19)
    charge = cell.read_charge(stored)
    return aimc.plot.circuit.transfer_fit(stored, charge, fit_transfer(stored, charge, offset_v=cell.rest_v, degree=3))


def cells() -> Figure:
    """The published cell against the straight line that a trained model starts from."""
    return aimc.plot.attention.cell_transfer(presets.gain_cell_cmos().cell, np.linspace(0.0, 0.9, 8))


def budget() -> Figure:
    """What limits the silicon cell, largest first."""
    cell = silicon_cell()
    return aimc.plot.circuit.noise_budget(noise_budget(cell, to_hardware(cell)))


def energy() -> Figure:
    """Where the energy of a token goes in GPT-2 small's attention, at the published window and at four times it."""
    hardware = presets.gain_cell_cmos()
    wide = dataclasses.replace(hardware, array=dataclasses.replace(hardware.array, window=4096))
    shape = ModelShape.from_config(GPT2Config())
    costs = {f"window {h.array.window}": attention_cost(shape, h) for h in (hardware, wide)}
    return aimc.plot.cost.energy_breakdown(costs)


DRAWN = {"machine": machine, "cell": cells, "fit": fit, "noise_budget": budget, "energy": energy}
"""Pictures that need no results."""


def of_study(folder: Path) -> dict[str, Figure]:
    """Those of a study, from what it has written."""
    found = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    charts = [item for section in sections_of(found) for item in section.items if isinstance(item, Chart)]
    return {f"study_{chart.name}": figure_of(chart) for chart in charts if chart.name in FROM_STUDY}


def routes(folder: Path) -> Figure:
    """Validation perplexity against tokens, mean over seeds with the 95 % interval, of the rows of a folder."""
    rows = json.loads((folder / "recipes.json").read_text(encoding="utf-8"))["rows"]
    chart = Chart(
        name="routes",
        kind="curves",
        title="From digital to nonlinear cells",
        x_label="extra training tokens (millions)",
        y_label="validation perplexity",
    )
    for row, name in ROUTES.items():
        if row not in rows or not all("curve" in values for values in rows[row].values()):
            sys.exit(f"{folder}: no curve of {row!r} in recipes.json; run benchmarks.recipes with it and --curve-every")
        seeds = [dict(values["curve"]) for values in rows[row].values()]
        tokens = sorted(set.intersection(*(set(curve) for curve in seeds)))
        spread = [mean_and_half_width([curve[at] for curve in seeds]) for at in tokens]
        chart.series.append(
            Series(
                name=name,
                x=[at / 1e6 for at in tokens],
                y=[mean for mean, _ in spread],
                low=[mean - half for mean, half in spread],
                high=[mean + half for mean, half in spread],
            )
        )
    return figure_of(chart)


def rescue(clean: Path, noisy: Path) -> Figure:
    """Two models against the scale of `typical` noise, on chips that neither was trained on."""
    from train import corpus

    models = {name: aimc.from_pretrained(path) for name, path in (("trained clean", clean), ("under noise", noisy))}
    text = "\n\n".join(text for split, text in corpus.embedded() if split == "test")
    tokens = torch.tensor(AutoTokenizer.from_pretrained(clean)(text)["input_ids"][:RESCUE_TOKENS])
    curves = aimc.evaluate.rescue(models, tokens, presets.typical(), SCALES, chips=RESCUE_CHIPS)
    for name, curve in curves.items():
        sys.stdout.write(f"{name}: " + ", ".join(f"{scale:g}: {point}" for scale, point in curve.items()) + "\n")
    return aimc.plot.rescue_curves(curves)


def write(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """One PNG a figure, of 256 colours: a third of the bytes, and no eye sees it."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=DOTS_PER_INCH, format="png")
        Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    return paths


def main() -> None:
    """Draw all that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--study", type=Path, help="folder of a study, whose charts are drawn too")
    parser.add_argument("--recipes", type=Path, help="folder of benchmarks.recipes, whose curves are drawn too")
    parser.add_argument("--rescue", type=Path, nargs=2, metavar="FOLDER", help="models trained clean and under noise")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go")
    asked = parser.parse_args()
    figures = {name: draw() for name, draw in DRAWN.items()} | (of_study(asked.study) if asked.study else {})
    figures |= {"routes": routes(asked.recipes)} if asked.recipes else {}
    figures |= {"rescue": rescue(*asked.rescue)} if asked.rescue else {}
    sys.stdout.write("".join(f"{path}\n" for path in write(figures, asked.folder)))


if __name__ == "__main__":
    main()
