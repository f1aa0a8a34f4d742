"""Tables of a characterisation: what was measured, where the time goes, the roofline, and the machines of the cost
model."""

from __future__ import annotations

from rich.table import Table

from aimc.circuit.cost.report import si
from aimc.evaluate.characterise import CLASSES, Characterisation
from aimc.evaluate.characterise.estimates import ARRAYS, DIGITAL, STATES
from aimc.evaluate.characterise.running import ESTIMATED

_SHORT = {DIGITAL: "digital", ARRAYS: "attention in cells", STATES: "states in cells too"}


def point_table(found: Characterisation) -> Table:
    """Models × lengths: time, memory and energy."""
    source = next((point.energy_source for point in found.points if point.energy_source), "")
    table = Table(title=f"Measured (weights are random; * a checkpoint). Energy: {source}")
    table.add_column("model", no_wrap=True)
    names = ("length", "first token", "per token", "tokens/s", "peak", "weights", "activations", "K/V", "state")
    for name in (*names, "energy/token"):
        table.add_column(name, justify="right")
    last = None
    for point in found.points:
        name = f"{point.model}{'' if point.weights == 'random' else ' *'}" if point.model != last else ""
        last = point.model
        if point.not_run:
            table.add_row(name, f"{point.length:,}", point.not_run)
            continue
        sizes = (point.peak_bytes, point.weights_bytes, point.activations_bytes, point.kv_bytes, point.state_bytes)
        table.add_row(
            name,
            f"{point.length:,}",
            si(point.first_token_s, "s"),
            si(point.token_s, "s"),
            si(point.tokens_per_s, ""),
            *(si(size, "B") for size in sizes),
            si(point.token_j, "J"),
        )
    return table


def class_tables(found: Characterisation) -> list[Table]:
    """Share of each class of operator in the host's time, and in the device's where there is one, at the longest length
    at which each model was profiled. The total is a clock's, not the sum's."""
    profiled = {point.model: point for point in found.points if point.prompt.profiled_s}
    if not profiled:
        return []
    tables = [_class_table(found, "host")]
    if any(any(point.prompt.device_s.values()) for point in profiled.values()):
        tables.append(_class_table(found, "device"))
    return tables


def _class_table(found: Characterisation, place: str) -> Table:
    idle = "; what is missing to 100 it is idle" if place == "device" else ""
    table = Table(title=f"Where the {place}'s time goes while profiled, % of the call, by class of operator{idle}")
    table.add_column("class", no_wrap=True)
    columns = []
    for point in {point.model: point for point in found.points if point.prompt.profiled_s}.values():
        for call, phase in (("prompt", point.prompt), ("token", point.token)):
            times = phase.host_s if place == "host" else phase.device_s
            total = phase.profiled_s if place == "host" else phase.device_elapsed_s
            if total:
                table.add_column(f"{point.model}\n{point.length:,}\n{call}", justify="right")
                columns.append((times, total))
    for name in CLASSES:
        if any(times[name] for times, _ in columns):
            shares = (f"{100 * times[name] / total:.1f}" if times[name] else "–" for times, total in columns)
            table.add_row(name, *shares)
    table.add_row("sum", *(f"{100 * sum(times.values()) / total:.1f}" for times, total in columns))
    table.add_row("the call took", *(si(total, "s") for _, total in columns))
    return table


