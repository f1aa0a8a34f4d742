"""Results of a study on the terminal, and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from aimc.circuit.cost.report import si
from aimc.evaluate.study.effects import Effect, written

from .files import write_text
from .tables import warned

MOST_ROWS = 20
"""Of a table on the terminal; the files have all."""


def shown(results: dict[str, Any]) -> Iterator[Table | str]:
    """A table a part, or why it has none."""
    tables: dict[str, Callable[[Any], Table]] = {
        "sensitivity": _sensitivity,
        "tolerance": _tolerance,
        "specification": _specification,
        "layers": _layers,
        "grid": _grid,
    }
    for part, found in results.items():
        if isinstance(found, dict) and "error" in found:
            yield f"{warned(part)}: not measured, {found['error']}"
        else:
            yield tables[part](found)
            if part == "layers" and (lines := remedies(found)):
                yield f"For a rise of {_percent(found['budget'])} %:\n  " + "\nor\n  ".join(lines)


def percent(interval: dict[str, float] | None) -> str:
    """`+3.1 % (2.0 … 4.4)`."""
    if interval is None:
        return "–"
    value, low, high = (_percent(interval[end]) for end in ("value", "low", "high"))
    return f"{value} % ({low} … {high})"


def _percent(value: float) -> str:
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) < 5e-5:
        return "0.00"
    digits = 2 if abs(value) < 0.1 else 1 if abs(value) < 1 else 0
    return f"{100 * value:+.{digits}f}".replace("-", "−")


def size_words(curve: dict[str, Any], size: float | None) -> str:
    """A size of an effect with its unit."""
    effect = Effect(curve["name"], curve["label"], curve["unit"], "", 0.0, 0.0)
    if size is not None and not math.isfinite(size):
        return "∞"
    if curve["unit"] == "levels" and size is not None:
        return f"{size:.0f} levels"
    # a table says it once, in the column of what is now
    return "0" if size == 0 else written(effect, size).replace(" of full scale", "")


def tolerance_words(curve: dict[str, Any], tolerance: dict[str, Any]) -> str:
    """`31.7 mV (4.3 … 106)`; units of the ends where they are others."""
    size, words = tolerance["size"], tolerance["words"].replace(" of full scale", "")
    if size is None:
        return words
    ends = [size_words(curve, size[end]) for end in ("low", "high")]
    unit = words.partition(" ")[2]
    if all(end in ("0", "∞") or end.partition(" ")[2] == unit for end in ends):
        ends = [end.partition(" ")[0] for end in ends]
    return f"{words} ({' … '.join(ends)})"


def _sensitivity(found: dict[str, Any]) -> Table:
    table = Table(title=f"Which non-ideality costs how much (all of them: {percent(found['rise'])})")
    for column in ("non-ideality", "size"):
        table.add_column(column)
    table.add_column("alone", justify="right")
    table.add_column("saved if it alone goes", justify="right")
    for row in found["rows"]:
        table.add_row(row["label"], row["size"], percent(row["alone"]), percent(row["saved"]))
    return table


def _tolerance(found: list[dict[str, Any]]) -> Table:
    table = Table(title="How large each may be, for a rise of perplexity")
    table.add_column("non-ideality")
    table.add_column("now")
    for tolerance in found[0]["tolerances"] if found else ():
        table.add_column(f"+{100 * tolerance['rise']:g} %", justify="right")
    for curve in found:
        words = [tolerance_words(curve, tolerance) for tolerance in curve["tolerances"]]
        table.add_row(curve["label"], size_words(curve, curve["own"]), *words)
    return table


def circuit_words(values: dict[str, Any]) -> list[str]:
    """Values of a circuit, with units where a field's name has one."""
    units = {"_f": "F", "_v": "V", "_s": "s", "_m": "m", "_j": "J"}
    words = []
    for path, value in values.items():
        unit = next((unit for end, unit in units.items() if path.endswith(end)), "")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        words.append(si(value, unit) if unit and is_number else str(value))
    return words


