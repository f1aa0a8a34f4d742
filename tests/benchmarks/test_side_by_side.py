"""Calls side by side: what fails, or dies, fails alone; time and signals end what they should, once."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import side_by_side as module
from benchmarks.places import parse
from benchmarks.side_by_side import Failure, Outcome, Task, side_by_side
from tests.conftest import REPOSITORY


def test_what_fails_costs_nothing_else() -> None:
    done: dict[tuple[str, int], Any] = {}
    said: dict[tuple[str, int], Failure] = {}
    tasks = [
        Task(("waits longer", 1), partial(int, "1"), (("waits", 1),)),
        Task(("waits", 1), partial(int, "1"), (("dies", 1),)),
        Task(("dies", 1), partial(os._exit, 3)),
        Task(("fails", 1), partial(eval, "1 / 0")),
        Task(("later", 1), partial(int, "3"), (("works", 1), ("unknown", 1))),
        Task(("works", 1), partial(int, "2")),
        Task(("group", 1), os.getpgrp),
    ]
    outcome = side_by_side(tasks, 1, done.__setitem__, said.__setitem__)
    assert done.pop(("group", 1)) != os.getpgrp()  # a signal to this one's group comes once, by this one
    assert done == {("works", 1): 2, ("later", 1): 3}
    assert outcome == Outcome(said, None)
    why = {name: failure.why for (name, _), failure in said.items()}
    assert why == {
        "waits": "what it waits for failed",
        "waits longer": "what it waits for failed",
        "dies": "its process died",
        "fails": "ZeroDivisionError: division by zero",
    }
    failure = said["fails", 1]
    assert failure.error is not None and said["dies", 1].error is not None and said["waits", 1].error is None
    assert '"<string>", line 1' in "".join(traceback.format_exception(failure.error)), "where it failed over there"


def test_none_is_begun_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_process", lambda: ThreadPoolExecutor(1))
    done: dict[tuple[str, int], Any] = {}
    tasks = [Task(("long", 1), partial(time.sleep, 0.1)), Task(("late", 1), partial(int, "1"))]
    outcome = side_by_side(tasks, 1, done.__setitem__, lambda key, failure: None, minutes=0.05 / 60)
    assert done == {("long", 1): None}, "what runs is waited for"
    assert outcome == Outcome({("late", 1): Failure("no time left to begin it")}, None)


STOPPED = """
import signal, sys, time
from functools import partial
from pathlib import Path
from benchmarks.side_by_side import Task, side_by_side

def train(file):
    told = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    file.write_text("began")
    while not told:
        time.sleep(0.01)
    time.sleep(0.7)  # longer than between two looks for signals
    file.write_text(f"saved after {len(told)} signal(s)")
    raise RuntimeError("interrupted, as training says")

if __name__ == "__main__":
    calls = {"first": partial(int, "1"), "long": partial(train, Path(sys.argv[1])), "next": partial(int, "2")}
    tasks = [Task((name, 1), call) for name, call in calls.items()]
    outcome = side_by_side(tasks, 1, lambda key, value: print(key, flush=True), lambda key, failure: None)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    print(sorted(outcome.failed.items()))
    sys.exit(128 + outcome.signal)
"""


def test_sigterm_keeps_what_is_done_and_is_passed_on_once(tmp_path: Path) -> None:
    script, saved = tmp_path / "script.py", tmp_path / "saved"
    script.write_text(STOPPED, encoding="utf-8")
    command, environment = [sys.executable, script, saved], {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "('first', 1)\n"
        while not saved.exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert saved.read_text() == "saved after 1 signal(s)"
    assert "stopped; what it finished stays" in rest and "stopped before it was begun" in rest


def test_what_runs_is_ended_where_its_result_cannot_be_taken() -> None:
    tasks = [Task(("done", 1), partial(int, "1")), Task(("long", 1), partial(time.sleep, 600))]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(OSError, match="disk full"):
        side_by_side(tasks, 2, partial(_fail, OSError("disk full")), lambda key, failure: None)
    assert signal.getsignal(signal.SIGTERM) == before
    ends = time.monotonic() + 20
    while children := multiprocessing.active_children():
        assert time.monotonic() < ends, f"{children} still run"
        time.sleep(0.02)


def _fail(error: Exception, *_: object) -> None:
    raise error


def test_a_gpu_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = parse(argparse.ArgumentParser(), "rows", ["--device", "auto", "--backend", "eager"])
    assert (words.device, words.backend, words.jobs, words.minutes) == ("auto", "eager", 2, None)
    with pytest.raises(SystemExit):
        parse(argparse.ArgumentParser(), "rows", ["--device", "cuda"])
    assert "--device cuda: PyTorch finds no GPU here" in capsys.readouterr().err
