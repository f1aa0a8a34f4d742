"""Killed, interrupted and diverged runs: what is kept, and that going on ends where an undisturbed run ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerControl, TrainerState

import aimc
from aimc.models.manifest import MANIFEST
from tests.conftest import REPOSITORY
from tests.train.conftest import same_weights, weights_of
from train import callbacks, pipeline
from train.callbacks import StopOnSignal
from train.resume import last_intact
from train.schema import RunConfig
from train.stages import STAGES
from train.trainer import Diverged, HardwareAwareTrainer, Interrupted

Compose = Callable[..., RunConfig]
NOISE = [
    "hardware.noise.write_v=0.002",
    "hardware.noise.read_qk=0.02",
    "hardware.noise.read_av=0.02",
    "hardware.noise.mismatch_gain=0.03",
]
"""Noise while training: going on is exact only if the random numbers go on too."""


class Killed(BaseException):
    """Stands for a process that ends without warning."""


def run(config: RunConfig) -> str:
    said: list[str] = []
    pipeline.execute(config, lambda what: said.append(str(what)))
    return "\n".join(said)


def at_step(
    monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[HardwareAwareTrainer], None], after: bool = False
) -> None:
    """Act when `step` steps are done: before the next forward pass, or after its backward pass."""
    original = HardwareAwareTrainer.training_step

    def training_step(self: HardwareAwareTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        now = self.state.global_step == step
        if now and not after:
            action(self)
        loss = original(self, *args, **kwargs)
        if now and after:
            action(self)
        return loss

    monkeypatch.setattr(HardwareAwareTrainer, "training_step", training_step)


def kill(trainer: HardwareAwareTrainer) -> None:
    raise Killed


def control_c(trainer: HardwareAwareTrainer) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def killed(monkeypatch: pytest.MonkeyPatch, config: RunConfig) -> None:
    """Run a stage until it dies, three steps done; what is run next lives."""
    at_step(monkeypatch, 3, kill)
    with pytest.raises(Killed):
        run(config)
    monkeypatch.undo()


def poison(trainer: HardwareAwareTrainer) -> None:
    with torch.no_grad():
        trainer.model.transformer.ln_f.weight[0] = float("nan")  # type: ignore[union-attr, operator, index]


def explode(trainer: HardwareAwareTrainer) -> None:
    for parameter in trainer.model.parameters():  # type: ignore[union-attr]
        assert parameter.grad is not None
        parameter.grad.fill_(float("inf"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, compose: Compose) -> Path:
    """Digital and linear stages that ran to their end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for stage in ("digital", "linear"):
        run(compose(folder, f"stage.name={stage}", *NOISE))
    return folder


@pytest.fixture
def configure(tmp_path: Path, compose: Compose, undisturbed: Path) -> Callable[..., RunConfig]:
    """The same stage into a fresh folder."""
    return lambda stage, *more: compose(tmp_path, f"stage.name={stage}", f"previous={undisturbed}", *NOISE, *more)


def checkpoints(folder: Path, stage: str) -> list[str]:
    return sorted(p.name for p in (folder / ".work" / STAGES[stage].folder).glob("checkpoint-*"))


def test_noise_shapes_the_linear_weights(tmp_path: Path, compose: Compose, undisturbed: Path) -> None:
    run(compose(tmp_path, "stage.name=linear", f"previous={undisturbed}"))
    assert not same_weights(weights_of(tmp_path / "linear"), weights_of(undisturbed / "linear"))


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        ("digital", 1),
        ("linear", 3),
        *(pytest.param(*at, marks=pytest.mark.slow) for at in (("linear", 1), ("digital", 3))),
    ],
)
def test_a_killed_stage_ends_with_the_same_weights(
    tmp_path: Path, configure: Compose, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, stage: str, step: int
) -> None:
    at_step(monkeypatch, step, kill)
    with pytest.raises(Killed):
        run(configure(stage))
    assert checkpoints(tmp_path, stage) == ([] if step == 1 else ["checkpoint-2"])
    assert not (tmp_path / stage).exists()
    monkeypatch.undo()
    steps: list[int] = []
    at_step(monkeypatch, 3, lambda trainer: steps.append(trainer.state.global_step))
    torch.manual_seed(99)  # another process would have other random numbers left over
    run(configure(stage))
    assert steps == [3]
    assert same_weights(weights_of(tmp_path / stage), weights_of(undisturbed / stage))
    assert not (tmp_path / ".work" / stage).exists()
    history = json.loads((tmp_path / stage / "history.json").read_text())
    assert [line["step"] for line in history if "loss" in line] == [1, 2, 3, 4]