def _specification(found: dict[str, Any]) -> Table:
    chosen = found["cheapest"]
    title = f"Circuits on the front; budget {_percent(found['budget'])} %: "
    title += "none is within it" if chosen is None else "the cheapest is marked"
    table = Table(title=title)
    for path in found["axes"]:
        table.add_column(path.rpartition(".")[0].removeprefix("hardware.") if path.endswith(".n_levels") else path)
    for column in ("energy/token", "perplexity rises"):
        table.add_column(column, justify="right")
    table.add_column("")
    for i, circuit in enumerate(found["circuits"]):
        if circuit["on_front"] or i == chosen:
            marks = [word for at, word in ((chosen, "cheapest"), (found["surely"], "surely within")) if i == at]
            energy = si(circuit["energy_j"], "J")
            table.add_row(*circuit_words(circuit["values"]), energy, percent(circuit["rise"]), ", ".join(marks))
    return table


def _layers(found: dict[str, Any]) -> Table:
    few = {None: "; not even all layers digital are enough", 0: "; none has to stay digital"}
    skip = found["skip_layers"]
    words = few.get(skip if skip is None else len(skip), "")
    table = Table(title=f"Which layers and heads mind{words}")
    table.add_column("alone on the arrays")
    table.add_column("KL, nat a token", justify="right")
    for unit in [*found["ranking"], *found["heads"]][:MOST_ROWS]:
        name = f"layer {unit['layer']}" + ("" if unit["head"] is None else f" head {unit['head']}")
        kl = unit["kl"]
        table.add_row(name, f"{kl['value']:.4f} ({kl['low']:.4f} … {kl['high']:.4f})")
    return table


def remedies(found: dict[str, Any]) -> list[str]:
    """Lines to be copied, each of which alone keeps a model within the budget; none where it is, or cannot be."""
    lines = []
    skip, protection = found["skip_layers"], found.get("protection")
    if skip:
        lines.append(f"aimc.convert(model, hardware, skip_layers={skip})")
    if protection and skip != []:
        lines.append(f"hardware.protection.n_sink={protection[0]} hardware.protection.n_recent={protection[1]}")
    return lines


def _grid(found: dict[str, Any]) -> Table:
    table = Table(title=f"Grid, {len(found['cells'])} points, {len(found['refused'])} that cannot be")
    for path in found["axes"]:
        table.add_column(path)
    table.add_column("perplexity", justify="right")
    table.add_column("rises", justify="right")
    for cell in found["cells"][:MOST_ROWS]:
        table.add_row(*map(str, cell["values"].values()), f"{cell['perplexity']['value']:.2f}", percent(cell["rise"]))
    return table


def write_csv(folder: Path, part: str, found: Any) -> None:
    """The rows of a part, one file; an interval is three columns."""
    if isinstance(found, dict) and "error" in found:
        return
    rows = list(rows_of(part, found))
    if rows:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_text(folder / f"{part}.csv", text.getvalue())


def rows_of(part: str, found: Any) -> Iterator[dict[str, Any]]:
    """Flat rows of a part's results."""
    if part == "sensitivity":
        for row in found["rows"]:
            name = {"name": row["name"], "label": row["label"], "size": row["size"]}
            yield name | _ends("rise_alone", row["alone"]) | _ends("saved_without", row["saved"])
    elif part == "tolerance":
        for curve in found:
            for tolerance in curve["tolerances"]:
                what = {
                    "name": curve["name"],
                    "label": curve["label"],
                    "unit": curve["unit"],
                    "rise": tolerance["rise"],
                }
                yield what | _ends("size", tolerance["size"]) | {"words": tolerance["words"]}
    elif part == "specification":
        for i, circuit in enumerate(found["circuits"]):
            numbers = {name: circuit[name] for name in ("energy_j", "latency_s", "area_m2", "tau_s", "on_front")}
            yield circuit["values"] | numbers | _ends("rise", circuit["rise"]) | {"cheapest": i == found["cheapest"]}
    elif part == "layers":
        for unit in [*found["ranking"], *found["heads"]]:
            yield {"layer": unit["layer"], "head": unit["head"]} | _ends("kl_nat", unit["kl"])
    else:
        for cell in found["cells"]:
            yield cell["values"] | _ends("perplexity", cell["perplexity"]) | _ends("rise", cell["rise"])


def _ends(name: str, interval: dict[str, float] | None) -> dict[str, float | None]:
    ends: dict[str, Any] = interval or {"value": None, "low": None, "high": None}
    return {name: ends["value"], f"{name}_low": ends["low"], f"{name}_high": ends["high"]}
