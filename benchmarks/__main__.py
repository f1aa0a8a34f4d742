"""`python -m benchmarks`: run the cases, say how they compare with the aims, write results and plots."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from aimc.circuit.cost.model import gains_table
from aimc.hardware import BACKENDS
from aimc.plot.cost import amdahl
from aimc.plot.style import save
from benchmarks.aims import CPU_AIMS, GPU_AIMS
from benchmarks.case import Case, Result
from benchmarks.cases import CASES, FORWARD, TRAINING, measure
from benchmarks.comparison import comparison_figure, comparison_table, csv_text, rows_of
from benchmarks.figures import memory_figure, time_figure
from benchmarks.machine import provenance
from benchmarks.report import aims_table, one_line, results_table, write_results
from benchmarks.settings import Settings, default_settings, quick_settings
from benchmarks.whole_model import measured_model
from train.files import write_text

RESULTS = Path(__file__).parent / "results"
PARTIAL = RESULTS / "partial"
"""Of runs of some cases or lengths, or of small shapes, which are not to stand in place of a whole one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 if every check passed and the results are written, 1 if one failed and nothing is, 130 on Ctrl-C."""
    options = _parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = _settings(options)
    cases = [case for case in CASES if options.cases is None or case.name in options.cases]
    console = Console(width=options.width)
    where = provenance(settings.device)
    console.print(
        f"{where['device']}, {where['threads']} of {where['cores']} cores, load {where['load']}, torch"
        f" {where['torch']}, {settings.dtype}, backend {settings.backend}"
    )
    try:
        results = run(cases, settings, console)
    except KeyboardInterrupt:
        console.print("[red]interrupted[/]: nothing is written, earlier results stay as they are")
        return 130
    console.print(results_table(results))
    console.print(aims_table(results, GPU_AIMS if settings.device == "cuda" else CPU_AIMS, where))
    if rows := rows_of(results, settings, where):
        console.print(comparison_table(rows))
    if whole := measured_model(results, settings, where):
        console.print(gains_table(whole.gains), highlight=False, soft_wrap=True)
    failed = [result for result in results if result.failed]
    for result in failed:
        console.print(one_line(result))
    if failed:
        console.print(
            f"[red]{len(failed)} of {len(results)} failed[/]: nothing is written, earlier results stay as they are"
        )
        return 1
    folder = options.out or (PARTIAL if options.quick or options.cases or options.tokens else RESULTS)
    write(folder, results, settings, where)
    console.print(f"written to {folder}", soft_wrap=True)
    return 0


def run(cases: Sequence[Case], settings: Settings, console: Console) -> list[Result]:
    """Every point of the cases, one after another, each said as soon as it is done; those that are skipped are only
    said."""
    results = []
    for case in cases:
        for make in case.points(settings):
            result = measure(case, make, settings)
            console.print(one_line(result), soft_wrap=True, highlight=False)
            if not result.skipped:
                results.append(result)
    return results


def write(folder: Path, results: Sequence[Result], settings: Settings, where: dict[str, Any]) -> None:
    """Results file, CSV and figures."""
    write_results(folder / "bench.jsonl", results, where)
    setup = (
        f"{where['device']}, {where['threads']} of {where['cores']} cores, {settings.dtype}; B={settings.batch},"
        f" H={settings.heads}, D={settings.head_size}, W={settings.window}"
    )
    names = {result.case for result in results}
    if names & {FORWARD, TRAINING}:
        save(time_figure(results, f"Time of attention\n{setup}", settings.window), folder / "time.png")
    if TRAINING in names:
        save(memory_figure(results, f"Memory of forward+backward\n{setup}", settings.window), folder / "memory.png")
    if rows := rows_of(results, settings, where):
        write_text(folder / "baseline.csv", csv_text(rows))
        save(comparison_figure(rows), folder / "baseline.png")
    if whole := measured_model(results, settings, where):
        save(amdahl(whole.gains), folder / "amdahl.png")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Speed and memory of gain-cell attention, checked and compared.",
        epilog=(
            "Against an earlier commit, case by case: python -m benchmarks.compare --commit COMMIT, or make bench"
            " BASE=COMMIT."
        ),
    )
    names = [case.name for case in CASES]
    parser.add_argument(
        "--cases", nargs="+", choices=names, metavar="NAME", help=f"only these, of: {', '.join(map(repr, names))}"
    )
    parser.add_argument(
        "--tokens", nargs="+", type=_positive_int, metavar="T", help="sequence lengths of the operator's cases"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small shapes, to see that it runs; the numbers mean nothing"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"where results and plots go (default: {RESULTS}; with --quick, --cases or --tokens {PARTIAL.name} in it)",
    )
    parser.add_argument(
        "--seconds", type=_positive, metavar="S", help="aim for the time of one point; never fewer than 3 repetitions"
    )
    parser.add_argument("--threads", type=_positive_int, metavar="N", help="CPU threads (default: torch's choice)")
    parser.add_argument(
        "--backend", choices=BACKENDS, help="the implementation to measure (default: blocked on a CPU, triton on a GPU)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of everything (default: float32 on a CPU, bfloat16 on a GPU)"
    )
    parser.add_argument(
        "--width", type=_positive_int, default=None, metavar="COLUMNS", help="of the tables (default: the terminal's)"
    )
    return parser.parse_args(arguments)


def _settings(options: argparse.Namespace) -> Settings:
    settings = quick_settings() if options.quick else default_settings()
    changes = {
        name: getattr(options, name) for name in ("seconds", "backend", "dtype") if getattr(options, name) is not None
    }
    if options.tokens:
        changes["tokens"] = tuple(sorted(set(options.tokens)))
    return replace(settings, **changes)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: give a positive number")
    return value


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number above zero")
    return value


if __name__ == "__main__":
    sys.exit(main())
