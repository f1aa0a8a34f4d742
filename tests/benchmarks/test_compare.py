"""Two trees against each other: what a row says, and that the other tree is really the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare
from benchmarks.commits import resolve, scratch_clone
from benchmarks.compare import BASE, HERE, QUICK_SIZES, Tree, TreeError
from benchmarks.machine import commit
from tests.conftest import REPOSITORY


class Recorded:
    """A tree that takes so long, and computes this."""

    def __init__(self, log: list[str], name: str, answer: dict[str, Any]) -> None:
        self.log, self.name, self.answer = log, name, answer

    def time(self, case: Any, repetitions: int) -> dict[str, Any]:
        self.log.append(self.name)
        return {**self.answer, "seconds": self.answer.get("seconds", []) * repetitions}


def test_trees_take_turns_and_a_row_says_the_ratio() -> None:
    log: list[str] = []
    trees: Any = {
        HERE: Recorded(log, HERE, {"seconds": [0.3], "digest": [1.0, 2.0]}),
        BASE: Recorded(log, BASE, {"seconds": [0.2], "digest": [1.0, 1.0]}),
    }
    row = compare.compare(trees, ("forward", "eager", 8), rounds=4, seconds_each=1.0)
    assert log[2:] == [BASE, HERE, HERE, BASE, BASE, HERE, HERE, BASE]
    assert row.least == row.median == pytest.approx(1.5) and row.difference == 0.5
    assert {len(times) for times in row.times.values()} == {12}, "three of the slower fit into a turn"


def test_what_fails_is_no_number() -> None:
    trees: Any = {
        HERE: Recorded([], HERE, {"failed": "ValueError: no"}),
        BASE: Recorded([], BASE, {"seconds": [0.1], "digest": [1.0]}),
    }
    row = compare.compare(trees, ("forward", "eager", 8), rounds=1, seconds_each=1.0)
    assert row.failed == {HERE: "ValueError: no"}
    assert compare.table_of([row], 1.05).row_count == 1


def test_what_the_base_does_not_know_is_skipped_and_no_failure() -> None:
    known, unknown = {"seconds": [0.1], "digest": [1.0]}, {"unknown": "AttributeError: typical"}
    trees: Any = {HERE: Recorded([], HERE, known), BASE: Recorded([], BASE, unknown)}
    row = compare.compare(trees, ("typical noise, forward", "blocked", 8), rounds=1, seconds_each=1.0)
    assert row.skipped == "AttributeError: typical" and not row.failed
    trees = {HERE: Recorded([], HERE, unknown), BASE: Recorded([], BASE, known)}
    row = compare.compare(trees, ("typical noise, forward", "blocked", 8), rounds=1, seconds_each=1.0)
    assert row.failed == {HERE: "AttributeError: typical"} and row.skipped is None


@pytest.mark.skipif(commit() == "unknown", reason="not in a git repository")
def test_a_commit_is_cloned_and_removed() -> None:
    with scratch_clone("HEAD") as folder:
        assert (folder / "aimc" / "__init__.py").is_file()
        assert commit().startswith(resolve("HEAD")) and resolve("HEAD").startswith(folder.name)
    assert not folder.parent.exists()


@pytest.mark.parametrize("bad", ["no-such-commit", "--help", "HEAD:Makefile", "f" * 40])
def test_an_unknown_commit_is_refused(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["--quick", f"--commit={bad}"]) == 1
    printed = capsys.readouterr().out
    assert f"stopped: {bad!r}: git knows no such commit" in printed and "HEAD~1" in printed


@pytest.mark.slow
def test_a_tree_is_asked_in_its_own_process(tmp_path: Path) -> None:
    (tmp_path / "aimc").mkdir()
    (tmp_path / "aimc" / "__init__.py").write_text("def __getattr__(name):\n    raise AttributeError('empty')\n")
    other = Tree(tmp_path, QUICK_SIZES, "cpu", 1)
    here = Tree(REPOSITORY, QUICK_SIZES, "cpu", 1)
    try:
        row = compare.compare({HERE: here, BASE: other}, ("forward", "blocked", 32), rounds=1, seconds_each=0.01)
        assert not row.failed and row.skipped is not None and "empty" in row.skipped
        assert compare.table_of([row], 1.05).row_count == 1
        answers = [here.time(("forward", backend, 32), 1) for backend in ("eager", "blocked")]
        assert answers[0]["digest"] == pytest.approx(answers[1]["digest"], rel=1e-2)
        assert here.time(("nonsense", "eager", 32), 1)["failed"].startswith("KeyError")
        assert {len(here.time((name, "blocked", 32), 2)["seconds"]) for name in ("decoding", "training step")} == {2}
    finally:
        here.close()
        other.close()


def test_a_folder_without_a_tree_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TreeError, match=r"ended with code|has no aimc"):
        Tree(tmp_path, QUICK_SIZES, "cpu", 1)


def test_operators_at_every_length_and_models_at_the_longest() -> None:
    found = list(compare.cases(["forward", "decoding"], [8, 16], ["eager", "blocked"]))
    assert found[:2] == [("forward", "eager", 8), ("forward", "blocked", 8)]
    assert len(found) == 5 and found[-1] == ("decoding", "blocked", 16)
