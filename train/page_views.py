"""What a page shows of a study: charts, tables and sentences, made of its results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from aimc.circuit.cost.report import si
from aimc.plot.charts import Chart, Series

from .page_answers import cheapest_words
from .page_shapes import RISE, Results, Section, Table, bars, dots, heat, rises, with_intervals
from .page_words import short_path
from .study_tables import circuit_words, percent, remedies, size_words, tolerance_words


def sections_of(study: Results) -> Iterator[Section]:
    """Of the parts that were measured, in order."""
    makers: dict[str, Callable[[Any], Section]] = {
        "sensitivity": _sensitivity,
        "tolerance": _tolerance,
        "specification": _specification,
        "layers": _layers,
        "grid": _grid,
    }
    for part, make in makers.items():
        found = study["results"].get(part)
        if found is None:
            continue
        if isinstance(found, dict) and "error" in found:
            yield Section(part.capitalize(), f"Not measured: {found['error']}")
        else:
            yield make(found)


def _sensitivity(found: Results) -> Section:
    rows = [row for row in found["rows"] if row["alone"]]
    saved = [row for row in rows if row["saved"]]
    both = [
        with_intervals("rise when it alone is on", [row["label"] for row in rows], [row["alone"] for row in rows]),
        with_intervals("saved when it alone is off", [row["label"] for row in saved], [row["saved"] for row in saved]),
    ]
    per_chip = {row["label"]: row["per_chip"] for row in rows} | {"all together": found["per_chip"]}
    words = (
        f"Perplexity {found['none']['value']:.2f} with none of them, {found['all']['value']:.2f} with all:"
        f" {percent(found['rise'])}. Each alone is on the machine without any other of this list."
        " Brackets are confidence intervals over chips and text; all machines met the same."
    )
    table = Table(
        ["non-ideality", "size", "alone", "saved if it goes"],
        [[row["label"], row["size"], percent(row["alone"]), percent(row["saved"])] for row in found["rows"]],
    )
    chart = bars("sensitivity", "Each alone, and each left out", "change of perplexity, %", both)
    chips = dots("chips", "Chip by chip", "perplexity, one dot a chip", per_chip)
    return Section("Which non-ideality costs how much", words, [chart, table, chips])


def _tolerance(found: list[Results]) -> Section:
    series = []
    for curve in found:
        own = curve["own"]
        points = [
            (size, rise)
            for size, rise in zip(curve["sizes"], curve["rises"], strict=True)
            if rise["value"] > 1e-4 and math.isfinite(rise["value"])
        ]
        if not own or len(points) < 2:
            continue
        x = [size / own if curve["grows"] else own / size for size, _ in points]
        said = [f"{size_words(curve, size)}: {percent(rise)}" for size, rise in points]
        series.append(with_intervals(curve["label"], x, [rise for _, rise in points], words=said))
    targets = [tolerance["rise"] for tolerance in found[0]["tolerances"]] if found else []
    title, x_label = "Perplexity against the size of each", "times worse than stated"
    chart = rises("tolerance", title, x_label, series, targets, log_x=True, log_y=True)
    table = Table(
        ["non-ideality", "now", *(f"+{100 * rise:g} %" for rise in targets)],
        [[curve["label"], _now(curve), *(tolerance_words(curve, t) for t in curve["tolerances"])] for curve in found],
    )
    words = (
        "The size of each, alone, at which perplexity rises by so much over that of the model on its own hardware"
        " without noise. An end at 0 or ∞ lies outside what was searched."
    )
    return Section("How large each may be", words, [table, chart])


def _now(curve: Results) -> str:
    of = " of full scale" if curve["unit"] == "of full scale" else ""
    return size_words(curve, curve["own"]) + of


def _specification(found: Results) -> Section:
    circuits = found["circuits"]
    chosen = found["cheapest"]

    def series(name: str, which: list[int], **look: Any) -> Series:
        x = [1e9 * circuits[i]["energy_j"] for i in which]
        words = [
            f"{', '.join(circuit_words(circuits[i]['values']))}: {si(circuits[i]['energy_j'], 'J')},"
            f" {percent(circuits[i]['rise'])}"
            for i in which
        ]
        return with_intervals(name, x, [circuits[i]["rise"] for i in which], words=words, **look)

    front = [i for i, circuit in enumerate(circuits) if circuit["on_front"]]
    others = [i for i in range(len(circuits)) if i not in front]
    shown = [series("front", front)]
    if others:
        shown.append(series("other circuits", others, line=False))
    if chosen is not None:
        shown.append(series("cheapest within the budget", [chosen], line=False, large=True))
    chart = rises("front", "Energy front", "energy of attention, nJ a token", shown, [found["budget"]], of="budget")
    rows = [*front, *([chosen] if chosen is not None and chosen not in front else [])]
    table = Table(
        [*map(short_path, found["axes"]), "energy a token", "latency", "τ", "perplexity rises"],
        [
            [
                *circuit_words(circuits[i]["values"]),
                si(circuits[i]["energy_j"], "J"),
                si(circuits[i]["latency_s"], "s"),
                "none" if circuits[i]["tau_s"] is None else si(circuits[i]["tau_s"], "s"),
                percent(circuits[i]["rise"]),
            ]
            for i in rows
        ],
        marked=[rows.index(chosen)] if chosen is not None else [],
    )
    words = cheapest_words(found)
    if found["refused"]:
        words += f" {len(found['refused'])} circuits cannot be built: {found['refused'][0]['reason']}."
    return Section("The cheapest circuit that is good enough", words, [chart, table])


def _layers(found: Results) -> Section:
    units, alone = found["ranking"], "Divergence when one {} alone is on its arrays"
    of_layers = with_intervals("layer alone", [f"layer {u['layer']}" for u in units], [u["kl"] for u in units], 1.0)
    items: list[Chart | Table] = [bars("layers", alone.format("layer"), "KL divergence, nat a token", [of_layers])]
    if found["heads"]:
        layers = sorted({unit["layer"] for unit in found["heads"]})
        heads = range(1 + max(unit["head"] for unit in found["heads"]))
        by_place = {(str(unit["layer"]), str(unit["head"])): unit["kl"]["value"] for unit in found["heads"]}
        axes = ("layer", layers), ("head", heads)
        items.append(heat("heads", alone.format("head"), *axes, by_place, "KL divergence, nat a token"))
    kept = [("worst " + found["unit"] + "s first", found["kept"]), ("first and newest tokens", found["protected"])]
    series = [
        with_intervals(
            name,
            [100 * one["share"] for one in rows],
            [one["rise"] for one in rows],
            words=[f"{one['label']}: {percent(one['rise'])}" for one in rows],
        )
        for name, rows in kept
        if rows
    ]
    title, x_label = "Quality against what stays digital", "attention energy whose work is digital, %"
    items.append(rises("kept_digital", title, x_label, series, [found["budget"]], of="budget"))
    words = f"Nothing has to stay digital for the budget of +{100 * found['budget']:g} %."
    if found["skip_layers"] is None:
        words = "Not even with all layers on ideal arrays is the budget met."
    lines = remedies(found)
    if lines:
        words = f"For the budget of +{100 * found['budget']:g} %{', one of' * (len(lines) > 1)}:"
    return Section("Which layers and heads mind", words, items, lines)


def _grid(found: Results) -> Section:
    axes = [path for path, values in found["axes"].items() if len(values) > 1] or list(found["axes"])[:1]
    items: list[Chart | Table] = []
    fixed = {path: values[0] for path, values in found["axes"].items() if path not in axes[:2]}
    cells = [cell for cell in found["cells"] if all(cell["values"][path] == fixed[path] for path in fixed)]
    at = f" at {', '.join(f'{short_path(path)} {value}' for path, value in fixed.items())}" if fixed else ""
    title = f"Rise of perplexity, %{at}"
    if len(axes) > 1:
        rows, columns = ((short_path(path), found["axes"][path]) for path in axes[:2])
        by_place = {
            (str(cell["values"][axes[0]]), str(cell["values"][axes[1]])): 100 * cell["rise"]["value"] for cell in cells
        }
        items.append(heat("grid", title, rows, columns, by_place, "rise of perplexity, %"))
    else:
        x, y, label = [cell["values"][axes[0]] for cell in cells], [cell["rise"] for cell in cells], short_path(axes[0])
        if all(isinstance(value, (int, float)) for value in x):
            items.append(rises("grid", title, label, [with_intervals("grid", x, y)], []))
        else:
            items.append(bars("grid", title, RISE, [with_intervals(label, list(map(str, x)), y)]))
    table = Table(
        [*map(short_path, found["axes"]), "perplexity", "rises"],
        [
            [*map(str, cell["values"].values()), f"{cell['perplexity']['value']:.2f}", percent(cell["rise"])]
            for cell in found["cells"]
        ],
    )
    words = f"Perplexity {found['base']['value']:.2f} where the grid starts, with the stated noise."
    if found["refused"]:
        words += f" {len(found['refused'])} points cannot be: {found['refused'][0]['reason']}"
    return Section("Grid", words, [*items, table])


def samples_section(found: Results) -> Section:
    """What the model writes on several machines."""
    table = Table(["on", "it goes on"], [[row["label"], row["text"]] for row in found["rows"]], prose=True)
    return Section("What it writes", f"After: “{found['prompt']}”, greedily.", [table])


def stages_section(rows: list[Results]) -> Section:
    """Perplexities of the stages that the checkpoint came through."""
    names, values = [row["name"] for row in rows], [row["perplexity"] for row in rows]
    words = [f"{name}: {value:.2f}" for name, value in zip(names, values, strict=True)]
    series = Series(name="perplexity", x=names, y=values, words=words)
    is_wide = max(values) > 5 * min(values)
    chart = bars("stages", "Held-out perplexity by stage", "perplexity", [series], log_x=is_wide)
    table = Table(["stage", "perplexity"], [[row["name"], f"{row['perplexity']:.2f}"] for row in rows])
    return Section("Stages", "From the pretrained model to the hardware.", [chart, table])
