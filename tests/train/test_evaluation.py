"""`python -m train.evaluate with_digital=true`: which digital model that is, what is measured against it, and what is
refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import aimc
from aimc import presets
from aimc.models.gsa import put_on_cells
from tests.conftest import REPOSITORY, small_arrays, tiny_gpt2
from train.errors import RunError
from train.evaluate import evaluate
from train.evaluation import digital_of
from train.models import load_any
from train.schema import EvaluationConfig, ModelConfig
from train.scratch import fresh_config

Compose = Callable[..., EvaluationConfig]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a tiny digital model, of it on arrays with either activation, and of one of another vocabulary."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "checkpoints" / "shipped" / "digital")
    made = {"alone/plain": tiny_gpt2(vocab_size=len(tokenizer)), "other": tiny_gpt2(vocab_size=len(tokenizer) + 8)}
    made["run/digital"] = tiny_gpt2(seed=1, vocab_size=len(tokenizer))
    for name in ("alone/softmax", "run/softmax", "alone/sigmoid"):
        made[name] = copy.deepcopy(made["alone/plain"])
        hardware = presets.gain_cell_cmos()
        aimc.convert(made[name], small_arrays(presets.with_softmax(hardware) if "softmax" in name else hardware))
    for name, model in made.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def test_a_softmax_checkpoint_against_its_own_weights(
    models: Path, tmp_path: Path, compose_evaluation: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    chips = ["nonideality=typical", "measure.chips=2"]
    evaluate(compose_evaluation(models / "alone" / "softmax", "with_digital=true", f"output_dir={tmp_path}", *chips))
    results = json.loads((tmp_path / "results.json").read_text())
    found, rows = results["agreement"], {row["name"]: row for row in results["rows"]}
    assert found["digital"] == "the same weights" and list(found["rows"]) == ["clean", "all"]
    for name, row in found["rows"].items():
        assert row["perplexity"]["mean"] == pytest.approx(rows[name]["perplexity"], rel=1e-5)
        assert row["perplexity"]["stderr"] == pytest.approx(rows[name]["stderr"], rel=1e-3)
        assert row["ratio"]["mean"] == pytest.approx(row["perplexity"]["mean"] / row["digital"]["mean"])
        assert row["kl"]["mean"] > 0 and 0 < row["top1"]["mean"] <= 1 and row["n_tokens"] == 127
    assert len(found["rows"]["all"]["kl"]["per_chip"]) == 2
    evaluate(compose_evaluation(models / "alone" / "plain", "nonideality=none", f"output_dir={tmp_path / 'plain'}"))
    plain = json.loads((tmp_path / "plain" / "results.json").read_text())
    assert "agreement" not in plain
    digital = found["rows"]["clean"]["digital"]["mean"]
    assert digital == pytest.approx(plain["rows"][0]["perplexity"], rel=1e-5)
    printed = capsys.readouterr().out
    assert "Against the digital model (the same weights)" in printed and f"{digital:.2f}" in printed


def test_what_was_measured_is_kept_where_the_comparison_fails(
    models: Path, tmp_path: Path, compose_evaluation: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise ValueError("too few positions")

    monkeypatch.setattr("train.evaluation.agreement", fails)
    with pytest.raises(RunError, match="too few positions"):
        evaluate(
            compose_evaluation(
                models / "run" / "softmax", "with_digital=true", "nonideality=none", f"output_dir={tmp_path}"
            )
        )
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["name"] == "clean"


@pytest.mark.parametrize(("full_scale", "is_told"), [(0.05, True), (64.0, False)])
def test_full_normalisers_are_told(
    models: Path,
    tmp_path: Path,
    compose_evaluation: Compose,
    capsys: pytest.CaptureFixture[str],
    full_scale: float,
    is_told: bool,
) -> None:
    model, machine = aimc.load_pretrained(models / "alone" / "plain"), small_arrays(presets.gain_cell_normalised())
    aimc.convert(model, replace(machine, normaliser=replace(machine.normaliser, full_scale=full_scale)))
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(models / "alone" / "plain").save_pretrained(tmp_path / "model")
    evaluate(compose_evaluation(tmp_path / "model", "nonideality=none", f"output_dir={tmp_path / 'out'}"))
    printed = capsys.readouterr().out
    assert ("normaliser counters are full in" in printed) == is_told
    assert ("raise hardware.normaliser.full_scale=0.05" in printed) == is_told


def test_the_model_beside_it_or_the_named_one(models: Path, compose_evaluation: Compose) -> None:
    def reference(checkpoint: str, *overrides: str) -> str:
        settings = compose_evaluation(models / checkpoint, "with_digital=true", *overrides)
        return digital_of(settings, load_any(settings.checkpoint)).name

    assert reference("run/softmax") == str(models / "run" / "digital")
    plain = str(models / "alone" / "plain")
    assert reference("run/softmax", f"digital={plain}") == reference("alone/sigmoid", f"digital={plain}") == plain
    assert reference("run/digital", f"digital={plain}") == plain, "a digital model trained further"


@pytest.mark.parametrize(
    ("checkpoint", "overrides", "message"),
    [
        (
            "alone/sigmoid",
            [],
            r"with_digital=true: there is no digital model .*sigmoid with .*; set digital=",
        ),
        ("run/digital", [], r"its own weights are digital already .*; set digital="),
        ("run/softmax", ["digital=MODELS/alone/sigmoid"], r"digital=.*sigmoid: a converted model"),
        ("run/softmax", ["digital=MODELS/other"], r"digital=.*other: reference: it has a vocabulary of 2056"),
        ("run/softmax", ["digital=MODELS/nowhere"], r"digital=.*nowhere: no model there|digital=.*nowhere: cannot be"),
    ],
)
def test_no_digital_model_is_refused_before_anything_is_measured(
    checkpoint: str, overrides: list[str], message: str, models: Path, tmp_path: Path, compose_evaluation: Compose
) -> None:
    places = [override.replace("MODELS", str(models)) for override in overrides]
    fixed = ["with_digital=true", "nonideality=none", f"output_dir={tmp_path / 'out'}"]
    with pytest.raises(RunError, match=message):
        evaluate(compose_evaluation(models / checkpoint, *fixed, *places))
    assert not (tmp_path / "out").exists()


def test_a_digital_model_that_nothing_is_compared_with(models: Path, compose_evaluation: Compose) -> None:
    with pytest.raises(RunError, match=r"digital=x: nothing is compared with it; set with_digital=true"):
        compose_evaluation(models / "run" / "softmax", "digital=x")


def test_slots_in_cells_are_measured_under_noise(models: Path, tmp_path: Path, compose_evaluation: Compose) -> None:
    """They are arrays as well, although not attention's."""
    tokenizer = AutoTokenizer.from_pretrained(models / "alone" / "plain")
    sizes = ModelConfig(family="gsa", n_layer=1, n_embd=32, n_head=2, n_slots=8)
    slots = AutoModelForCausalLM.from_config(fresh_config(sizes, tokenizer))
    machine = presets.with_softmax(presets.gain_cell_cmos())
    put_on_cells(slots, replace(machine, array=replace(machine.array, window=8, rows=8, full_scales="head")))
    slots.save_pretrained(tmp_path / "slots")
    tokenizer.save_pretrained(tmp_path / "slots")
    chips = ["nonideality=typical", "measure.chips=2", "measure.context=32"]
    evaluate(compose_evaluation(tmp_path / "slots", *chips, f"output_dir={tmp_path}"))
    rows = {row["name"]: row for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    assert rows["all"]["perplexity"] != rows["clean"]["perplexity"] and rows["all"]["chips"] == 2
    with pytest.raises(RunError, match="ablate=true: the effects that are switched off are those of attention's"):
        evaluate(compose_evaluation(tmp_path / "slots", *chips, "ablate=true"))
