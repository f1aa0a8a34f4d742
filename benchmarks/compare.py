"""`python -m benchmarks.compare --commit COMMIT`, or `--base DIR`: is this tree slower than another one?

`make bench BASE=COMMIT` is the same; the commit is checked out in a scratch clone that is removed afterwards.

Two processes, each with its own tree on the path, take turns at every case: the order changes from round to round, and
only one of them works at a time. A row says the least time and the median of each, the ratio of both, and whether both
computed the same. A case that the other tree does not know yet is skipped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.commits import CommitError, scratch_clone, subject
from benchmarks.contenders import MAKERS, OPERATORS
from benchmarks.report import seconds

HERE, BASE = "here", "base"
SAME = 1e-9
"""Relative difference of sums up to which two results are the same but for the order of additions."""
SIZES = {"heads": 12, "head_size": 64, "window": 1024, "layers": 12, "vocabulary": 50257}
QUICK_SIZES = {"heads": 2, "head_size": 16, "window": 64, "layers": 2, "vocabulary": 64}


class TreeError(RuntimeError):
    """A tree whose process does not start, or ends in the middle."""


class Tree:
    """A process that times cases with the `aimc` of one tree.

    Raises:
        TreeError: it does not start, or takes another `aimc` than the tree's.
    """

    def __init__(self, folder: Path, sizes: dict[str, int], device: str, threads: int) -> None:
        self.folder = folder.resolve()
        script = Path(__file__).with_name("contenders.py")
        command = [sys.executable, str(script), "--sizes", json.dumps(sizes), "--device", device]
        self.process = subprocess.Popen(
            [*command, "--threads", str(threads)],
            env=os.environ | {"PYTHONPATH": str(self.folder), "PYTHONSAFEPATH": "1"},
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = Path(self._answer()["tree"]).resolve()
        if found != self.folder:
            self.close()
            raise TreeError(f"{self.folder} has no aimc: {found} was taken; give the folder that holds aimc/")

    def time(self, case: Sequence[Any], repetitions: int) -> dict[str, Any]:
        """Seconds of each repetition and a digest of the last result, or why it failed."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([*case, repetitions]) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise TreeError(f"the process of {self.folder} ended with code {self.process.wait()}; its error is above")
        return json.loads(line)


@dataclass(slots=True, kw_only=True)
class Row:
    """One case on both trees."""

    case: str
    backend: str
    tokens: int
    times: dict[str, list[float]] = field(default_factory=dict)
    """Tree to seconds."""
    digests: dict[str, list[float]] = field(default_factory=dict)
    """Tree to sum and norm of what was computed."""
    failed: dict[str, str] = field(default_factory=dict)
    """Tree to why there is no number."""
    skipped: str | None = None
    """What the base lacks for this case; None: nothing."""

    @property
    def least(self) -> float:
        """Least time here ÷ at the base: noise only ever adds."""
        return min(self.times[HERE]) / min(self.times[BASE])

    @property
    def median(self) -> float:
        """Median here ÷ at the base."""
        return statistics.median(self.times[HERE]) / statistics.median(self.times[BASE])

    @property
    def difference(self) -> float:
        """Largest relative difference of the two digests; 0: the same bits, as far as sums can tell."""
        pairs = zip(self.digests[HERE], self.digests[BASE], strict=True)
        return max(0.0 if a == b else abs(a - b) / max(abs(a), abs(b)) for a, b in pairs)


def compare(trees: dict[str, Tree], case: tuple[str, str, int], *, rounds: int, seconds_each: float) -> Row:
    """Both trees in turn, in changing order.

    Args:
        trees: :data:`HERE` and :data:`BASE`.
        case: name, backend and tokens.
        rounds: how often each has its turn.
        seconds_each: aim for the time of one turn; a turn has one repetition at least.
    """
    row = Row(case=case[0], backend=case[1], tokens=case[2])
    slowest = 0.0
    for name, tree in trees.items():
        answer = tree.time(case, 2)  # builds it, and the first call is mostly set-up
        if name == BASE and "unknown" in answer:
            row.skipped = answer["unknown"]
            continue
        if "unknown" in answer:
            answer = {"failed": answer["unknown"]}
        if "failed" in answer:
            row.failed[name] = answer["failed"]
            continue
        row.times[name], row.digests[name] = [], answer["digest"]
        slowest = max(slowest, answer["seconds"][-1])
    if row.failed or row.skipped:
        return row
    repetitions = max(1, min(50, math.floor(seconds_each / slowest)))
    for i in range(rounds):
        for name in (HERE, BASE) if i % 2 else (BASE, HERE):
            row.times[name] += trees[name].time(case, repetitions)["seconds"]
    return row


