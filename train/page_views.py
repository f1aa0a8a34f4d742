"""What a page shows of a study: charts, tables and sentences, made of its results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aimc.circuit.cost.report import si
from aimc.plot.charts import Chart, Series

from .page_words import short_path
from .study_tables import circuit_words, percent, size_words, tolerance_words

Results = dict[str, Any]


@dataclass(slots=True)
class Table:
    """Words in rows."""

    header: list[str]
    rows: list[list[str]]
    marked: list[int] = field(default_factory=list)
    """Rows that stand out."""
    prose: bool = False
    """Whether its cells are sentences."""


@dataclass(slots=True)
class Section:
    """One heading and what is under it."""

    title: str
    words: str = ""
    items: list[Chart | Table] = field(default_factory=list)


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


def headlines(study: Results) -> list[str]:
    """The answers in a sentence each."""
    results, told = study["results"], []
    ranking = _measured(results, "sensitivity")
    if ranking and ranking["rows"]:
        first = ranking["rows"][0]
        told.append(
            f"{first['label'].capitalize()} ({first['size']}) costs most: {percent(first['alone'])} perplexity alone;"
            f" everything together {percent(ranking['rise'])}."
        )
    curves = _measured(results, "tolerance")
    tight = [(curve, tolerance) for curve in curves or () for tolerance in curve["tolerances"][:1] if tolerance["size"]]
    if tight and ranking:
        by_cost = [row["name"] for row in ranking["rows"]]
        curve, tolerance = min(tight, key=lambda pair: by_cost.index(pair[0]["name"]))
        told.append(
            f"For +{100 * tolerance['rise']:g} % perplexity, {curve['label']} may be"
            f" {tolerance_words(curve, tolerance)}; it is {size_words(curve, curve['own'])}."
        )
    circuits = _measured(results, "specification")
    if circuits:
        told.append(_cheapest_words(circuits))
    layers = _measured(results, "layers")
    if layers and layers["ranking"]:
        worst, skip = layers["ranking"][0], layers["skip_layers"]
        rest = "not even all layers digital are enough" if skip is None else f"keep layers {skip} digital"
        rest = "no layer has to stay digital" if skip == [] else rest
        told.append(
            f"Layer {worst['layer']} minds its arrays most ({worst['kl']['value']:.3g} nat a token); for a budget of"
            f" +{100 * layers['budget']:g} % {rest}."
        )
    return told


def _measured(results: Results, part: str) -> Any:
    found = results.get(part)
    return None if isinstance(found, dict) and "error" in found else found


def _cheapest_words(found: Results) -> str:
    budget = f"+{100 * found['budget']:g} %"
    if found["cheapest"] is None:
        best = min(found["circuits"], key=lambda circuit: circuit["rise"]["value"], default=None)
        least = "" if best is None else f"; the best of them costs {percent(best['rise'])}"
        return f"None of {len(found['circuits'])} circuits is within {budget}{least}."
    circuit = found["circuits"][found["cheapest"]]
    built = ", ".join(
        f"{short_path(path)} {words}"
        for path, words in zip(circuit["values"], circuit_words(circuit["values"]), strict=True)
    )
    energy = si(circuit["energy_j"], "J")
    return f"Cheapest circuit within {budget}: {energy} a token ({built}), {percent(circuit['rise'])}."


def _series(name: str, x: list[Any], intervals: list[Results], scale: float = 100.0, **more: Any) -> Series:
    """Intervals as points; percent unless another scale is given."""
    ends = {end: [scale * interval[end] for interval in intervals] for end in ("value", "low", "high")}
    unit = " %" if scale == 100.0 else ""
    words = more.pop("words", None) or [
        f"{at}: {value:.3g}{unit} ({low:.3g} … {high:.3g})"
        for at, value, low, high in zip(x, ends["value"], ends["low"], ends["high"], strict=True)
    ]
    return Series(name=name, x=x, y=ends["value"], low=ends["low"], high=ends["high"], words=words, **more)


def _sensitivity(found: Results) -> Section:
    rows = [row for row in found["rows"] if row["alone"]]
    saved = [row for row in rows if row["saved"]]
    bars = Chart(
        name="sensitivity",
        kind="bars",
        title="Each alone, and each left out",
        x_label="perplexity, %",
        y_label="",
        series=[
            _series("rise when it alone is on", [row["label"] for row in rows], [row["alone"] for row in rows]),
            _series("saved when it alone is off", [row["label"] for row in saved], [row["saved"] for row in saved]),
        ],
    )
    strip = [
        Series(
            name=row["label"],
            x=[row["label"]] * len(row["per_chip"]),
            y=row["per_chip"],
            words=[f"chip {i}: {value:.2f}" for i, value in enumerate(row["per_chip"])],
        )
        for row in [*rows, {"label": "all together", "per_chip": found["per_chip"]}]
    ]
    chips = Chart(
        name="chips",
        kind="strip",
        title="Chip by chip",
        x_label="perplexity, one dot a chip",
        y_label="",
        series=strip,
    )
    words = (
        f"Perplexity {found['none']['value']:.2f} with none of them, {found['all']['value']:.2f} with all:"
        f" {percent(found['rise'])}. Brackets are confidence intervals over chips and text; all machines met the same."
    )
    table = Table(
        ["non-ideality", "size", "alone", "saved if it goes"],
        [[row["label"], row["size"], percent(row["alone"]), percent(row["saved"])] for row in found["rows"]],
    )
    return Section("Which non-ideality costs how much", words, [bars, table, chips])


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
        series.append(_series(curve["label"], x, [rise for _, rise in points], words=said))
    rises = [tolerance["rise"] for tolerance in found[0]["tolerances"]] if found else []
    chart = Chart(
        name="tolerance",
        kind="curves",
        title="Perplexity against the size of each",
        x_label="times worse than stated",
        y_label="rise of perplexity, %",
        series=series,
        log_x=True,
        log_y=True,
        marks=[(100 * rise, f"+{100 * rise:g} %") for rise in rises],
    )
    table = Table(
        ["non-ideality", "now", *(f"+{100 * rise:g} %" for rise in rises)],
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
        return _series(name, x, [circuits[i]["rise"] for i in which], words=words, **look)

    front = [i for i, circuit in enumerate(circuits) if circuit["on_front"]]
    others = [i for i in range(len(circuits)) if i not in front]
    shown = [series("front", front)]
    if others:
        shown.append(series("other circuits", others, line=False))
    if chosen is not None:
        shown.append(series("cheapest within the budget", [chosen], line=False, large=True))
    chart = Chart(
        name="front",
        kind="curves",
        title="Energy front",
        x_label="energy of attention, nJ a token",
        y_label="rise of perplexity, %",
        series=shown,
        marks=[(100 * found["budget"], f"budget +{100 * found['budget']:g} %")],
    )
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
    words = _cheapest_words(found)
    if found["refused"]:
        words += f" {len(found['refused'])} circuits cannot be built: {found['refused'][0]['reason']}."
    return Section("The cheapest circuit that is good enough", words, [chart, table])


def _layers(found: Results) -> Section:
    units = found["ranking"]
    bars = Chart(
        name="layers",
        kind="bars",
        title="Divergence when one layer alone is on its arrays",
        x_label="KL divergence, nat a token",
        y_label="",
        series=[_series("layer alone", [f"layer {u['layer']}" for u in units], [u["kl"] for u in units], scale=1.0)],
    )
    items: list[Chart | Table] = [bars]
    if found["heads"]:
        layers = sorted({unit["layer"] for unit in found["heads"]})
        n_heads = 1 + max(unit["head"] for unit in found["heads"])
        by_place = {(unit["layer"], unit["head"]): unit["kl"]["value"] for unit in found["heads"]}
        items.append(
            Chart(
                name="heads",
                kind="heat",
                title="Divergence when one head alone is on its arrays",
                x_label="head",
                y_label="layer",
                columns=[str(head) for head in range(n_heads)],
                rows=[str(layer) for layer in layers],
                z=[[by_place.get((layer, head), math.nan) for head in range(n_heads)] for layer in layers],
            )
        )
    kept = [("worst " + found["unit"] + "s first", found["kept"]), ("first and newest tokens", found["protected"])]
    series = [
        _series(
            name,
            [100 * one["share"] for one in rows],
            [one["rise"] for one in rows],
            words=[f"{one['label']}: {percent(one['rise'])}" for one in rows],
        )
        for name, rows in kept
        if rows
    ]
    items.append(
        Chart(
            name="kept_digital",
            kind="curves",
            title="Quality against what stays digital",
            x_label="attention energy whose work is digital, %",
            y_label="rise of perplexity, %",
            series=series,
            marks=[(100 * found["budget"], f"budget +{100 * found['budget']:g} %")],
        )
    )
    skip = found["skip_layers"]
    words = (
        "Not even with all layers on ideal arrays is the budget met."
        if skip is None
        else f"For the budget of +{100 * found['budget']:g} %: aimc.convert(model, hardware, skip_layers={skip})."
    )
    return Section("Which layers and heads mind", words, items)


def _grid(found: Results) -> Section:
    axes = [path for path, values in found["axes"].items() if len(values) > 1] or list(found["axes"])[:1]
    items: list[Chart | Table] = []
    fixed = {path: values[0] for path, values in found["axes"].items() if path not in axes[:2]}
    cells = [cell for cell in found["cells"] if all(cell["values"][path] == fixed[path] for path in fixed)]
    at = f" at {', '.join(f'{short_path(path)} {value}' for path, value in fixed.items())}" if fixed else ""
    if len(axes) > 1:
        rows, columns = (found["axes"][path] for path in axes[:2])
        by_place = {
            (str(cell["values"][axes[0]]), str(cell["values"][axes[1]])): 100 * cell["rise"]["value"] for cell in cells
        }
        items.append(
            Chart(
                name="grid",
                kind="heat",
                title=f"Rise of perplexity, %{at}",
                x_label=short_path(axes[1]),
                y_label=short_path(axes[0]),
                columns=list(map(str, columns)),
                rows=list(map(str, rows)),
                z=[[by_place.get((str(row), str(column)), math.nan) for column in columns] for row in rows],
            )
        )
    else:
        are_numbers = all(isinstance(cell["values"][axes[0]], (int, float)) for cell in cells)
        x = [cell["values"][axes[0]] if are_numbers else str(cell["values"][axes[0]]) for cell in cells]
        items.append(
            Chart(
                name="grid",
                kind="curves" if are_numbers else "bars",
                title=f"Rise of perplexity, %{at}",
                x_label=short_path(axes[0]) if are_numbers else "rise of perplexity, %",
                y_label="rise of perplexity, %" if are_numbers else "",
                series=[_series("grid", x, [cell["rise"] for cell in cells])],
            )
        )
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
    chart = Chart(
        name="stages",
        kind="bars",
        title="Held-out perplexity by stage",
        x_label="perplexity",
        y_label="",
        series=[
            Series(
                name="perplexity",
                x=[row["name"] for row in rows],
                y=[row["perplexity"] for row in rows],
                words=[f"{row['name']}: {row['perplexity']:.2f}" for row in rows],
            )
        ],
        log_x=max(row["perplexity"] for row in rows) > 5 * min(row["perplexity"] for row in rows),
    )
    table = Table(["stage", "perplexity"], [[row["name"], f"{row['perplexity']:.2f}"] for row in rows])
    return Section("Stages", "From the pretrained model to the hardware.", [chart, table])
