"""Jobs beside one another: those of a sweep have folders of their own, and a folder has one job at a time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from train.__main__ import main
from train.errors import RunError
from train.lock import LOCK, one_job
from train.sweep import name_of_job

HOLD = """
import sys, time
from pathlib import Path
from train.lock import one_job
with one_job(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_jobs_of_a_sweep_write_side_by_side(
    tmp_path: Path, smoke: Callable[..., list[str]], command_here: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = command_here(
        main, "-m", "seed=1,2", *smoke(tmp_path / "out", "stage=digital"), "hydra.sweep.dir=" + str(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["seed=1", "seed=2"]
    for seed in (1, 2):
        record = json.loads((tmp_path / "out" / f"seed={seed}" / "digital" / "stage.json").read_text())
        assert record["settings"]["seed"] == seed
        assert f"this job of the sweep writes into {tmp_path / 'out' / f'seed={seed}'}" in done.stderr


@pytest.mark.parametrize(
    ("job", "line", "name"),
    [
        (["experiment=smoke", "seed=1"], ["-m", "experiment=smoke", "seed=1,2"], "seed=1"),
        (["seed=2", "hardware=cmos"], ["seed=range(1,3)", "hardware=cmos,igzo"], "seed=2,hardware=cmos"),
        (["output_dir=a", "seed=1"], ["output_dir=a,b", "seed=1"], ""),
        (["data.path=/a/b c"], ["data.path=/a/b c,/d"], "data.path=_a_b_c"),
    ],
)
def test_a_job_is_named_by_what_it_has_for_itself(job: list[str], line: list[str], name: str) -> None:
    assert name_of_job(job, line) == name


def test_long_names_stay_apart() -> None:
    names = {name_of_job([f"data.path={'x' * 300}{i}"], []) for i in range(3)}
    assert len(names) == 3 and max(map(len, names)) < 200


def test_a_folder_that_is_held_is_refused_and_its_holder_named(
    tmp_path: Path,
    holder: subprocess.Popen[str],
    smoke: Callable[..., list[str]],
    command_here: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = command_here(main, *smoke(tmp_path, "stage=digital"))
    assert done.returncode == 1
    line = done.stderr.strip()
    assert "\n" not in line and line.startswith(f"error: output_dir={tmp_path}: another job writes into it")
    assert f"process {holder.pid} on {socket.gethostname()}, started 2" in line and "wait for it" in line
    assert [p.name for p in tmp_path.iterdir()] == [LOCK]
    with pytest.raises(RunError, match="another job writes into it"), one_job(tmp_path, print):
        pass
    with one_job(tmp_path, print, main_process=False):  # another process of the same job
        pass


def test_the_lock_of_a_dead_job_is_taken_over_with_a_line(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).exists()
    said: list[str] = []
    with one_job(tmp_path, lambda what: said.append(str(what))):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert len(said) == 1 and f"taken over from a job that died (process {holder.pid} on" in said[0]
    assert list(tmp_path.iterdir()) == []
    with one_job(tmp_path, lambda what: said.append(str(what))):
        pass
    assert len(said) == 1


def test_the_lock_of_another_machine_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "today", "command": "train"}))
    with (
        pytest.raises(RunError, match=r"process 1 on elsewhere.*or remove .*\.lock if that job is gone"),
        one_job(tmp_path, print),
    ):
        pass
    assert (tmp_path / LOCK).exists()


def test_a_failed_job_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), one_job(tmp_path, print):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