def test_a_killed_control_stage_ends_with_the_same_weights(
    tmp_path: Path, configure: Compose, undisturbed: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(compose(undisturbed, "stage.name=control", *NOISE))
    seen: list[int] = []

    def kill_in_the_second_half(trainer: HardwareAwareTrainer) -> None:
        seen.append(1)
        if len(seen) == 2:
            raise Killed

    at_step(monkeypatch, 3, kill_in_the_second_half)
    with pytest.raises(Killed):
        run(configure("control"))
    monkeypatch.undo()
    run(configure("control"))
    assert same_weights(weights_of(tmp_path / "control"), weights_of(undisturbed / "control"))


def test_a_stage_killed_after_its_last_step_takes_no_step_more(
    tmp_path: Path, configure: Compose, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise Killed

    monkeypatch.setattr("aimc.clip_fractions", fail)  # what the linear stage does last
    with pytest.raises(Killed):
        run(configure("linear"))
    assert checkpoints(tmp_path, "linear") == ["checkpoint-2", "checkpoint-4"]
    monkeypatch.undo()
    steps: list[int] = []
    for step in range(6):
        at_step(monkeypatch, step, lambda trainer: steps.append(trainer.state.global_step))
    run(configure("linear"))
    assert steps == []
    assert same_weights(weights_of(tmp_path / "linear"), weights_of(undisturbed / "linear"))
    history = json.loads((tmp_path / "linear" / "history.json").read_text())
    assert [line["step"] for line in history if "loss" in line] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_process_killed_by_the_system_goes_on(
    tmp_path: Path, smoke: Callable[..., list[str]], configure: Compose, undisturbed: Path
) -> None:
    script = """
import os, runpy, signal
from train.trainer import HardwareAwareTrainer
original = HardwareAwareTrainer.training_step
def training_step(self, *args, **kwargs):
    if self.state.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *args, **kwargs)
HardwareAwareTrainer.training_step = training_step
runpy.run_module("train", run_name="__main__")
"""
    arguments = smoke(tmp_path, "stage=linear", f"previous={undisturbed}", *NOISE)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    file = tmp_path / "main.py"
    file.write_text(script)
    killed = subprocess.run(
        [sys.executable, str(file), *arguments], cwd=REPOSITORY, env=environment, capture_output=True, timeout=300
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoints(tmp_path, "linear") == ["checkpoint-2"]
    run(configure("linear"))
    assert same_weights(weights_of(tmp_path / "linear"), weights_of(undisturbed / "linear"))


@pytest.mark.parametrize("damage", [pytest.param("no mark", marks=pytest.mark.slow), "no mark, truncated"])
def test_a_checkpoint_that_was_cut_off_is_not_resumed_from(
    tmp_path: Path, configure: Compose, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    at_step(monkeypatch, 3, kill)
    with pytest.raises(Killed):
        run(configure("linear", "trainer.linear.save_every=1"))
    work = tmp_path / ".work" / "linear"
    assert checkpoints(tmp_path, "linear") == ["checkpoint-2", "checkpoint-3"]
    (work / "checkpoint-3" / MANIFEST).unlink()
    if "truncated" in damage:
        for file in ("model.safetensors", "optimizer.pt"):
            (work / "checkpoint-3" / file).write_bytes(b"cut")
    assert last_intact(work, print) == work / "checkpoint-2"
    monkeypatch.undo()
    steps: list[int] = []
    at_step(monkeypatch, 2, lambda trainer: steps.append(2))
    run(configure("linear", "trainer.linear.save_every=1"))
    assert steps == [2]  # the third step was taken again
    assert same_weights(weights_of(tmp_path / "linear"), weights_of(undisturbed / "linear"))


def test_what_other_settings_left_is_not_resumed_from(
    tmp_path: Path, configure: Compose, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(monkeypatch, configure("linear", "trainer.linear.learning_rate=0.01"))
    said = run(configure("linear"))
    assert "had other settings; starting the stage anew" in said
    assert same_weights(weights_of(tmp_path / "linear"), weights_of(undisturbed / "linear"))


def test_how_often_points_are_saved_may_change_on_the_way(
    tmp_path: Path, configure: Compose, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(monkeypatch, configure("linear"))
    steps: list[int] = []
    at_step(monkeypatch, 2, lambda trainer: steps.append(2))
    at_step(monkeypatch, 3, kill, after=True)
    with pytest.raises(Killed):
        run(configure("linear", "trainer.linear.save_every=1"))
    assert steps == [2] and checkpoints(tmp_path, "linear") == ["checkpoint-2", "checkpoint-3"]
    monkeypatch.undo()
    run(configure("linear"))
    assert same_weights(weights_of(tmp_path / "linear"), weights_of(undisturbed / "linear"))
    assert "finished by an earlier run" in run(configure("linear", "hardware.backend=eager"))


def test_a_signal_in_the_middle_of_agreeing_is_kept_for_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between what a process tells the others and their answer anything may happen."""
    stop, control = StopOnSignal(), TrainerControl()
    arguments: Any = SimpleNamespace(world_size=2, device="cpu")

    def agreed(asked: torch.Tensor, how: str) -> torch.Tensor:
        stop._handle(signal.SIGTERM, None)
        return asked

    monkeypatch.setattr(callbacks, "reduce", agreed)
    found = []
    with stop:
        for _ in range(2):
            stop.on_step_end(arguments, TrainerState(), control)
            found.append((stop.caught, control.should_training_stop))
    assert found == [(False, False), (True, True)]


def test_restart_does_not_resume(tmp_path: Path, configure: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(monkeypatch, configure("linear"))
    steps: list[int] = []
    at_step(monkeypatch, 0, lambda trainer: steps.append(0))
    run(configure("linear", "restart=true"))
    assert steps == [0]


@pytest.mark.parametrize("stage", [pytest.param("digital", marks=pytest.mark.slow), "linear"])
def test_a_loss_that_is_not_a_number_stops_the_run(
    tmp_path: Path, configure: Compose, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    at_step(monkeypatch, 3, poison)
    with pytest.raises(
        Diverged,
        match=rf"stage {stage}: the loss became nan at step 4; .*checkpoint-2; lower trainer\.{stage}\.learning_rate",
    ):
        run(configure(stage))
    last = last_intact(tmp_path / ".work" / stage, print)
    assert last is not None
    model = AutoModelForCausalLM.from_pretrained(last) if stage == "digital" else aimc.from_pretrained(last)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not (tmp_path / stage).exists()


def test_a_loss_that_is_not_a_number_at_once_says_that_nothing_was_saved(
    configure: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 0, poison)
    with pytest.raises(Diverged, match="at step 1; there was no checkpoint yet"):
        run(configure("linear"))


def test_weights_that_broke_in_the_last_update_are_not_saved(
    tmp_path: Path, configure: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the step is finite and its gradient is not: without a look at the weights, the last good checkpoint
    would be lost."""
    at_step(monkeypatch, 3, explode, after=True)
    with pytest.raises(
        Diverged, match=r"stage linear: .* became NaN or infinite at step 4; the last good checkpoint is .*checkpoint-2"
    ):
        run(configure("linear"))
    assert checkpoints(tmp_path, "linear") == ["checkpoint-2"]
    assert not (tmp_path / "linear").exists()


@pytest.fixture
def on_a_terminal():
    """Whose Ctrl-C asks to end: a shell's background jobs have it ignored, which a run respects."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("on_a_terminal")
@pytest.mark.parametrize("stage", [pytest.param("digital", marks=pytest.mark.slow), "linear"])
def test_control_c_saves_says_where_and_the_next_run_goes_on(
    tmp_path: Path, configure: Compose, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    at_step(monkeypatch, 2, control_c)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(
        Interrupted, match=rf"stage {stage}: interrupted at step 3; saved in .*\.work/{stage}; the same command goes on"
    ):
        run(configure(stage))
    assert signal.getsignal(signal.SIGINT) is before
    assert last_intact(tmp_path / ".work" / stage, print) == tmp_path / ".work" / stage / "checkpoint-3"
    monkeypatch.undo()
    steps: list[int] = []
    at_step(monkeypatch, 3, lambda trainer: steps.append(3))
    run(configure(stage))
    assert steps == [3]
    assert same_weights(weights_of(tmp_path / stage), weights_of(undisturbed / stage))
