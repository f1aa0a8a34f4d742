"""`make faults`: run the trials, within a quarter of an hour on two cores, and write docs/faults.md."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from tests.conftest import REPOSITORY
from tests.faults import configs, files, runs
from tests.faults.bench import Bench, Outcome

TRIALS = [
    (
        "killed at a random moment (SIGKILL, SIGTERM, SIGHUP)",
        "given again: same weights, no finished stage again",
        runs.kills,
    ),
    ("killed inside a write", "given again: same weights", runs.kills_in_writes),
    ("a file of a finished stage changed", "stage made again, or one line that names the file", files.finished_stages),
    (
        "files of a point to resume from changed",
        "goes on from the point before, to the same weights",
        files.resume_points,
    ),
    ("a file of the token cache changed", "made again, same weights", files.tokens),
    ("a file of a checkpoint changed, then loaded", "one line that names it, or the same numbers", files.checkpoints),
    ("two runs on one cache or one output folder", "right tokens; one line for a loser", runs.pairs),
    ("disk full while saving or tokenising", "one line; with room the same command ends right", runs.full_disks),
    ("odd places: files, links, names, ASCII terminal, clock", "works, or one line", runs.odd_places),
    ("a reading process or a rank that dies", "one line, status 75; the same command goes on", runs.crashes),
    ("odd texts: empty, binary, words without end", "works in a minute, or one line", runs.texts),
    ("no network: dataset, model, W&B", "one line in 10 s; W&B: the run goes on", runs.no_network),
    ("checkpoints and configs from a stranger", "nothing of theirs runs", files.strangers),
    ("malformed settings", "one line that names the field", configs.malformed),
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=14.0, help="time for all trials")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the trials")
    parser.add_argument("--only", default="", help="words in the names of the trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, default=REPOSITORY / "docs" / "faults.md")
    arguments = parser.parse_args()
    os.chdir(REPOSITORY)
    import train.pipeline
    import train.report  # noqa: F401

    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-", dir=os.environ.get("TMPDIR")) as root:
        bench = Bench(Path(root), arguments.seed, started + 60 * arguments.minutes, arguments.scale)
        outcomes: list[tuple[str, str, Outcome, float]] = []
        for name, right, trials in TRIALS:
            if arguments.only in name:
                since = time.monotonic()
                outcome = trials(bench)
                seconds = time.monotonic() - since
                outcomes.append((name, right, outcome, seconds))
                sys.stdout.write(f"{outcome.held} of {outcome.n}: {name} ({seconds:.0f} s)\n")
                for failure in outcome.failures:
                    sys.stdout.write(f"    {' '.join(failure.split())}\n")
                sys.stdout.flush()
    if not arguments.only:
        arguments.table.write_text(page(outcomes, time.monotonic() - started), encoding="utf-8")
    sys.exit(int(any(outcome.failures for _, _, outcome, _ in outcomes)))


def page(outcomes: list[tuple[str, str, Outcome, float]], seconds: float) -> str:
    """The table as a page."""
    rows = "\n".join(f"| {name} | {right} | {outcome.held} of {outcome.n} |" for name, right, outcome, _ in outcomes)
    page = (Path(__file__).parent / "page.md").read_text(encoding="utf-8")
    facts = f"{seconds / 60:.0f} minutes, {os.cpu_count()} cores, Python {platform.python_version()}"
    return page.replace("<rows>", rows).replace("<facts>", facts)


if __name__ == "__main__":
    main()
