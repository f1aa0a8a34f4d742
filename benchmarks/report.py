"""What a run leaves behind: the terminal's tables and the results file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.aims import Aim
from benchmarks.case import DIGITAL, EAGER, SUBJECT, Result
from train.files import write_text

_COLOUR = {"aim met": "green", "met": "yellow", "missed": "red", "not measured": "dim"}


def write_results(path: Path, results: Sequence[Result], provenance: Mapping[str, Any]) -> None:
    """Replace `path` by JSON lines, one a result with its provenance; in one step, so that there is a whole file or the
    old one.

    Raises:
        ValueError: a result failed its check; numbers of something wrong are not written.
    """
    for result in results:
        if result.failed:
            raise ValueError(f"{result.case}, T={result.tokens}: {result.failed}; nothing is written")
    lines = []
    for result in results:
        fields = asdict(result)
        del fields["failed"], fields["skipped"]
        lines.append(json.dumps({**fields, **provenance}, ensure_ascii=False))
    write_text(path, "\n".join(lines) + "\n")


def aims_table(results: Sequence[Result], aims: Sequence[Aim], provenance: Mapping[str, Any]) -> Table:
    """The speed table: what was measured, its bound, and the aim."""
    table = Table(
        title=(
            f"Aims, on {provenance['device']}, {provenance['threads']} of {provenance['cores']} cores, torch"
            f" {provenance['torch']}"
        )
    )
    for column in ("case", "measured", "bound", "aim", ""):
        table.add_column(column, justify="left" if column in ("case", "") else "right")
    for aim in aims:
        value = aim.read(results)
        verdict = aim.verdict(value)
        sign = "≥" if aim.higher_is_better else "≤"
        measured = "–" if value is None else f"{value:.2f} ×"
        table.add_row(
            aim.text,
            measured,
            f"{sign} {aim.at_least:g} ×",
            f"{sign} {aim.aim:g} ×",
            f"[{_COLOUR[verdict]}]{verdict}[/]",
        )
    return table


def results_table(results: Sequence[Result]) -> Table:
    """Every point: medians, spread of the subject, ratios, memory, or why there is nothing."""
    table = Table(
        title=(
            "All cases: medians ± half the interquartile range; in brackets gain cell (or digital, where there is none)"
            " ÷ comparison"
        )
    )
    for column in ("case", "T", "W", "gain cell", "digital", "eager", "others", "n"):
        table.add_column(column, justify="left" if column in ("case", "others") else "right", overflow="fold")
    for result in results:
        if result.failed:
            table.add_row(result.case, str(result.tokens), str(result.window), "[red]FAILED[/]", "", "", "", "")
            continue
        where = (str(result.tokens), str(result.window))
        if result.median_s:
            subject = f"{seconds(result.median_s[result.subject])} ± {seconds(result.iqr_s[result.subject] / 2)}"
            times = _comparisons(result.median_s, result.time_ratio, seconds)
            if result.subject != SUBJECT:  # no gain cells in it: the subject is the digital one
                subject, times = "–", (subject, *times[1:])
            table.add_row(_with_batch(result), *where, subject, *times, str(result.repetitions))
        for what, of, ratios in (
            ("peak", result.peak_bytes, result.memory_ratio),
            ("held", result.held_bytes, result.held_ratio),
        ):
            if of:
                name = f"{result.case} [dim]({what})[/]" if result.median_s else result.case
                table.add_row(name, *where, size(of[SUBJECT]), *_comparisons(of, ratios, size), "")
    return table


def _with_batch(result: Result) -> str:
    """The case, and the batch where the points of a case differ in it."""
    return f"{result.case}, B={result.shapes['batch']}" if result.subject != SUBJECT else result.case


def one_line(result: Result) -> str:
    """What is said as soon as a point is done, in rich's markup."""
    place = f"{result.case}, T={result.tokens}, W={result.window}" + (
        f", B={batch}" if (batch := result.shapes.get("batch")) else ""
    )
    if result.skipped:
        return f"[yellow]skipped[/] {result.case}: {result.skipped.replace('[', '(').replace(']', ')')}"
    if result.failed:
        return f"[red]FAILED[/] {place}: {result.failed.replace('[', '(').replace(']', ')')}"
    figures = [f"{name} {seconds(value)}" for name, value in result.median_s.items()]
    figures += [f"{name} {size(value)}" for name, value in result.peak_bytes.items()]
    figures += [f"{name} holds {size(value)}" for name, value in result.held_bytes.items()]
    figures += [f"{name} {value:.3g} J" for name, value in result.energy_j.items()]
    return f"[green]✓[/] {place}: {', '.join(figures)}  [dim]({result.check})[/]"


def seconds(value: float) -> str:
    """Three digits and a unit."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def size(value: float) -> str:
    """Byte in mebibytes."""
    return f"{value / 2**20:.1f} MiB"


def _comparisons(values: Mapping[str, float], ratios: Mapping[str, float], written: Any) -> tuple[str, str, str]:
    """Digital, eager, and the other comparisons with their names."""
    others = ", ".join(
        f"{name}: {_against(values, ratios, name, written)}" for name in ratios if name not in (DIGITAL, EAGER)
    )
    return _against(values, ratios, DIGITAL, written), _against(values, ratios, EAGER, written), others


def _against(values: Mapping[str, float], ratios: Mapping[str, float], name: str, written: Any) -> str:
    return f"{written(values[name])} ({ratios[name]:.2f})" if name in ratios else "–"
