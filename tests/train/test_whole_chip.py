"""The stage on static tiles, and the command that measures a whole chip: on a model of one layer, and on the shipped
one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aihwkit")

import aimc
from aimc.models.arrays import gain_cell_layers
from aimc.static import static_layers
from tests.conftest import REPOSITORY
from tests.train.conftest import command, compose_config, same_weights, weights_of
from tests.train.test_resume import Killed, at_step, kill
from train import chip, pipeline
from train.chip_report import time_name
from train.configs import checked
from train.errors import RunError
from train.models import load_any
from train.schema import RunConfig, WholeChipConfig
from train.whole_chip import measure

SHIPPED = REPOSITORY / "checkpoints" / "shipped"
FAST = ["stage.with_static=true", "stage.with_control=false", "stage.with_softmax=false", "measure.chips=2"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, compose: Callable[..., RunConfig]) -> Path:
    """A run with the joint stage, finished."""
    folder = tmp_path_factory.mktemp("chip") / "out"
    pipeline.execute(compose(folder, *FAST), lambda what: None)
    return folder


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "joint" / "stage.json").read_text())


def test_the_joint_stage_trains_tiles_and_arrays(done: Path) -> None:
    told = record(done)
    assert told["training_steps"] == 4
    assert list(told["perplexity"]) == [
        "static tiles, untrained, weights as wanted",
        "static tiles, untrained, a day after programming",
        "trained together, weights as wanted",
        "trained together, a day after programming",
    ]
    assert len(told["notes"]["trained together, a day after programming"]) == 2
    assert (
        told["perplexity"]["trained together, a day after programming"]
        < told["perplexity"]["static tiles, untrained, a day after programming"]
    )
    before, after = weights_of(done / "finetuned"), weights_of(done / "joint")
    changed = [name for name, tensor in before.items() if not tensor.equal(after[name])]
    assert any("mlp.c_fc.weight" in name for name in changed) and any("gain_cell" in name for name in changed)
    model = load_any(str(done / "joint"))
    assert len(list(static_layers(model))) == 4 and len(list(gain_cell_layers(model))) == 1
    assert (done / "joint" / "README.md").read_text().startswith("# joint\n")
    assert not [p for p in (done / "joint").rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]


@pytest.mark.slow
def test_a_second_run_skips_it_and_an_interrupted_one_ends_at_the_same_weights(
    done: Path, compose: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    pipeline.execute(compose(done, *FAST, "stage.name=joint"), lambda what: said.append(str(what)))
    assert any("joint" in line and "skipped" in line for line in said)
    other = [*FAST, "stage.name=joint", f"previous={done}"]
    at_step(monkeypatch, 3, kill)
    with pytest.raises(Killed):
        pipeline.execute(compose(tmp_path / "out", *other), lambda what: None)
    monkeypatch.undo()
    pipeline.execute(compose(tmp_path / "out", *other), lambda what: None)
    assert same_weights(weights_of(tmp_path / "out" / "joint"), weights_of(done / "joint"))


def whole_chip(checkpoint: Path, output: Path, text_folder: Path, cache: Path, *more: str) -> WholeChipConfig:
    overrides = [
        f"checkpoint={checkpoint}",
        f"output_dir={output}",
        "data=text",
        f"data.path={text_folder}",
        f"data.cache_dir={cache}",
    ]
    small = ["measure.tokens=96", "measure.chips=2", "calibration_batches=1", *more]
    return checked(compose_config("whole_chip", *overrides, *small), WholeChipConfig)


@pytest.mark.parametrize("stage", ["finetuned", "joint"])
def test_tables_curves_and_figures(
    stage: str, done: Path, text_folder: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(whole_chip(done / stage, tmp_path, text_folder, cache))
    assert {p.name for p in tmp_path.iterdir()} == {"whole_chip.json", "budget.png", "retention.png"}
    results = json.loads((tmp_path / "whole_chip.json").read_text())
    rows = ["digital", "only attention analog", "only static weights analog"]
    rows += ["both"] if stage == "finetuned" else ["both, trained for both", "both, trained for gain cells alone"]
    assert list(results["budget"]) == rows
    curves = ["on tiles as it is"] if stage == "finetuned" else ["trained for both", "trained for gain cells alone"]
    assert list(results["retention"]) == curves
    assert all(len(curve) == 10 for curve in results["retention"].values())
    day = next(r for r in results["retention"][curves[0]] if r["since_programming_s"] == 86400 and r["compensated"])
    assert day["perplexity"]["per_chip"] == results["budget"][rows[3]]["per_chip"]  # the same chips in both
    assert results["static tiles"]["n_tiles"] == 4 and results["static tiles"]["tokens_per_j"] > 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Budget of error, 1 day after programming" in printed and "a joule" in printed
    for name, value in results["budget"].items():
        assert f"{value['mean']:.2f}" in printed, name


def test_a_run_stopped_in_its_curves_leaves_the_budget_and_the_cost(
    done: Path, text_folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chip, "curves", stopped)
    (tmp_path / "retention.png").write_text("of an earlier run")
    with pytest.raises(KeyboardInterrupt):
        measure(whole_chip(done / "finetuned", tmp_path, text_folder, cache))
    results = json.loads((tmp_path / "whole_chip.json").read_text())
    assert list(results["budget"])[-1] == "both" and results["retention"] == {}
    assert results["static tiles"]["tokens_per_j"] > 0 and (tmp_path / "budget.png").exists()
    assert not (tmp_path / "retention.png").exists()  # its curves would stand beside a budget that is not theirs


def test_other_tiles_another_time_and_no_curve(done: Path, text_folder: Path, cache: Path, tmp_path: Path) -> None:
    more = ["static.preset=noiseless", "since_programming_s=3600", "with_curve=false", "nonideality=none"]
    measure(whole_chip(done / "finetuned", tmp_path, text_folder, cache, *more))
    budget = json.loads((tmp_path / "whole_chip.json").read_text())["budget"]
    assert not (tmp_path / "retention.png").exists()
    assert budget["only static weights analog"]["mean"] == pytest.approx(budget["digital"]["mean"], rel=1e-4)
    assert budget["both"]["mean"] == pytest.approx(budget["only attention analog"]["mean"], rel=1e-4)


def test_refusals(done: Path, text_folder: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="its attention is digital"):
        measure(whole_chip(done / "digital", tmp_path, text_folder, cache))
    with pytest.raises(RunError, match="no model there"):
        measure(whole_chip(done / "nothing", tmp_path, text_folder, cache))
    with pytest.raises(RunError, match="digital=.*no model there.*set digital="):
        measure(whole_chip(done / "joint", tmp_path, text_folder, cache, f"digital={done / 'nothing'}"))
    with pytest.raises(RunError, match="untrained=.*has no static tiles"):
        measure(whole_chip(done / "finetuned", tmp_path, text_folder, cache, f"untrained={done / 'adapted'}"))
    assert time_name(86400.0) == "1 day" and time_name(90.0) == "90 s"


@pytest.mark.slow
def test_the_command_on_the_shipped_model(text_folder: Path, cache: Path, tmp_path: Path) -> None:
    small = ["measure.tokens=512", "measure.chips=1", "with_curve=false", "calibration_batches=1"]
    places = [f"output_dir={tmp_path / 'out'}", "data=text", f"data.path={text_folder}", f"data.cache_dir={cache}"]
    ran = command("train.whole_chip", f"checkpoint={SHIPPED / 'joint'}", *small, *places)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "trained for both" in ran.stdout and (tmp_path / "out" / "budget.png").exists()


def test_the_shipped_model_holds_a_day_after_programming() -> None:
    """The card's own measurement: within 1.10 of the digital model, and better than without the training."""
    scores, digital = (
        record(SHIPPED)["perplexity"],
        json.loads((SHIPPED / "digital" / "stage.json").read_text())["perplexity"]["digital"],
    )
    assert scores["trained together, a day after programming"] <= 1.10 * digital
    assert (
        scores["trained together, a day after programming"] < scores["static tiles, untrained, a day after programming"]
    )
    assert len(list(static_layers(aimc.from_pretrained(SHIPPED / "joint")))) == 16
