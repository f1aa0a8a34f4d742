"""Several processes train as one: the same losses, statistics and perplexities, whole checkpoints, and what is said
where one of them dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from tests.conftest import REPOSITORY, tiny_gpt2
from tests.train.conftest import english, same_weights, weights_of
from tests.train.processes import run_together
from train import pipeline, ranks
from train.errors import RESUME, RunError
from train.files import saving
from train.ranks import LostRank, _from_slurm, noticing
from train.record import is_same
from train.schema import RunConfig
from train.sharding import give_back
from train.shared import checkpointed
from train.trainer import HardwareAwareTrainer

Compose = Callable[..., RunConfig]
STEPS = 10
RECIPE = {
    "steps": STEPS,
    "warmup_steps": 2,
    "log_every": 1,
    "eval_every": 5,
    "save_every": 5,
    "noise.scale": 1.0,
    "noise.evaluate": "noisy",
}
SHARED = ["nonideality=typical", "trainer.eval_tokens=192", *(f"trainer.linear.{k}={v}" for k, v in RECIPE.items())]


def batches(size: int, accumulate: int = 1) -> list[str]:
    return [f"trainer.linear.batch_size={size}", f"trainer.linear.accumulate={accumulate}"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of all runs, on a text that is read more than once."""
    folder = tmp_path_factory.mktemp("short")
    for split, start, size in (("train", 0, 2000), ("valid", 4000, 3000), ("test", 7000, 3000)):
        (folder / f"{split}.txt").write_text(english(size, start), encoding="utf-8")
    return [*SHARED, f"data.path={folder}"]


@pytest.fixture(scope="module")
def digital(tmp_path_factory: pytest.TempPathFactory, compose: Compose, shared: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("digital")
    pipeline.execute(compose(folder, "stage.name=digital", "model.dropout=0", *shared), lambda what: None)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, compose: Compose, shared: list[str], digital: Path) -> Path:
    """By one process, four sequences a step."""
    folder = tmp_path_factory.mktemp("alone")
    pipeline.execute(
        compose(folder, "stage.name=linear", f"previous={digital}", *shared, *batches(4)), lambda what: None
    )
    return folder


def at_step(step: int, action: Callable[[HardwareAwareTrainer], None]) -> None:
    """Act in this process when `step` steps are done."""
    original = HardwareAwareTrainer.training_step

    def training_step(self: HardwareAwareTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == step:
            action(self)
        return original(self, *args, **kwargs)

    HardwareAwareTrainer.training_step = training_step  # type: ignore[method-assign]


def kill_the_second(rank: int) -> None:
    """Without warning, two steps after the run's first point to resume from."""
    if rank == 1:
        at_step(7, lambda trainer: os.kill(os.getpid(), signal.SIGKILL))


def look_at_shares(rank: int) -> None:
    """That weights and optimiser state are spread."""

    def look(trainer: HardwareAwareTrainer) -> None:
        assert trainer.model is not None and trainer.optimizer is not None
        give_back(trainer.model)
        weights = dict(trainer.model.named_parameters())
        assert all(isinstance(x, DTensor) for x in weights.values())
        here = sum(x.to_local().numel() for x in weights.values())  # type: ignore[attr-defined]
        assert here < 0.6 * sum(x.numel() for x in weights.values())
        moments = [state["exp_avg"] for state in trainer.optimizer.state.values()]
        assert moments and all(isinstance(x, DTensor) for x in moments)

    at_step(1, look)


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "linear" / "stage.json").read_text())


def curve(folder: Path, name: str) -> list[float]:
    return [line[name] for line in json.loads((folder / "linear" / "history.json").read_text()) if name in line]


def assert_same_run(one: Path, other: Path) -> None:
    for name, n in (("loss", STEPS), ("eval_loss", 2), ("grad_norm", STEPS)):
        assert len(curve(one, name)) == n
        assert curve(other, name) == pytest.approx(curve(one, name), abs=1e-5 if name != "grad_norm" else 1e-3), name
    a, b = told(one), told(other)
    assert b["perplexity"] == pytest.approx(a["perplexity"], rel=1e-4)
    assert b["notes"]["output matching"] == a["notes"]["output matching"]  # calibration: the same statistics
    assert b["training_tokens"] == a["training_tokens"]


def test_two_processes_train_as_one(
    tmp_path: Path, smoke: Callable[..., list[str]], shared: list[str], alone: Path, digital: Path
) -> None:
    overrides = smoke(tmp_path / "two", "stage=linear", f"previous={digital}", *shared, *batches(2))
    assert run_together(overrides, tmp_path / "logs") == [0, 0], (tmp_path / "logs" / "1.txt").read_text()
    assert_same_run(alone, tmp_path / "two")


