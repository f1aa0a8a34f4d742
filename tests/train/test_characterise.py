"""`python -m train.characterise`: names of models, files, and what does not fit, on one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from aimc import presets
from aimc.evaluate.characterise import Plan, Point, running
from aimc.evaluate.characterise.roofline import Roofline
from tests.train.conftest import compose_config
from train.characterisation import subjects
from train.characterise import characterise
from train.characterise_config import MODELS, CharacteriseConfig
from train.configs import checked
from train.errors import RunError

TINY = "gpt2:vocab_size=64,n_embd=32,n_layer=2,n_head=4"
MAMBA = "mamba:vocab_size=64,hidden_size=32,num_hidden_layers=2"


def settings(folder: Path, **changes: object) -> CharacteriseConfig:
    fields = {
        **{"models": [TINY, MAMBA], "lengths": [16, 32], "repetitions": 1, "new_tokens": 2},
        **{"hardware": presets.gain_cell_cmos(), "device": "cpu", "output_dir": str(folder)},
    }
    return CharacteriseConfig(**{**fields, **changes})


def test_a_run_writes_table_csv_json_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    characterise(settings(tmp_path))
    assert {path.suffix for path in tmp_path.iterdir() if path.name.startswith("characterisation")} == {
        *(".json", ".csv", ".png")
    }
    said = capsys.readouterr().out
    for words in (
        "weights are random",
        "between operators",
        "ridge at",
        "Not measured: the cost model",
        "Who takes less",
        "Who takes least at each length",
    ):
        assert words in said
    record = json.loads((tmp_path / "characterisation.json").read_text())
    assert [(p["model"], p["length"]) for p in record["points"]] == [(m, n) for m in (TINY, MAMBA) for n in (16, 32)]
    assert record["roofline"]["flops_per_s"] > 0 and record["estimates"] and record["crossovers"]
    assert not (tmp_path / "characterisation.so_far.csv").exists()
    rows = list(csv.DictReader((tmp_path / "characterisation.csv").open()))
    assert float(rows[0]["kv_bytes"]) == 2 * 2 * 32 * 18 * 4 and float(rows[2]["prompt_host_s: scan"]) > 0


def test_a_run_that_is_stopped_leaves_its_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "characterisation.csv").write_text("of an earlier run")
    measure = running.measure_point

    def stopped(model: object, point: Point, *others: object) -> None:
        if (point.model, point.length) == (MAMBA, 32):
            raise KeyboardInterrupt
        measure(model, point, *others)

    monkeypatch.setattr(running, "measure_point", stopped)
    with pytest.raises(KeyboardInterrupt):
        characterise(settings(tmp_path))
    rows = list(csv.DictReader((tmp_path / "characterisation.so_far.csv").open()))
    assert [(row["model"], row["length"]) for row in rows] == [(TINY, "16"), (TINY, "32"), (MAMBA, "16")]
    assert (tmp_path / "characterisation.csv").read_text() == "of an earlier run"


def test_a_checkpoint_is_not_asked_for_more_than_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.for_model("gpt2", vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=24)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(running, "measure_roofline", lambda *_: Roofline(flops_per_s=1e10, bytes_per_s=1e9))
    chosen = subjects(settings(tmp_path, models=[str(tmp_path / "model")]))
    plan = Plan(lengths=[16, 21, 64], new_tokens=1, repetitions=1)
    first, *others = running.characterise(chosen, plan).points
    assert first.weights == "checkpoint" and first.first_token_s
    assert {point.not_run for point in others} == {"not run (the checkpoint holds 24 positions)"}


def test_models_come_from_conf_and_from_the_table() -> None:
    tiny, shipped, mamba = subjects(settings(Path("."), models=["tiny", "shipped", "mamba_tiny"]))
    assert (tiny.weights, tiny.config.n_layer) == ("random", 4)
    assert shipped.weights == "checkpoint"
    assert mamba.config.model_type == "mamba"
    (gpt2,) = subjects(settings(Path("."), models=["gpt2"]))
    assert (gpt2.weights, gpt2.config.n_layer) == ("random", 12), "nothing is downloaded for the sake of a cost"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": []}, "models=.*nothing to measure"),
        ({"lengths": [4]}, "lengths=.*at least 8 tokens"),
        ({"device": "tpu"}, "device=tpu: unknown"),
        ({"point_s": 0.0}, "point_s=0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(RunError, match=message):
        settings(tmp_path, **change)


def test_an_unknown_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nonsense") as caught:
        characterise(settings(tmp_path, models=["nonsense"]))
    assert "\n" not in str(caught.value)


def test_the_file_of_conf_is_the_default() -> None:
    config = checked(compose_config("characterise", "lengths=[256,65536]"), CharacteriseConfig)
    assert config.models == list(MODELS) and config.hardware == presets.gain_cell_cmos()
