"""The command `aimc` in a clone, and its completion by a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPT = "#!{python}\nimport sys\n\nfrom aimc import _command\n\nsys.exit(_command())\n"
"""What pip writes for the entry point `aimc:_command`."""
TAB = """
eval "$(aimc -sc install=bash)"
COMP_LINE="$1" COMP_POINT=${#1} COMP_CWORD=$2
hydra_bash_completion
printf '%s\\n' "${COMPREPLY[@]}"
complete -p aimc
"""
"""What bash does at a tab: it sets these variables and calls the function that was installed."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The command on the PATH, with this checkout on Python's."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "aimc"
    script.write_text(SCRIPT.format(python=sys.executable))
    script.chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}


def test_a_clone_has_the_same_command(environment: dict[str, str], tmp_path: Path) -> None:
    words = ["train", "experiment=smoke", "--cfg", "job"]
    by_command = subprocess.run(["aimc", *words], env=environment, cwd=tmp_path, capture_output=True, text=True)
    by_module = subprocess.run(
        [sys.executable, "-m", *words], env=environment, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert by_command.returncode == by_module.returncode == 0, by_command.stderr + by_module.stderr
    assert by_command.stdout == by_module.stdout and "n_positions: 32" in by_command.stdout


def test_without_the_extra_the_line_that_installs_it() -> None:
    code = "import importlib.util as u; u.find_spec = lambda name: None; import aimc; aimc._command()"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error:") and "pip install 'aimc[train]'" in done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param(
            "aimc ",
            {"train", "evaluate", "real", "chip", "characterise", "study", "report", "replay", "fetch"},
            marks=pytest.mark.slow,
        ),
        ("aimc ev", {"evaluate"}),
        pytest.param("aimc train exp", {"experiment="}, marks=pytest.mark.slow),
        pytest.param(
            "aimc train experiment=s",
            {"experiment=shipped", "experiment=smoke", "experiment=smollm2", "experiment=smollm2_gpu"},
            marks=pytest.mark.slow,
        ),
        ("aimc train experiment=smoke hardware.array.r", {"hardware.array.rows="}),
        pytest.param("aimc evaluate nonideality=", {"nonideality=none", "nonideality=typical"}, marks=pytest.mark.slow),
        pytest.param("aimc chip with_", {"with_curve="}, marks=pytest.mark.slow),
        pytest.param("aimc nonsense exp", {""}, marks=pytest.mark.slow),
        pytest.param("aimc fetch smo", {""}, marks=pytest.mark.slow),
    ],
)
def test_tab_completes(environment: dict[str, str], tmp_path: Path, line: str, expected: set[str]) -> None:
    word = len(line.split()) - (not line.endswith(" "))
    done = subprocess.run(
        ["bash", "--norc", "-c", TAB, "bash", line, str(word)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    *completions, installed = done.stdout.splitlines()
    assert installed.endswith("hydra_bash_completion aimc"), done.stderr
    assert set(completions) == expected
