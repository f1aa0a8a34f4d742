"""What README.md and docs/ say works: their Python runs, their commands compose, the quick ones run, their names exist.

A block may be marked by a comment on the line above it: `<!-- not run: why -->` is composed by Hydra or compiled, not
run; `<!-- needs: module -->` is skipped where that module is missing.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- (not run|needs): ([^\n]*?) -->\n)?```(\w*)\n(.*?)```", flags=re.DOTALL)
ENTRY_POINTS = {
    **{"train": "train", "evaluate": "train.evaluate", "real": "train.real", "chip": "train.whole_chip"},
    **{"characterise": "train.characterise", "study": "train.study", "report": "train.report_page"},
}
"""Sub-commands of `aimc` and the modules that they run."""
SAYS = {
    "README.md": ["4 attention layers on gain-cell arrays", "4 layers matched in 20 steps", "over 4 chips"],
    "researcher.md": ["True"],
    "evaluator.md": ["4 layers calibrated", "over 4 chips", "86400.0 True"],
    "index.md": ["4 attention layers on gain-cell arrays"],
    "howto/cell.md": ["of a storage step"],
    "howto/model.md": ["4 heads on the arrays of 2 K/V heads", "tensor(True)"],
    "howto/noise.md": ["over 2 chips"],
    "coming_from/aihwkit.md": ["4 attention layers on gain-cell arrays", "8 layers on static tiles"],
    "coming_from/published_code.md": ["sign_magnitude rounded", "exact linear"],
    "coming_from/transformers.md": ["Return a new", "GPT2LMHeadModel True"],
    "designer.md": ["300 mV", "1.48 mm²", "all (Hadamard): 1227 nJ, 1479 ns", "kept: 1960 nJ, 1971 ns, 4.32 mm²"],
}
"""What the Python of a page prints, among other things."""
RUN_ELSEWHERE = {"physics.md"}
"""Pages whose Python is run against the operator, in tests/ops/test_physics_page.py."""
WRITTEN_BY_RUNS = tuple(f"checkpoints/{name}" for name in ("run", "smoke", "demo", "beside"))


ON_A_CLUSTER = ("launcher=slurm", "hydra.launcher.")
"""Words that need a plugin of Hydra; a command is composed without them."""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page."""

    page: str
    """Name of the page, below docs/ with its folder."""
    mark: str
    about: str
    """What the mark says: a reason, or a module."""
    kind: str
    text: str


def name_of(page: Path) -> str:
    docs = REPOSITORY / "docs"
    return page.relative_to(docs).as_posix() if page.is_relative_to(docs) else page.name


BLOCKS = [Block(name_of(page), *found) for page in PAGES for found in BLOCK.findall(page.read_text(encoding="utf-8"))]
LINES = [
    (block, line.partition("  #")[0].strip())
    for block in BLOCKS
    if block.kind == "bash"
    for line in block.text.splitlines()
]
COMMANDS = list(dict.fromkeys(line for _, line in LINES if line))


def module_call(command: str) -> list[str] | None:
    """The words after `python` that run what a command line runs; None: it runs none of our entry points."""
    words = shlex.split(command)
    if words[0] == "torchrun":
        words = ["python", *words[words.index("-m") :]]
    if words[:3] == ["python", "-m", "train.fetch"]:  # the one entry point without Hydra
        return None
    if words[:2] == ["python", "-m"] and words[2].removeprefix("aimc.").partition(".")[0] == "train":
        return ["-m", words[2].removeprefix("aimc."), *words[3:]]
    if words[0] == "aimc" and words[1] in ENTRY_POINTS:
        return ["-m", ENTRY_POINTS[words[1]], *words[2:]]
    return None


COMPOSED = {command: call for command in COMMANDS if (call := module_call(command)) is not None}
MODULES = sorted({call[1] for call in COMPOSED.values()})


def test_the_readme_is_short_and_has_what_this_tests() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 150
    assert {"make demo", "make test"} <= set(COMMANDS)
    assert len(COMPOSED) >= 12
    assert {block.kind for block in BLOCKS} <= {"bash", "python", "text", "yaml"}


def test_every_command_is_composed_or_says_why_not() -> None:
    loose = [
        line
        for block, line in LINES
        if line and line not in COMPOSED and not line.startswith(("make ", "source ")) and block.mark != "not run"
    ]
    assert loose == [], f"commands that no test runs: {loose}"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"`make (\w+)`", "".join(page.read_text(encoding="utf-8") for page in PAGES))
    assert {command.split()[1] for command in COMMANDS if command.startswith("make ")} | set(named) <= targets


