"""`python -m benchmarks.related`: published attention hardware beside this cost model, and states in gain cells."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from aimc.circuit.cost.related import CLAIMS, state_rows
from aimc.circuit.cost.report import si, times


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.related", description=__doc__)
    parser.add_argument("--width", type=int, default=None, metavar="COLUMNS", help="default: the terminal's")
    console = Console(highlight=False, width=parser.parse_args(arguments).width)
    console.print(claims_table())
    console.print(states_table())
    console.print(
        "A pair of cells a number; decay is leakage, complex states are kept in a turning frame; what else is assumed"
        " stands at the top of aimc/circuit/cost/state.py."
    )
    return 0


def claims_table() -> Table:
    """Published rows: claim, workload, what the model gives, what can be compared."""
    table = Table(
        title="Published, beside the cost model (claims are over each paper's own baselines)", show_lines=True
    )
    for name in ("what", "claims", "on", "the model, for a stand-in", "comparable?"):
        table.add_column(name)
    for claim in CLAIMS:
        table.add_row(
            f"{claim.name}\n{claim.source}\n{claim.kind}",
            claim.claims,
            claim.workload,
            f"{claim.stand_in}: {claim.model()}",
            claim.comparable,
        )
    return table


def states_table() -> Table:
    """State-space layers in cells beside a digital machine, by part."""
    table = Table(title="State-space layers, all of them, per token: in gain cells and digital")
    table.add_column("model", no_wrap=True)
    names = ("state", "in cells", "largest part", "digital, SRAM", "÷ cells", "state to memory", "÷ cells", "latency")
    for name in (*names, "area", "longest memory"):
        table.add_column(name, justify="right")
    for row in state_rows():
        energy_j = row.cost.energy_j
        part = max(energy_j, key=lambda name: energy_j[name])
        memory = row.cost.memory_tokens
        table.add_row(
            row.name,
            f"{row.shape.values:,}",
            si(energy_j.total, "J"),
            f"{part}, {100 * energy_j[part] / energy_j.total:.0f} %",
            si(row.on_chip_j, "J"),
            times(row.on_chip_j / energy_j.total),
            si(row.in_memory_j, "J"),
            times(row.in_memory_j / energy_j.total),
            si(row.cost.latency_s, "s"),
            si(row.cost.area_m2, "m²"),
            "–" if memory is None else f"{memory:,.0f} tokens",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
