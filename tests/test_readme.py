"""What the README says works: its Python runs, its commands compose, and the quick ones run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.partition("#")[0].strip()
    for kind, block in BLOCKS
    if kind == "bash"
    for line in block.splitlines()
    if line.strip()
]
TRAIN = [command for command in COMMANDS if command.startswith("python -m train ")]


def test_the_readme_has_what_this_tests() -> None:
    assert {"make demo", "make test"} <= set(COMMANDS)
    assert len(TRAIN) >= 4
    others = [
        c
        for c in COMMANDS
        if c not in TRAIN and not c.startswith(("make ", "python -m train.evaluate ", "python -m train.whole_chip "))
    ]
    assert others == [], f"commands that no test runs: {others}"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    assert {command.split()[1] for command in COMMANDS if command.startswith("make ")} <= targets


@pytest.mark.parametrize("command", TRAIN)
def test_train_commands_compose(command: str) -> None:
    """Hydra's own composition of the exact words, without running them: `--cfg job` prints the config."""
    words = shlex.split(command)[1:]
    done = subprocess.run(
        [sys.executable, *words, "--cfg", "job"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "hardware:" in done.stdout and "trainer:" in done.stdout


def test_adaptation_command_runs(tmp_path: Path) -> None:
    """The one-stage command, as written, on the shipped linear model; only its size and its output folder are
    changed."""
    command = next(c for c in TRAIN if "stage=adapt" in c)
    small = [
        "stage.test_tokens=2048",
        "stage.adapt_iterations=1",
        "stage.calibration_batches=1",
        "stage.calibration_batch_size=4",
    ]
    words = [*shlex.split(command)[1:], *small, f"output_dir={tmp_path / 'out'}", f"data.cache_dir={tmp_path / 'data'}"]
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "adapted" / "model.safetensors").exists()


def test_evaluation_command_runs(tmp_path: Path) -> None:
    """`python -m train.evaluate` as written, on less text and over fewer chips."""
    command = next(c for c in COMMANDS if c.startswith("python -m train.evaluate "))
    small = ["chips=2", "tokens=1024", f"output_dir={tmp_path / 'out'}", f"data.cache_dir={tmp_path / 'data'}"]
    words = [word for word in shlex.split(command)[1:] if not word.startswith("chips=")] + small
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all together" in done.stdout
    assert {"results.json", "results.csv", "nonidealities.png"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_python_runs_as_written(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    snippets = [block for kind, block in BLOCKS if kind == "python"]
    assert len(snippets) == 4
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "4 attention layers on gain-cell arrays" in printed
    assert "over 8 chips" in printed
    assert "4 layers calibrated" in printed
    assert "300 mV" in printed and "1.48 mm²" in printed


def test_every_link_and_picture_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (REPOSITORY / target).exists(), target