def machine_table(found: Characterisation) -> Table | None:
    """Work, arithmetic intensity and the place under the roofline."""
    roofline = found.roofline
    counted = [point for point in found.points if point.prompt.flops and point.first_token_s and point.token_s]
    if roofline is None or not counted:
        return None
    table = Table(
        title=f"Under the measured roofline: {si(roofline.flops_per_s, 'FLOP/s')}, {si(roofline.bytes_per_s, 'B/s')},"
        f" ridge at {roofline.ridge:.1f} FLOP/B"
    )
    table.add_column("model", no_wrap=True)
    for name in ("length", "call", "work", "FLOP/B", "limit", "reached", "of the roof"):
        table.add_column(name, justify="right")
    for point in counted:
        calls = (("prompt", point.prompt, point.first_token_s), ("token", point.token, point.token_s))
        for call, phase, seconds in calls:
            if phase.flops is None or phase.intensity is None or seconds is None:
                continue
            reached, roof = phase.flops / seconds, roofline.roof(phase.intensity)
            limit = "memory" if phase.intensity < roofline.ridge else "products"
            row = (si(phase.flops, "FLOP"), f"{phase.intensity:.2f}", limit, si(reached, "FLOP/s"))
            table.add_row(point.model, f"{point.length:,}", call, *row, f"{100 * reached / roof:.1f} %")
    return table


def estimate_table(found: Characterisation) -> Table | None:
    """The machines of the cost model."""
    if not found.estimates:
        return None
    table = Table(title="Not measured: the cost model, one sequence, its digital parts at this machine's roofline")
    table.add_column("model", no_wrap=True)
    table.add_column("machine", no_wrap=True)
    names = ("length", "first token", "per token", "energy/token", "of it mixing", "cells")
    for name in (*names, "oldest keeps", "at this pace"):
        table.add_column(name, justify="right")
    for estimate in sorted(found.estimates, key=lambda e: (e.model, e.machine)):
        table.add_row(
            estimate.model,
            _SHORT[estimate.machine],
            f"{estimate.length:,}",
            si(estimate.first_token_s, "s"),
            si(estimate.token_s, "s"),
            si(estimate.token_j, "J"),
            si(estimate.mixing_j, "J"),
            "–" if estimate.machine == DIGITAL else si(estimate.cells, ""),
            *(_percent(kept) for kept in (estimate.kept, estimate.kept_waiting)),
        )
    return table


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    return f"{100 * share:.2g} %" if share > 1e-5 else "nothing"


_UNITS = {"time to first token": "s", "time per output token": "s", "peak memory": "B"}


def winner_table(found: Characterisation) -> Table | None:
    """Lengths × quantities: which model takes least, and by how much less than the next."""
    if not found.winners:
        return None
    missing = any(winner.missing for winner in found.winners)
    table = Table(
        title="Who takes least at each length (× what the next takes)"
        f"{'; * others were not measured there' if missing else ''}"
    )
    quantities = list(dict.fromkeys(winner.quantity for winner in found.winners))
    table.add_column("length", justify="right")
    for quantity in quantities:
        table.add_column(f"{quantity}{', cost model' if quantity == ESTIMATED else ''}")
    for length in sorted({winner.length for winner in found.winners}):
        at = {winner.quantity: winner for winner in found.winners if winner.length == length}
        cells = []
        for quantity in quantities:
            winner = at.get(quantity)
            if winner is None:
                cells.append("–")
                continue
            name = winner.model
            for long, short in _SHORT.items():
                name = name.replace(f", {long}", f", {short}")
            less = "" if winner.ratio is None else f" (× {winner.ratio:.3g})"
            value = si(winner.value, _UNITS.get(quantity, "J"))
            cells.append(f"{name}{' *' if winner.missing else ''}\n{value}{less}")
        table.add_row(f"{length:,}", *cells)
    return table


def crossover_table(found: Characterisation) -> Table | None:
    """Which of two takes less at the longest length of both, and from which length on."""
    if not found.crossovers:
        return None
    table = Table(title="Who takes less, from which length on")
    for name in ("of", "less", "than"):
        table.add_column(name)
    table.add_column("from tokens", justify="right")
    table.add_column("seen up to", justify="right")
    last = None
    for crossing in found.crossovers:
        start = "all" if crossing.from_length is None else f"{crossing.from_length:,.0f}"
        quantity = crossing.quantity if crossing.quantity != last else ""
        last = crossing.quantity
        table.add_row(quantity, crossing.winner, crossing.other, start, f"{crossing.until:,}")
    return table
