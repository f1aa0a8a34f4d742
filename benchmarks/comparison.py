"""Digital attention as measured, beside what was published and what the cost model gives: one table, one CSV, one
figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from rich.table import Table

from aimc.circuit import ModelShape, attention_cost
from aimc.circuit.cost import published
from aimc.circuit.cost.report import si
from aimc.plot.style import BLACK, BLUE, RED
from benchmarks.baselines import CONTENDERS
from benchmarks.case import Result
from benchmarks.cases import BASELINE
from benchmarks.settings import Settings

MEASURED, PUBLISHED, MODEL = "measured", "published", "cost model"
_COLOUR = {MEASURED: BLUE, PUBLISHED: "#BBBBBB", MODEL: RED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Attention of one layer on one machine, per decoding step."""

    kind: str
    """`measured` here, `published` by others, or of the `cost model`."""
    machine: str
    dtype: str
    implementation: str
    batch: int
    """Sequences that share a step, each with its own keys and values."""
    heads: int
    head_size: int
    tokens: int
    """Keys that a query sees."""
    step_s: float
    """Latency of the step, second: what one sequence waits."""
    token_s: float
    """`step_s` ÷ `batch`, second: the inverse of the throughput."""
    token_energy_j: float | None
    """Energy of the step ÷ `batch`, joule; None: not measured."""
    energy_source: str
    load: float | None = None
    """Processes that wanted a core in the minute before the measurement, mean; None where nothing was measured here."""


def rows_of(results: Sequence[Result], settings: Settings, where: Mapping[str, Any]) -> list[Row]:
    """Measured rows, then published ones if the sizes are theirs, then that of arrays; none if the case was not run."""
    measured = [
        row for result in results if result.case == BASELINE and not result.failed for row in _measured(result, where)
    ]
    if not measured:
        return []
    sizes = (settings.heads, settings.head_size, settings.window)
    as_published = sizes == (published.HEADS, published.HEAD_SIZE, published.WINDOW)
    return [*measured, *(_published() if as_published else []), _arrays(settings)]


def fastest(rows: Sequence[Row]) -> list[Row]:
    """Of measured rows that differ in the implementation alone, the fastest: the one that arrays have to beat."""
    best: dict[tuple[str, str, str, int], Row] = {}
    for row in rows:
        key = (row.kind, row.machine, row.dtype, row.batch)
        if key not in best or row.step_s < best[key].step_s:
            best[key] = row
    return list(best.values())


