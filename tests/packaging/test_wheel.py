"""What `pip install aimc` brings: one package, one command, and both work from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PROSE = "The read voltage is fixed, so ten coefficients fold into four. A cell that leaks is read at its true age. "


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel, built from this checkout, is installed alone."""
    wheels, folder = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(wheels)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    return folder


def installed(site: Path, cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`aimc` as an installed user calls it. `-S` leaves out the path file of the editable installation, by which this
    checkout would be found; the dependencies are then named by hand."""
    paths = os.pathsep.join([str(site), sysconfig.get_path("purelib")])
    command = [sys.executable, "-S", str(site / "bin" / "aimc"), *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_only_aimc_is_installed(site: Path) -> None:
    assert {entry.name.partition("-")[0] for entry in site.iterdir()} == {"aimc", "bin"}
    assert {entry.name for entry in (site / "bin").iterdir()} == {"aimc"}
    package = site / "aimc"
    in_wheel = {file.relative_to(package).as_posix() for file in package.rglob("*") if file.suffix != ".pyc"}
    for folder, place in (("aimc", ""), ("train", "train/"), ("conf", "conf/")):
        for file in (REPOSITORY / folder).rglob("*"):
            if file.suffix in (".py", ".yaml"):
                assert place + file.relative_to(REPOSITORY / folder).as_posix() in in_wheel
    assert not [name for name in in_wheel if name.startswith(("checkpoints", "tests", "benchmarks"))]


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_the_command_says_what_there_is(site: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = installed(site, tmp_path, *arguments)
    assert done.returncode == 0 and done.stderr == ""
    assert len(done.stdout.splitlines()) < 16
    assert all(f"\n  {name} " in done.stdout for name in ("train", "evaluate", "chip", "fetch"))


def test_a_wrong_command_is_one_line(site: Path, tmp_path: Path) -> None:
    done = installed(site, tmp_path, "trian", "model=gpt2")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: aimc trian: no such command; use one of train, evaluate, real, chip, ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "field"), [("train", "output_dir:"), ("evaluate", "with_perplexity:"), ("chip", "with_curve:")]
)
def test_each_command_finds_its_configs(site: Path, tmp_path: Path, command: str, field: str) -> None:
    done = installed(site, tmp_path, command, "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert field in done.stdout


@pytest.mark.slow
def test_a_run_and_its_evaluation_from_an_empty_folder(site: Path, tmp_path: Path) -> None:
    text, work = tmp_path / "text", tmp_path / "empty"
    text.mkdir()
    work.mkdir()
    for part, repeats in (("train", 120), ("valid", 20), ("test", 20)):
        (text / f"{part}.txt").write_text(PROSE * repeats)
    small = ["data=text", f"data.path={text}", f"data.cache_dir={tmp_path / 'cache'}"]
    done = installed(site, work, "train", "experiment=smoke", "stage=digital", *small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (work / "checkpoints" / "smoke" / "digital" / "model.safetensors").exists()
    checkpoint = "checkpoint=checkpoints/smoke/digital"
    done = installed(site, work, "evaluate", checkpoint, "nonideality=none", *small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (work / "checkpoints" / "smoke" / "digital" / "evaluation" / "results.json").exists()
    assert {entry.name for entry in work.iterdir()} == {"checkpoints"}
