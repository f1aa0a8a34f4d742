"""What is found before the first stage, without a network in seconds, and on any terminal."""

from __future__ import annotations

import importlib.util
import io
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from rich.table import Table

from tests.train.conftest import command
from train import callbacks, corpus, needs, pipeline, tables
from train import command as door
from train.errors import RunError
from train.schema import RunConfig

Compose = Callable[..., RunConfig]


@pytest.fixture
def no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "run_stage", lambda run: pytest.fail("a stage was started"))


@pytest.mark.parametrize(
    ("overrides", "missing", "message"),
    [
        (["stage.with_static=true"], "aihwkit", r"stage joint: static tiles are emulated by IBM's aihwkit.*run: pip"),
        (["trainer.linear.lora_rank=2"], "peft", r"trainer\.linear\.lora_rank=2: needs peft, which is not installed"),
        (["logger.name=wandb"], "wandb", r"logger=wandb: needs wandb, which is not installed"),
        (["hardware.backend=triton"], "", r"hardware\.backend=triton: its kernels run on NVIDIA GPUs.*backend=auto"),
        (["trainer.precision=fp16"], "", r"trainer\.precision=fp16: .*on a CPU; set trainer\.precision=bf16"),
        (
            ["recipe=direct", "stage.fit_sequences=90000"],
            "",
            r"stage\.fit_sequences=90000: sequences .* training tokens",
        ),
        (["stage.calibration_batches=900"], "", r"stage\.calibration_batches=900 × .* training tokens"),
        (
            ["trainer.finetune.distillation=0.5", "trainer.finetune.teacher=control", "stage.with_control=false"],
            "",
            "none",
        ),
    ],
)
def test_what_a_later_stage_will_need_is_looked_at_first(
    overrides: list[str],
    missing: str,
    message: str,
    tmp_path: Path,
    compose: Compose,
    no_stage: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    with pytest.raises(RunError, match=message):
        pipeline.execute(compose(tmp_path, *overrides), lambda what: None)


def test_what_no_stage_of_the_run_needs_is_not_asked_for(
    tmp_path: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(pipeline, "run_stage", lambda run: started.append(run.stage.name))
    monkeypatch.setattr(needs, "require_aihwkit", lambda: pytest.fail("no stage stands on tiles"))
    pipeline.execute(compose(tmp_path, "stage.name=digital", "trainer.linear.lora_rank=2"), lambda what: None)
    assert started == ["digital"]


def test_a_dataset_without_a_network_is_one_line_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "hub_answers", lambda name: False)
    started = time.monotonic()
    with pytest.raises(RunError, match=r"data\.dataset=someone/text: cannot be .*hub does not answer.*data\.path"):
        list(corpus.Hub("someone/text", None, "text"))
    assert time.monotonic() - started < 1


def test_wandb_logs_offline_where_its_server_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setattr(callbacks, "server_answers", lambda address: False)
    assert callbacks.wandb_mode() == "offline" and "send it later with wandb sync" in caplog.text
    monkeypatch.setattr(callbacks, "server_answers", lambda address: True)
    assert callbacks.wandb_mode() == "online"


@pytest.mark.parametrize("path", ["a[/]b", "[red]x[/red]", "[bold]", "a\\[b", ":smile:", "[link=x]y", "x[/bold]\\"])
def test_a_path_is_shown_as_it_is(path: str) -> None:
    shown = io.StringIO()
    with redirect_stdout(shown):
        say = tables.terminal()
        say(f"{tables.bold('evaluate')}: in {path}")
        table = Table(title=path)
        table.add_column(path)
        table.add_row(path)
        say(table)
    assert f"evaluate: in {path}\n" in shown.getvalue() and shown.getvalue().count(path) == 4


def test_a_terminal_that_knows_ascii_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    door.run_command(lambda: tables.terminal()("4 × 4, σ …"))
    narrow.flush()
    assert narrow.buffer.getvalue() == b"4 ? 4, ? ?\n"  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_command_on_such_a_terminal(tmp_path: Path, smoke: Callable[..., list[str]]) -> None:
    done = command("train", *smoke(tmp_path / "o[/]ü", "stage=digital"), PYTHONIOENCODING="ascii", LANG="C")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", door.DISK)
def test_a_disk_that_fails_is_one_line_wherever_it_does(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise OSError(number, "No space left on device", "results.json")

    with pytest.raises(SystemExit) as stop:
        door.run_command(work)
    said = capsys.readouterr().err
    assert stop.value.code == 1 and said.count("\n") == 1 and said.startswith("error: results.json: No space left")


def test_a_mistake_of_the_program_is_no_disk() -> None:
    def work() -> None:
        raise FileNotFoundError(2, "No such file", "x")

    with pytest.raises(FileNotFoundError):
        door.run_command(work)
