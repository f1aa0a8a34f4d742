"""Work beside each other: what fails, or dies, fails alone."""

from __future__ import annotations

import signal
from contextlib import closing

import pytest

from benchmarks.workers import ending_on_sigterm, side_by_side


def test_a_process_that_dies_costs_its_own_task_alone() -> None:
    tasks = [("6 * 7",), ("1 / 0",), ("__import__('os')._exit(3)",), ("'behind ' + 'it'",)]
    with closing(side_by_side(eval, tasks, jobs=1)) as finished:
        found = {task[0]: future.exception() or future.result() for task, future in finished}
    assert found["6 * 7"] == 42 and found["'behind ' + 'it'"] == "behind it"
    assert isinstance(found["1 / 0"], ZeroDivisionError) and isinstance(found[tasks[2][0]], Exception)


def test_none_is_begun_after_its_time() -> None:
    answers = iter([True, False])
    with closing(side_by_side(eval, [("1",), ("2",)], 1, lambda: next(answers, False))) as finished:
        assert [task for task, _ in finished] == [("1",)]


def test_a_signal_to_end_ends_what_runs() -> None:
    tasks = [("__import__('os').kill(__import__('os').getppid(), 15) or __import__('time').sleep(600)",)]
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(SystemExit) as ended,
        ending_on_sigterm(),
        closing(side_by_side(eval, tasks, jobs=1)) as finished,
    ):
        next(finished)
    assert ended.value.code == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) == before