def csv_text(rows: Sequence[Row]) -> str:
    """All rows as CSV; an empty field was not measured."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def comparison_table(rows: Sequence[Row]) -> Table:
    """All rows for the terminal."""
    first = rows[0]
    table = Table(
        title=(
            f"Attention of one decoding step, one layer: {first.heads} heads of {first.head_size}, {first.tokens} keys"
        )
    )
    for column in ("machine", "", "dtype", "implementation", "B", "step", "per token", "energy per token"):
        table.add_column(
            column,
            justify="right" if column in ("B", "step", "per token", "energy per token") else "left",
            overflow="fold",
        )
    for row in rows:
        times = (si(row.step_s, "s"), si(row.token_s, "s"))
        table.add_row(
            row.machine, row.kind, row.dtype, row.implementation, str(row.batch), *times, si(row.token_energy_j, "J")
        )
    if sources := dict.fromkeys(row.energy_source for row in rows if row.kind == MEASURED):
        table.caption = "; ".join(
            f"energy {source if source.startswith('not') else f'measured by {source}'}" for source in sources
        )
    return table


def comparison_figure(rows: Sequence[Row]) -> Figure:
    """Time and energy per token, logarithmic; of each dtype and batch the fastest implementation. A diamond is the
    latency of the step."""
    shown = fastest(rows)
    figure = Figure(figsize=(11.0, 1.9 + 0.42 * len(shown)), layout="constrained")
    first = shown[0]
    quiet = "" if first.load is None else f" (load of the machine before: {first.load:g})"
    figure.suptitle(
        f"Attention of one decoding step, one layer: {first.heads} heads of {first.head_size}, {first.tokens}"
        f" keys{quiet}"
    )
    left, right = figure.subplots(1, 2, sharey=True)
    times = [
        (row.token_s, si(row.token_s, "s") + (f", step {si(row.step_s, 's')}" if row.batch > 1 else ""))
        for row in shown
    ]
    energies = [(row.token_energy_j, si(row.token_energy_j, "J")) for row in shown]
    for axes, values, unit, title in ((left, times, "s", "time per token"), (right, energies, "J", "energy per token")):
        known = [value for value, _ in values if value is not None]
        low, high = 10**-0.7 * min(known), max(known)
        for y, (row, (value, text)) in enumerate(zip(shown, values, strict=True)):
            hatch = "///" if row.kind == PUBLISHED else ""
            if value is None:
                axes.text(low, y, "  not measured: no counter", va="center", fontsize="small", color="#555555")
                continue
            axes.barh(
                y, value - low, 0.62, left=low, color=_COLOUR[row.kind], hatch=hatch, edgecolor="white", linewidth=0.5
            )
            end = max(value, row.step_s) if unit == "s" else value
            axes.text(end, y, f"   {text}", va="center", fontsize="small")
        axes.set_xscale("log")
        axes.set_title(title)
        _decorate(axes, low, high, unit)
    left.plot([row.step_s for row in shown], range(len(shown)), "D", color=BLACK, markersize=4.5)
    left.set_xlim(right=max(row.step_s for row in shown) * 5000)
    left.set_yticks(range(len(shown)), [_label(row) for row in shown])
    left.set_ylim(len(shown) - 0.4, -0.6)
    handles: list[Any] = [Patch(color=_COLOUR[MEASURED], label="measured here")]
    handles += [
        Patch(
            facecolor=_COLOUR[PUBLISHED], hatch="///", edgecolor="white", label="published by others, not measured here"
        )
    ]
    handles += [Patch(color=_COLOUR[MODEL], label="gain cells, cost model")]
    handles += [Line2D([], [], marker="D", linestyle="", color=BLACK, markersize=4.5, label="latency of the step")]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return figure


def _decorate(axes: Axes, low: float, high: float, unit: str) -> None:
    axes.set_xlim(low, high * 60)
    axes.xaxis.set_major_locator(LogLocator(base=10, numticks=9))
    axes.xaxis.set_major_formatter(EngFormatter(unit=unit))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def _label(row: Row) -> str:
    return row.machine if row.kind == MODEL else f"{row.machine}, {row.dtype}, B={row.batch}"


def _measured(result: Result, where: Mapping[str, Any]) -> list[Row]:
    batch = result.shapes["batch"]
    machine = (
        str(where["device"])
        if str(where["device"]).startswith("NVIDIA")
        else f"{where['device']}, {where['threads']} threads"
    )
    rows = []
    for name, step_s in result.median_s.items():
        implementation, dtype = CONTENDERS[name]
        rows.append(
            Row(
                kind=MEASURED,
                machine=machine.replace(", 1 threads", ", 1 thread"),
                dtype=dtype,
                implementation=implementation,
                batch=batch,
                heads=result.shapes["heads"],
                head_size=result.shapes["head_size"],
                tokens=result.tokens,
                step_s=step_s,
                token_s=step_s / batch,
                token_energy_j=result.energy_j[name] / batch if name in result.energy_j else None,
                energy_source=result.energy_source or "",
                load=where["load"],
            )
        )
    return rows


def _published() -> list[Row]:
    return [
        Row(
            kind=PUBLISHED,
            machine=figure.name,
            dtype="float32",
            implementation=figure.source,
            batch=figure.batch,
            heads=published.HEADS,
            head_size=published.HEAD_SIZE,
            tokens=published.WINDOW,
            step_s=figure.latency_s * figure.batch,
            token_s=figure.latency_s,
            token_energy_j=figure.energy_j,
            energy_source="NVML or jtop, idle power subtracted [L25]",
        )
        for figure in published.GPU_FIGURES
    ]


def _arrays(settings: Settings) -> Row:
    shape = replace(
        ModelShape(), layers=1, query_heads=settings.heads, kv_heads=settings.heads, head_size=settings.head_size
    )
    cost = attention_cost(shape, settings.hardware(settings.window, backend="auto"))
    return Row(
        kind=MODEL,
        machine="gain cells",
        dtype="16/8/32 levels",
        implementation="aimc.circuit.attention_cost, default parameters",
        batch=1,
        heads=settings.heads,
        head_size=settings.head_size,
        tokens=settings.window,
        step_s=cost.latency_s.total,
        token_s=cost.latency_s.total,
        token_energy_j=cost.energy_j.total,
        energy_source="derived from [L25]",
    )
