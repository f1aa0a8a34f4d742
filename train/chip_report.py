"""What a whole chip came to: tables, whole_chip.json and two figures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from aimc import plot
from aimc.plot.chip import ageing_curve, budget_points
from aimc.static.programming import TIMES_S

from .files import write_json

if TYPE_CHECKING:
    from aimc.circuit import ChipCost
    from aimc.evaluate.ageing import AgedPerplexity
    from aimc.evaluate.perplexity import Perplexity

    from .schema import WholeChipConfig


def budget_table(budget: dict[str, Perplexity], since_programming_s: float) -> Table:
    """Perplexity by row, mean and standard deviation over chips, and its ratio to the digital model."""
    first = next(iter(budget.values()))
    table = Table(
        title=(
            f"Budget of error, {time_name(since_programming_s)} after programming, drift compensated"
            f" ({first.n_tokens:,} tokens)"
        )
    )
    table.add_column("analog")
    for column in ("perplexity", "± std", "chips", "÷ digital"):
        table.add_column(column, justify="right")
    for name, value in budget.items():
        spread = f"{value.std:.2f}" if len(value.per_chip) > 1 else "–"
        table.add_row(
            name, f"{value.mean:.2f}", spread, str(len(value.per_chip)), f"{value.mean / budget['digital'].mean:.3f}"
        )
    return table


def ageing_table(curves: dict[str, list[AgedPerplexity]], digital: float) -> Table:
    """Perplexity by time since programming: mean ± standard deviation over programmings, and its ratio to the digital
    model."""
    table = Table(title="Perplexity since programming (÷ digital)")
    table.add_column("static clock")
    columns = [(name, kind) for name in curves for kind in (True, False)]
    for name, kind in columns:
        table.add_column(f"{name}, {'compensated' if kind else 'not compensated'}", justify="right")
    times = sorted({r.since_programming_s for curve in curves.values() for r in curve})
    at = {(name, r.since_programming_s, r.compensated): r.perplexity for name, curve in curves.items() for r in curve}
    for time in times:
        cells = [at[name, time, kind] for name, kind in columns]
        table.add_row(time_name(time), *(f"{p.mean:.2f} ± {p.std:.2f} ({p.mean / digital:.3f})" for p in cells))
    return table


def time_name(seconds: float) -> str:
    """`1 day` for 86400, `90 s` for a time without a name."""
    return next((name for name, time in TIMES_S.items() if time == seconds), f"{seconds:g} s")


def cost_lines(cost: ChipCost) -> str:
    """What the whole chip costs a token."""
    return (
        f"Cost, static tiles by the figures of a published 14-nm chip ({cost.static.utilisation:.0%} full,"
        f" {cost.static.energy_per_mac_j * 1e12:.2f} pJ a multiply-accumulate), arrays by the published gain-cell"
        f" figures:\n{cost}"
    )


def write(
    folder: Path,
    settings: WholeChipConfig,
    budget: dict[str, Perplexity],
    curves: dict[str, list[AgedPerplexity]],
    cost: ChipCost,
) -> None:
    """whole_chip.json and the figures; without curves, what an earlier run drew of them is taken away."""
    plot.save(budget_points(budget), folder / "budget.png")
    if curves:
        plot.save(ageing_curve(curves, digital=budget["digital"].mean), folder / "retention.png")
    else:
        (folder / "retention.png").unlink(missing_ok=True)
    write_json(folder / "whole_chip.json", _results(settings, budget, curves, cost))


def _results(
    settings: WholeChipConfig, budget: dict[str, Perplexity], curves: dict[str, list[AgedPerplexity]], cost: ChipCost
) -> dict[str, Any]:
    told = json.loads(json.dumps(asdict(settings)))
    static = cost.static
    derived = {
        name: getattr(static, name)
        for name in ("tokens_per_s", "pipelined_tokens_per_s", "tokens_per_j", "energy_per_mac_j")
    }
    whole = {name: getattr(cost, name) for name in ("energy_j", "latency_s", "area_m2", "tokens_per_s", "tokens_per_j")}
    return {
        "settings": {name: value for name, value in told.items() if name not in ("output_dir", "data")},
        "budget": {name: asdict(value) for name, value in budget.items()},
        "retention": {name: [asdict(r) for r in curve] for name, curve in curves.items()},
        "static tiles": asdict(static) | derived,
        "whole chip": whole,
    }