def cases(names: Sequence[str], tokens: Sequence[int], backends: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Operators at every length and backend; their variants and models with the fast backend, at the longest."""
    for name in names:
        if name in OPERATORS:
            yield from ((name, backend, t) for t in tokens for backend in backends)
        else:
            yield name, backends[-1], max(tokens)


def table_of(rows: Sequence[Row], slower: float) -> Table:
    """All rows; red where the least time is more than `slower` times that of the base."""
    table = Table(title="this tree ÷ base, alternating; least time and median")
    for column in ("case", "backend", "T", "base: least", "median", "here: least", "median", "ratio: least", "median"):
        table.add_column(column, justify="left" if column in ("case", "backend") else "right")
    table.add_column("n", justify="right")
    table.add_column("result")
    for row in rows:
        first = (row.case, row.backend, str(row.tokens))
        if row.failed:
            why = "; ".join(f"{name}: {reason}" for name, reason in row.failed.items()).replace("[", "(")
            table.add_row(*first, *[""] * 7, f"[red]FAILED[/] {why}")
            continue
        if row.skipped:
            table.add_row(*first, *[""] * 7, "[yellow]skipped[/]: the base does not know it")
            continue
        times = [seconds(f(row.times[name])) for name in (BASE, HERE) for f in (min, statistics.median)]
        colour = "red" if row.least > slower else "green"
        same = (
            "same bits" if row.difference == 0 else "same" if row.difference <= SAME else f"{row.difference:.0e} apart"
        )
        ratios = (f"[{colour}]{row.least:.3f}[/]", f"{row.median:.3f}")
        table.add_row(*first, *times, *ratios, str(len(row.times[HERE])), same)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if no case is slower than allowed, 1 if one is or fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    other = parser.add_mutually_exclusive_group(required=True)
    other.add_argument("--base", type=Path, metavar="DIR", help="the other tree, which holds aimc/")
    other.add_argument("--commit", metavar="COMMIT", help="the other tree: a commit of this repository")
    parser.add_argument("--cases", nargs="+", choices=list(MAKERS), default=list(MAKERS), metavar="NAME")
    parser.add_argument("--tokens", nargs="+", type=int, metavar="T", help="default: 256 1024")
    parser.add_argument("--backends", nargs="+", metavar="NAME", help="the last one runs the models")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each tree a case (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="aim for one turn (default: %(default)s)")
    parser.add_argument(
        "--slower", type=float, default=1.05, help="allowed ratio of least times (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that it runs")
    parser.add_argument("--width", type=int, metavar="COLUMNS", help="of the table (default: the terminal's)")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backends = options.backends or ["eager", "triton" if device == "cuda" else "blocked"]
    tokens = options.tokens or ([32, 64] if options.quick else [256, 1024])
    sizes, console = (QUICK_SIZES if options.quick else SIZES), Console(width=options.width)
    wanted = list(cases(options.cases, tokens, backends))
    try:
        with scratch_clone(options.commit) if options.commit else nullcontext(options.base) as base:
            if options.commit:
                console.print(f"base: {subject(options.commit)}", markup=False, highlight=False)
            folders = {HERE: Path(__file__).parents[1], BASE: base}
            with _processes(folders, sizes, device, options.threads) as trees:
                rows = list(_measure(trees, wanted, options, console))
    except (TreeError, CommitError) as error:
        console.print(f"stopped: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    console.print(table_of(rows, options.slower))
    return int(any(row.failed or (not row.skipped and row.least > options.slower) for row in rows))


@contextmanager
def _processes(folders: dict[str, Path], sizes: dict[str, int], device: str, threads: int) -> Iterator[dict[str, Tree]]:
    trees: dict[str, Tree] = {}
    try:
        for name, folder in folders.items():
            trees[name] = Tree(folder, sizes, device, threads)
        yield trees
    finally:
        for tree in trees.values():
            tree.close()


def _measure(
    trees: dict[str, Tree], wanted: Sequence[tuple[str, str, int]], options: argparse.Namespace, console: Console
) -> Iterator[Row]:
    for case in wanted:
        row = compare(trees, case, rounds=options.rounds, seconds_each=options.seconds)
        if row.skipped:
            ratio = f"skipped, the base does not know it ({row.skipped})"
        else:
            ratio = "failed" if row.failed else f"{row.least:.3f}"
        console.print(f"{case[0]}, {case[1]}, T={case[2]}: {ratio}", markup=False, highlight=False, soft_wrap=True)
        yield row


if __name__ == "__main__":
    sys.exit(main())