def test_micro_steps_are_one_batch(
    tmp_path: Path, compose: Compose, shared: list[str], alone: Path, digital: Path
) -> None:
    pipeline.execute(
        compose(tmp_path, "stage.name=linear", f"previous={digital}", *shared, *batches(1, 4)), lambda what: None
    )
    assert_same_run(alone, tmp_path)


def test_checkpointed_activations_train_the_same(
    tmp_path: Path, compose: Compose, shared: list[str], alone: Path, digital: Path
) -> None:
    settings = [*shared, *batches(4), "trainer.activation_checkpointing=true"]
    pipeline.execute(compose(tmp_path, "stage.name=linear", f"previous={digital}", *settings), lambda what: None)
    assert_same_run(alone, tmp_path)
    assert same_weights(weights_of(tmp_path / "linear"), weights_of(alone / "linear"))


@pytest.mark.slow
def test_a_model_spread_over_two_processes_trains_as_one(
    tmp_path: Path, smoke: Callable[..., list[str]], shared: list[str], alone: Path, digital: Path
) -> None:
    """FSDP2; the model in its folder is whole, and its scalers are as they were trained."""
    overrides = smoke(
        tmp_path / "two", "stage=linear", f"previous={digital}", *shared, *batches(2), "trainer.sharding=fsdp"
    )
    assert run_together(overrides, tmp_path / "logs", before=look_at_shares) == [0, 0], (
        tmp_path / "logs" / "0.txt"
    ).read_text()
    assert_same_run(alone, tmp_path / "two")
    one, two = weights_of(alone / "linear"), weights_of(tmp_path / "two" / "linear")
    assert {name: x.shape for name, x in one.items()} == {name: x.shape for name, x in two.items()}
    start = weights_of(digital / "digital")
    way = sum(float((one[name] - start[name]).square().sum()) for name in start) ** 0.5
    assert sum(float((one[name] - two[name]).square().sum()) for name in start) ** 0.5 < 0.02 * way


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_where_one_dies_the_other_says_so_and_one_alone_goes_on(
    tmp_path: Path,
    smoke: Callable[..., list[str]],
    compose: Compose,
    shared: list[str],
    alone: Path,
    digital: Path,
    sharding: str,
) -> None:
    common = ["stage=linear", f"previous={digital}", *shared]
    started = time.monotonic()
    overrides = smoke(tmp_path / "run", *common, *batches(2), f"trainer.sharding={sharding}")
    codes = run_together(overrides, tmp_path / "logs", before=kill_the_second)
    assert time.monotonic() - started < 100
    said = (tmp_path / "logs" / "0.txt").read_text()
    assert codes == [RESUME, -signal.SIGKILL], said
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if line.startswith("stopped:"))
    assert "process 0 of 2: another process of this run ended or does not answer" in line
    heard: list[str] = []
    where = [f"stage.name={word.removeprefix('stage=')}" if word.startswith("stage=") else word for word in common]
    pipeline.execute(compose(tmp_path / "run", *where, *batches(4)), lambda what: heard.append(str(what)))
    assert not any("other settings" in line for line in heard), heard
    assert len(curve(tmp_path / "run", "loss")) == STEPS
    assert_same_run(alone, tmp_path / "run")


@pytest.mark.slow
def test_two_share_what_one_alone_began(
    tmp_path: Path, smoke: Callable[..., list[str]], compose: Compose, shared: list[str], alone: Path, digital: Path
) -> None:
    """A point of one process, resumed by two that share the model."""

    def stop(trainer: HardwareAwareTrainer) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(HardwareAwareTrainer, "training_step", HardwareAwareTrainer.training_step)  # put back
        at_step(7, stop)
        with pytest.raises(KeyboardInterrupt):
            pipeline.execute(
                compose(tmp_path / "run", "stage.name=linear", f"previous={digital}", *shared, *batches(4)),
                lambda what: None,
            )
    overrides = smoke(
        tmp_path / "run", "stage=linear", f"previous={digital}", *shared, *batches(2), "trainer.sharding=fsdp"
    )
    assert run_together(overrides, tmp_path / "logs") == [0, 0], (tmp_path / "logs" / "0.txt").read_text()
    assert "other settings" not in (tmp_path / "logs" / "0.txt").read_text()
    assert_same_run(alone, tmp_path / "run")


def test_sharding_by_one_process_is_refused(tmp_path: Path, compose: Compose) -> None:
    with pytest.raises(RunError, match=r"trainer\.sharding=fsdp: this is one process.*torchrun"):
        pipeline.execute(compose(tmp_path, "stage.name=digital", "trainer.sharding=fsdp"), lambda what: None)


def test_a_model_that_cannot_compute_again_says_so() -> None:
    model = tiny_gpt2()
    model.supports_gradient_checkpointing = False
    with (
        pytest.raises(RunError, match=r"trainer\.activation_checkpointing=true: .*; set it to false"),
        checkpointed(model, True),
    ):
        pass


