"""`python -m train.real`: rows of the table of a pretrained model on arrays."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import aimc
from aimc.evaluate.measurement import Measurement
from aimc.hardware import Array, presets
from aimc.models.arrays import hardware_of
from tests.tiny_models import tiny_model
from train.errors import RunError
from train.real import real
from train.real_rows import ROWS
from train.schema import ModelConfig, RealConfig
from train.tokens import train_tokenizer

SENTENCE = "the charge of a cell is read and the voltage of a cell is not lost"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama", vocab_size=300).save_pretrained(folder)
    train_tokenizer([SENTENCE] * 3, 300).save_pretrained(folder)
    return folder


def settings(source: Path, tmp_path: Path, **changes: object) -> RealConfig:
    words = SENTENCE.split()
    for name, seed in (("text", 1), ("other", 2)):
        (tmp_path / f"{name}.txt").write_text(" ".join(words[(i * i * seed) % len(words)] for i in range(400)))
    hardware = presets.gain_cell_cmos(2)
    hardware.array = Array(window=32, rows=8)
    fields = {
        "model": ModelConfig(source=str(source)),
        "hardware": hardware,
        "text": str(tmp_path / "text.txt"),
        "calibration_text": str(tmp_path / "other.txt"),
        "calibration_tokens": 64,
        "calibration_context": 32,
        "measure": Measurement(context=32, stride=16, tokens=96, chips=2, batch_size=2),
        "output_dir": str(tmp_path / "out"),
    }
    return RealConfig(**{**fields, **changes})


def test_rows_are_measured_written_and_not_measured_twice(source: Path, tmp_path: Path) -> None:
    config = settings(source, tmp_path, rows=["6_bit", "3_bit_pruned", "bare_percentile"])
    real(config)
    file = tmp_path / "out" / "results.json"
    first = json.loads(file.read_text())["rows"]
    assert list(first) == ["digital", "6_bit", "3_bit_pruned", "bare_percentile"]
    pruned = first["3_bit_pruned"]
    assert 0.2 < pruned["kept_share"] < pruned["recalled_mass"] < 1.0
    assert first["6_bit"]["kl"] < first["bare_percentile"]["kl"]
    assert first["6_bit"]["ratio"] == pytest.approx(1.0, abs=0.05)
    real(settings(source, tmp_path, rows=["6_bit", "6_bit_noise"]))
    second = json.loads(file.read_text())["rows"]
    assert second["6_bit"] == first["6_bit"]  # the seconds included
    assert second["6_bit_noise"]["chips"] == 2 and "3_bit_pruned" in second
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert len(lines) == 2 + 3 and lines[3].startswith("| 6-bit storage and inputs, 8-bit converters |")
    real(settings(source, tmp_path, rows=["6_bit"], calibration_tokens=32))
    assert json.loads(file.read_text())["rows"]["6_bit"] != first["6_bit"]  # other settings: measured again
    real(settings(source, tmp_path, rows=["6_bit"]))  # and the first are not lost
    assert json.loads(file.read_text())["rows"] == second


def test_other_weights_in_the_same_folder_are_measured_again(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    config = settings(folder, tmp_path, rows=["6_bit"])
    real(config)
    file = tmp_path / "out" / "results.json"
    before = json.loads(file.read_text())["rows"]["digital"]["perplexity"]
    tiny_model("llama", seed=1, vocab_size=300).save_pretrained(folder)
    real(config)
    assert json.loads(file.read_text())["rows"]["digital"]["perplexity"] != before


def test_another_machine_or_text_is_measured_again_and_models_are_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "out" / "results.json"

    def measured(**changes: object) -> dict:
        real(settings(source, tmp_path, rows=["6_bit"], **changes))
        return json.loads(file.read_text())["rows"]["6_bit"]

    first = measured()
    assert not (tmp_path / "out" / "6_bit").exists()
    saved = measured(save=True)
    assert saved["ratio"] == first["ratio"] and saved != first
    model = aimc.from_pretrained(tmp_path / "out" / "6_bit")
    assert hardware_of(model).storage_dac.n_levels == 64
    monkeypatch.setitem(ROWS, "6_bit", replace(ROWS["6_bit"], machine=ROWS["3_bit"].machine))
    other = measured()
    assert other["ratio"] != first["ratio"]
    (tmp_path / "text.txt").unlink()
    assert measured(text=str(tmp_path / "other.txt"))["ratio"] != other["ratio"]


def test_every_row_is_a_machine_and_says_what_it_is() -> None:
    base = presets.gain_cell_cmos()
    machines = [(row.machine(base), row.method, row.noise) for row in ROWS.values()]
    assert all(a != b for i, a in enumerate(machines) for b in machines[:i])
    assert len({row.title for row in ROWS.values() if not row.title.startswith("…")}) == sum(
        not row.title.startswith("…") for row in ROWS.values()
    )


def test_what_cannot_be_measured_is_told_at_once(source: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no row 7_bit; the rows are no_levels"):
        real(settings(source, tmp_path, rows=["7_bit"]))
    with pytest.raises(RunError, match="calibration_text: .* fewer than one window of 5000"):
        real(settings(source, tmp_path, calibration_context=5000))
    with pytest.raises(RunError, match=r"text=.*none\.txt: cannot be read"):
        real(settings(source, tmp_path, text=str(tmp_path / "none.txt")))
    with pytest.raises(RunError, match="go together"):
        settings(source, tmp_path, calibration_text=None)
    with pytest.raises(RunError, match=r"model\.source"):
        settings(source, tmp_path, model=ModelConfig())
