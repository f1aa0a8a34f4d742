"""Several processes train as one: the same losses, statistics and perplexities, whole checkpoints, and what is said
where one of them dies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import weights_of
from tests.train.processes import run_together
from train import pipeline
from train.schema import RunConfig

Compose = Callable[..., RunConfig]
STEPS = 20
RECIPE = {
    "steps": STEPS,
    "warmup_steps": 2,
    "log_every": 1,
    "eval_every": 10,
    "save_every": 10,
    "noise.scale": 1.0,
    "noise.evaluate": "noisy",
}
SHARED = ["nonideality=typical", "trainer.eval_tokens=192", *(f"trainer.linear.{k}={v}" for k, v in RECIPE.items())]


def batches(size: int, accumulate: int = 1) -> list[str]:
    return [f"trainer.linear.batch_size={size}", f"trainer.linear.accumulate={accumulate}"]


@pytest.fixture(scope="module")
def digital(tmp_path_factory: pytest.TempPathFactory, compose: Compose) -> Path:
    folder = tmp_path_factory.mktemp("digital")
    pipeline.execute(compose(folder, "stage.name=digital", "model.dropout=0"), lambda what: None)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, compose: Compose, digital: Path) -> Path:
    """By one process, four sequences a step."""
    folder = tmp_path_factory.mktemp("alone")
    pipeline.execute(compose(folder, "stage.name=linear", f"previous={digital}", *SHARED, *batches(4)), lambda what: None)
    return folder


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
    tmp_path: Path, smoke: Callable[..., list[str]], alone: Path, digital: Path
) -> None:
    overrides = smoke(tmp_path / "two", "stage=linear", f"previous={digital}", *SHARED, *batches(2))
    assert run_together(overrides, tmp_path / "logs") == [0, 0], (tmp_path / "logs" / "1.txt").read_text()
    assert_same_run(alone, tmp_path / "two")


def test_micro_steps_are_one_batch(tmp_path: Path, compose: Compose, alone: Path, digital: Path) -> None:
    pipeline.execute(
        compose(tmp_path, "stage.name=linear", f"previous={digital}", *SHARED, *batches(1, 4)), lambda what: None
    )
    assert_same_run(alone, tmp_path)


@pytest.mark.slow
def test_a_model_spread_over_two_processes_trains_as_one(
    tmp_path: Path, smoke: Callable[..., list[str]], alone: Path, digital: Path
) -> None:
    """FSDP2; the model in its folder is whole, and its scalers are as they were trained."""
    overrides = smoke(
        tmp_path / "two", "stage=linear", f"previous={digital}", *SHARED, *batches(2), "trainer.sharding=fsdp"
    )
    assert run_together(overrides, tmp_path / "logs") == [0, 0], (tmp_path / "logs" / "0.txt").read_text()
    assert_same_run(alone, tmp_path / "two")
    one, two = weights_of(alone / "linear"), weights_of(tmp_path / "two" / "linear")
    assert {name: x.shape for name, x in one.items()} == {name: x.shape for name, x in two.items()}
    start = weights_of(digital / "digital")
    way = sum(float((one[name] - start[name]).square().sum()) for name in start) ** 0.5
    assert sum(float((one[name] - two[name]).square().sum()) for name in start) ** 0.5 < 0.02 * way