def test_a_batch_is_the_same_however_it_is_shared() -> None:
    recipe = {"batch_size": 4, "accumulate": 2, "steps": 5}
    settings = {"seed": 0, "trainer": {"linear": recipe, "precision": "fp32"}}
    for size, accumulate, processes in ((8, 1, 1), (2, 2, 2), (1, 1, 8)):
        other = {"linear": recipe | {"batch_size": size, "accumulate": accumulate}, "precision": "fp32"}
        assert is_same(settings, {"seed": 0, "trainer": other, "processes": processes})
        assert not is_same(settings, {"seed": 0, "trainer": other, "processes": processes + 1})
    assert not is_same(settings, {**settings, "seed": 1})
    assert not is_same(None, settings)


def test_processes_of_slurm_are_told_what_torchrun_would_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_STEP_NODELIST": "gpu[03-04]",
        "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
        "SLURM_PROCID": "11",
        "SLURM_LOCALID": "3",
        "SLURM_JOB_ID": "1234567",
    }
    wanted = {"RANK": "11", "LOCAL_RANK": "3", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "gpu03"}
    monkeypatch.setattr(os, "environ", {**os.environ, **given, "PATH": str(tmp_path)})
    with pytest.raises(RunError, match="scontrol does not say which node is the first.*torchrun"):
        _from_slurm()
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames gpu[03-04]" ] && printf "gpu03\\ngpu04\\n"\n')
    scontrol.chmod(0o755)
    _from_slurm()
    assert {name: os.environ[name] for name in wanted} == wanted
    assert 20000 <= int(os.environ["MASTER_PORT"]) < 40000
    os.environ["SLURM_PROCID"] = "5"
    _from_slurm()  # torchrun, or an earlier stage, has said who this is
    assert os.environ["RANK"] == "11"


SCRIPT = """
import os, runpy, signal
from train.trainer import HardwareAwareTrainer
original = HardwareAwareTrainer.training_step
def training_step(self, *args, **kwargs):
    if self.state.global_step == 3 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "1":
        assert self.state.global_step >= 2  # from the last point on
    return original(self, *args, **kwargs)
HardwareAwareTrainer.training_step = training_step
runpy.run_module("train", run_name="__main__")
"""


@pytest.mark.slow
def test_torchrun_starts_all_again_where_one_died(tmp_path: Path, smoke: Callable[..., list[str]]) -> None:
    file = tmp_path / "main.py"
    file.write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "--max-restarts", "1", str(file), *smoke(tmp_path / "out", "stage=digital")],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("digital: running") == 2
    assert done.stderr.count("stopped: process 0 of 2: another process of this run ended") == 1
    assert (tmp_path / "out" / "digital" / "model.safetensors").exists()


@pytest.mark.slow
def test_two_processes_run_the_pipeline_as_one(tmp_path: Path, smoke: Callable[..., list[str]]) -> None:
    """From scratch to the report: training, calibration, layer-wise start and measurement over chips."""
    settings = ["model.dropout=0", "stage.with_softmax=false", "nonideality=typical", "recipe=direct"]
    settings += ["hardware.array.full_scales=head"]
    for n in (1, 2):
        sizes = [f"trainer.{recipe}.batch_size={4 // n}" for recipe in ("digital", "match", "finetune")]
        overrides = smoke(tmp_path / str(n), *settings, *sizes)
        assert run_together(overrides, tmp_path / "logs", n=n) == [0] * n, (tmp_path / "logs" / "0.txt").read_text()
    for stage in ("digital", "control", "matched", "finetuned"):
        one, two = (json.loads((tmp_path / str(n) / stage / "stage.json").read_text()) for n in (1, 2))
        assert two["perplexity"] == pytest.approx(one["perplexity"], rel=1e-5), stage
    one, two = (json.loads((tmp_path / str(n) / "report" / "results.json").read_text()) for n in (1, 2))
    chips = [results["per_chip"]["all"] for results in (one, two)]
    assert len(chips[0]) == 2 and chips[1] == pytest.approx(chips[0], rel=1e-5)


@pytest.mark.parametrize(
    ("error", "says", "status"),
    [
        ("gloo: Connection closed by peer [10.0.0.1]", "process 1 of 2: another process of this run ended", RESUME),
        ("PytorchStreamWriter failed writing file", "cannot be written .PytorchStreamWriter failed", 1),
    ],
)
def test_a_process_that_dies_while_a_point_is_saved_is_no_full_disk(
    error: str, says: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = SimpleNamespace(use_distributed=True, process_index=1, num_processes=2)
    monkeypatch.setattr(ranks, "PartialState", lambda: two)
    monkeypatch.setattr(ranks.signal, "signal", lambda *_: None)
    with pytest.raises(RunError, match=says) as found, saving(tmp_path, "output_dir", "", (RuntimeError,)), noticing():
        raise RuntimeError(error)
    assert found.value.status == status and isinstance(found.value, LostRank) == (status == RESUME)