Here = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("module", MODULES)
def test_commands_compose(module: str, command_here: Here) -> None:
    """Hydra's own composition of the exact words, without running them: `--cfg job` prints the config. Of a sweep, the
    first job."""
    calls = {command: one_job(call) for command, call in COMPOSED.items() if call[1] == module}
    assert not_composed(module, calls, command_here) == {}


def not_composed(module: str, calls: dict[str, list[str]], command_here: Here) -> dict[str, str]:
    """Command lines of which the module's entry point makes no config, and what it says of each."""
    main = importlib.import_module(f"{module}.__main__" if module == "train" else module).main
    done = {command: command_here(main, *words, "--cfg", "job") for command, words in calls.items()}
    return {
        command: x.stderr or x.stdout for command, x in done.items() if x.returncode or "output_dir:" not in x.stdout
    }


def one_job(call: list[str]) -> list[str]:
    """The words of a command behind its module, of a sweep those of its first job."""
    words = [word for word in call[2:] if word != "-m" and not word.startswith(ON_A_CLUSTER)]
    return [re.sub(r"^([^=]*)=([^\[{,]*),.*", r"\1=\2", word) for word in words]


def test_a_command_that_does_not_compose_is_told(command_here: Here) -> None:
    found = not_composed("train", {"python -m train nope=1": ["nope=1"], "python -m train": []}, command_here)
    assert list(found) == ["python -m train nope=1"] and "nope" in found["python -m train nope=1"]


def run(words: list[str]) -> str:
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_adaptation_command_runs(tmp_path: Path) -> None:
    """The one-stage command, as written, on the shipped linear model; only its size and its output folder are
    changed."""
    words = next(call for call in COMPOSED.values() if "stage=adapt" in call)
    small = ["stage.adapt_iterations=1", "stage.calibration_batches=1", "stage.calibration_batch_size=4"]
    places = [f"output_dir={tmp_path / 'out'}", f"data.cache_dir={tmp_path / 'data'}"]
    run([*words, "measure.tokens=2048", *small, *places])
    assert (tmp_path / "out" / "adapted" / "model.safetensors").exists()


@pytest.mark.slow
def test_evaluation_command_runs(tmp_path: Path) -> None:
    """`python -m train.evaluate` as written, on less text and over fewer chips."""
    words = next(call for call in COMPOSED.values() if "train.evaluate" in call)
    small = [word for word in words if not word.startswith("measure.chips=")] + [
        "measure.chips=2",
        "measure.tokens=1024",
    ]
    printed = run([*small, f"output_dir={tmp_path / 'out'}", f"data.cache_dir={tmp_path / 'data'}"])
    assert "all together" in printed
    assert {"results.json", "results.csv", "nonidealities.png"} <= {path.name for path in (tmp_path / "out").iterdir()}


def _runs(page: str) -> Any:
    """A page whose code takes a quarter of a minute: `make slow` runs it."""
    return pytest.param(page, marks=pytest.mark.slow) if page in ("designer.md", "evaluator.md") else page


@pytest.mark.parametrize("page", map(_runs, SAYS))
def test_python_runs_as_written(page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    blocks = [block for block in BLOCKS if block.page == page and block.kind == "python"]
    for block in blocks:
        code = compile(block.text, page, "exec")
        if block.mark == "needs" and importlib.util.find_spec(block.about) is None:
            pytest.skip(f"{page} needs {block.about}, which is not installed")
        if block.mark != "not run":
            exec(code, {"__name__": page})
    printed = capsys.readouterr().out
    for text in SAYS[page]:
        assert text in printed


def test_every_page_with_python_is_run() -> None:
    assert {block.page for block in BLOCKS if block.kind == "python" and block.mark != "not run"} <= (
        {*SAYS} | RUN_ELSEWHERE
    )


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "CONTRIBUTING.md"], ids=name_of)
def test_every_link_path_and_name_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    for other, anchor in re.findall(r"\]\(([^)#]+\.md)#([^)]+)\)", text):
        headings = re.findall(r"^#+ (.*)$", (page.parent / other).read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings], anchor
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for path in re.findall(r"`((?:aimc|train|conf|tests|docs|notebooks|checkpoints|benchmarks|\.ci)/[\w./-]*)", prose):
        assert (REPOSITORY / path).exists() or path.startswith(WRITTEN_BY_RUNS), path
    for name in re.findall(r"`(aimc(?:\.\w+)+)", prose):
        assert named(name) is not None, name


def named(dotted: str) -> object:
    """What a dotted name stands for; `aimc.train`, which only an installation has, is `train` here."""
    module, *names = re.sub(r"^aimc\.train\b", "train", dotted).split(".")
    found: object = importlib.import_module(module)
    for name in names:
        module = f"{module}.{name}"
        if not hasattr(found, name):
            importlib.import_module(module)
        found = getattr(found, name)
    return found
