"""The whole pipeline once, small; what a second run skips; what a run refuses before it trains."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

import aimc
from aimc import presets
from aimc.models.manifest import MANIFEST
from tests.train.conftest import english, same_weights, weights_of
from train import pipeline
from train.errors import RunError
from train.evaluate import evaluate
from train.report import gap_closed
from train.schema import EvaluationConfig, RunConfig
from train.stages import ROUTES, STAGES

Compose = Callable[..., RunConfig]
TOKENS_A_STEP = 2 * 32
FOLDERS = {name: stage.folder for name, stage in STAGES.items()}
ORDER = [name for name, stage in ROUTES["published"].items() if name != "joint" and not stage.is_alone]
"""The stages of the smoke experiment; the others have tests of their own."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, compose: Compose) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run") / "out"
    execute(compose(folder))
    return folder


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to change."""
    return Path(shutil.copytree(done, tmp_path / "again"))


def execute(config: RunConfig) -> str:
    """Run; return what was said."""
    said: list[str] = []
    pipeline.execute(config, lambda what: said.append(str(what)))
    return "\n".join(said)


def record(folder: Path, stage: str) -> dict[str, Any]:
    return json.loads((folder / FOLDERS[stage] / "stage.json").read_text())


def held_out(done: Path) -> torch.Tensor:
    """The first 128 tokens of the test text, made without the pipeline."""
    ids = AutoTokenizer.from_pretrained(done / "digital")(english(3000, skip=23000))["input_ids"]
    return torch.tensor(ids[:128])


def times(folder: Path) -> dict[str, int]:
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns
        for stage in ORDER
        for p in (folder / FOLDERS[stage]).rglob("*")
        if p.is_file()
    }


def test_every_stage_leaves_a_whole_folder_and_nothing_else(done: Path) -> None:
    assert {p.name for p in done.iterdir() if not p.name.startswith(".")} == {
        *(FOLDERS[stage] for stage in ORDER),
        "report",
    }
    assert not [p for p in done.rglob("*") if "partial" in p.name or p.name.endswith(".old") or "checkpoint" in p.name]
    assert not [p for p in done.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    for stage in ORDER:
        names = {p.name for p in (done / FOLDERS[stage]).iterdir()}
        assert names >= {
            "model.safetensors",
            "config.json",
            "tokenizer.json",
            "stage.json",
            "history.json",
            "README.md",
        }, stage


@pytest.mark.parametrize(
    ("stage", "steps"), [("digital", 4), ("control", 8), ("softmax", 0), ("linear", 4), ("adapt", 0), ("finetune", 4)]
)
def test_the_record_and_the_card_say_what_was_done(done: Path, stage: str, steps: int) -> None:
    told = record(done, stage)
    assert told["stage"] == stage
    assert told["training_tokens"] == steps * TOKENS_A_STEP
    assert told["training_steps"] == steps
    card = (done / FOLDERS[stage] / "README.md").read_text()
    assert card.startswith(f"# {stage}\n")
    assert f"{steps * TOKENS_A_STEP} tokens" in card
    for name, value in told["perplexity"].items():
        assert f"| {name} | {value:.2f} |" in card


def test_perplexities_are_those_of_a_model_that_learned_something(done: Path) -> None:
    digital = record(done, "digital")["perplexity"]["digital"]
    assert 100 < digital < 310  # 300 tokens; barely trained
    assert record(done, "control")["perplexity"]["digital, same extra tokens"] < digital
    values = record(done, "linear")["perplexity"]
    assert list(values) == ["linear cell, published start", "linear cell, statistics start", "linear cell, trained"]
    assert values["linear cell, trained"] < values["linear cell, statistics start"]
    values = record(done, "softmax")["perplexity"]
    assert values["softmax, ideal arrays"] == pytest.approx(digital, rel=0.01)
    assert values["softmax, finer levels"] == pytest.approx(digital, rel=0.05)
    adapted = record(done, "adapt")["perplexity"]["nonlinear cell, adapted"]
    assert record(done, "finetune")["perplexity"]["nonlinear cell, fine-tuned"] < adapted


def test_the_models_load_and_have_the_measured_perplexity(done: Path) -> None:
    for stage, name in (
        ("digital", "digital"),
        ("softmax", "softmax, finer levels"),
        ("linear", "linear cell, trained"),
        ("adapt", "nonlinear cell, adapted"),
        ("finetune", "nonlinear cell, fine-tuned"),
    ):
        folder = done / FOLDERS[stage]
        model = AutoModelForCausalLM.from_pretrained(folder) if stage == "digital" else aimc.from_pretrained(folder)
        got = aimc.perplexity(
            model, held_out(done), context=32, nonideality=None if stage == "digital" else aimc.Noise()
        ).mean
        assert got == pytest.approx(record(done, stage)["perplexity"][name], rel=1e-5), stage


def test_cells_are_linear_then_nonlinear(done: Path) -> None:
    cells = {
        stage: aimc.models.arrays.hardware_of(aimc.from_pretrained(done / FOLDERS[stage])).cell
        for stage in ("linear", "adapt", "finetune")
    }
    assert cells["linear"].coefficients == [0.0, presets.LINEAR_SLOPE]
    assert cells["adapt"] == cells["finetune"] == presets.gain_cell_cmos().cell


def test_adaptation_moves_scalers_only(done: Path) -> None:
    before, after = weights_of(done / "linear"), weights_of(done / "adapted")
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved
    assert all(".gain_cell." in name for name in moved)


def test_the_history_has_every_step(done: Path) -> None:
    history = json.loads((done / "linear" / "history.json").read_text())
    assert [line["step"] for line in history if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in history if "eval_loss" in line] == [2, 4]
    assert [line["tokens"] for line in history if "loss" in line] == [64, 128, 192, 256]
    control = json.loads((done / "control" / "history.json").read_text())
    assert [(line["step"], line["tokens"]) for line in control if "loss" in line] == [(i, 64 * i) for i in range(1, 9)]


def test_the_report_holds_every_number_twice_and_three_figures(done: Path) -> None:
    results = json.loads((done / "report" / "results.json").read_text())
    assert results["rule"] == {"context": 32, "stride": 16, "scored_tokens": 127}
    of_stages = {row["name"]: row["perplexity"] for row in results["rows"] if row["group"] == "stage"}
    assert of_stages == {name: value for stage in ORDER for name, value in record(done, stage)["perplexity"].items()}
    noise = {row["name"]: row for row in results["rows"] if row["group"] == "nonideality"}
    assert list(noise) == ["clean", *presets.typical().active(), "all"]
    assert noise["clean"]["chips"] == 1
    assert noise["clean"]["perplexity"] == pytest.approx(of_stages["nonlinear cell, fine-tuned"], rel=1e-6)
    assert noise["all"]["chips"] == 2
    assert noise["all"]["std"] > 0
    assert sum(results["per_chip"]["all"]) / 2 == pytest.approx(noise["all"]["perplexity"])
    with (done / "report" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["group"], r["name"], float(r["perplexity"])) for r in rows] == [
        (r["group"], r["name"], r["perplexity"]) for r in results["rows"]
    ]
    for name in ("nonidealities", "adaptation", "training"):
        assert (done / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_writes_no_model(done: Path, compose: Compose) -> None:
    before = times(done)
    said = execute(compose(done))
    assert times(done) == before
    assert said.count("skipped") == len(ORDER)
    assert not (done / ".work").exists() or not list((done / ".work").iterdir())


@pytest.mark.slow
def test_a_changed_setting_reruns_what_depends_on_it(again: Path, compose: Compose) -> None:
    before = times(again)
    said = execute(compose(again, "trainer.finetune.learning_rate=1e-4"))
    after = times(again)
    changed = {name.split("/")[0] for name in before if before[name] != after[name]}
    assert changed == {"control", "finetuned"}
    assert said.count("skipped") == 4
    assert said.count("had other settings; running it again") == 2


def test_a_changed_early_stage_reruns_the_later_ones(again: Path, compose: Compose) -> None:
    before = times(again)
    execute(compose(again, "trainer.linear.steps=3", "stage.name=linear"))
    said = execute(compose(again, "trainer.linear.steps=3"))
    after = times(again)
    assert {name.split("/")[0] for name in before if before[name] != after[name]} == {
        "control",
        "linear",
        "adapted",
        "finetuned",
    }
    assert said.count("skipped") == 3  # digital and softmax, and linear, which the first command ran


def test_a_model_that_reads_other_tokens_is_refused(
    done: Path, tmp_path: Path, compose: Compose, text_folder: Path
) -> None:
    """Of as many, so that every id would be known, and stand for another piece of text."""
    other = tmp_path / "text"
    other.mkdir()
    for file in text_folder.iterdir():
        (other / file.name).write_text(file.read_text()[::-1])
    for stage in ("linear", "evaluate"):
        previous = f"output_dir={done}" if stage == "evaluate" else f"previous={done}"
        config = compose(tmp_path / "out", f"data.path={other}", f"stage.name={stage}", previous)
        with pytest.raises(RunError, match=r"its tokenizer is not the one of this run's text.*set model\.source="):
            execute(config)


def test_weights_behind_a_source_that_changed_are_read_again(done: Path, tmp_path: Path, compose: Compose) -> None:
    source = tmp_path / "source"
    shutil.copytree(done / "digital", source)
    config = compose(tmp_path / "out", f"model.source={source}", "stage.name=digital", "trainer.digital.steps=0")
    execute(config)
    assert "skipped" in execute(config)
    weights = weights_of(source)
    weights["transformer.wte.weight"] += 1.0
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    (source / MANIFEST).unlink(missing_ok=True)
    assert "had other settings" in execute(config)
    mark = tmp_path / "out" / "digital" / "stage.json"
    record_of_old = json.loads(mark.read_text())
    del record_of_old["settings"]["source"]  # by a version that did not look
    mark.write_text(json.dumps(record_of_old))
    (tmp_path / "out" / "digital" / MANIFEST).unlink()
    assert "skipped" in execute(config)


def test_measured_with_other_windows(done: Path, again: Path, compose: Compose) -> None:
    said = execute(compose(again, "stage.name=digital", "measure.stride=8"))
    assert "its perplexities were measured with measure.context=" in said and "measure.stride=" in said


def test_restart_runs_a_finished_stage_to_the_same_weights(again: Path, done: Path, compose: Compose) -> None:
    before = times(again)
    execute(compose(again, "restart=true", "stage.name=linear"))
    assert times(again)["linear/model.safetensors"] != before["linear/model.safetensors"]
    assert same_weights(weights_of(again / "linear"), weights_of(done / "linear"))


def test_a_crash_while_a_folder_is_written_leaves_the_old_one(
    again: Path, done: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr("train.record.model_card", fail)  # after the weights, before the end
    with pytest.raises(RunError, match=r"output_dir=.*finetuned: cannot be written \(disk full\); .*; make room"):
        execute(compose(again, "trainer.finetune.learning_rate=1e-4", "stage.name=finetune"))
    assert same_weights(weights_of(again / "finetuned"), weights_of(done / "finetuned"))
    assert record(again, "finetune") == record(done, "finetune")
    monkeypatch.undo()
    execute(compose(again, "trainer.finetune.learning_rate=1e-4", "stage.name=finetune"))
    assert not same_weights(weights_of(again / "finetuned"), weights_of(done / "finetuned"))
    assert not list(again.glob(".*.partial")) + list(again.glob(".*.old"))


def test_previous_gives_the_input_that_the_output_has_not(tmp_path: Path, done: Path, compose: Compose) -> None:
    execute(compose(tmp_path / "new", "stage.name=finetune", f"previous={done}"))
    assert {p.name for p in (tmp_path / "new").iterdir() if not p.name.startswith(".")} == {"finetuned"}
    assert same_weights(weights_of(tmp_path / "new" / "finetuned"), weights_of(done / "finetuned"))


@pytest.mark.parametrize(
    ("stage", "needed"), [("control", "digital"), ("linear", "digital"), ("adapt", "linear"), ("finetune", "adapt")]
)
def test_a_stage_without_its_input_says_what_to_run(tmp_path: Path, compose: Compose, stage: str, needed: str) -> None:
    with pytest.raises(
        RunError,
        match=(
            rf"stage {stage} starts from the {needed} model, and there is none in .*; run stage={needed} or"
            r" stage=pipeline"
        ),
    ):
        execute(compose(tmp_path, f"stage.name={stage}"))


def test_evaluating_nothing_says_what_to_run(tmp_path: Path, compose: Compose) -> None:
    with pytest.raises(RunError, match="no analog model to evaluate; run stage=pipeline first"):
        execute(compose(tmp_path, "stage.name=evaluate"))


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if any stage starts."""
    monkeypatch.setattr(pipeline, "run_stage", lambda run: pytest.fail("a stage was started"))


@pytest.fixture
def folder_of_model(tmp_path: Path, done: Path) -> Path:
    """The digital model in a folder of its own, whose files a test may change."""
    return Path(shutil.copytree(done / "digital", tmp_path / "model", ignore=shutil.ignore_patterns(MANIFEST)))


def test_an_output_that_cannot_be_written_is_refused_first(tmp_path: Path, compose: Compose, no_training: None) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunError,
        match=r"output_dir=.*file/out: cannot be written \(Not a directory\); choose another with output_dir=…",
    ):
        execute(compose(tmp_path / "file" / "out"))


def test_sequences_longer_than_the_positions_are_refused_first(
    tmp_path: Path, compose: Compose, no_training: None
) -> None:
    with pytest.raises(
        RunError, match=r"data\.context=64: the model has 32 positions, .*; set data\.context=32 or less"
    ):
        execute(compose(tmp_path, "data.context=64"))


def test_a_stride_longer_than_the_context_is_refused_first(tmp_path: Path, compose: Compose, no_training: None) -> None:
    with pytest.raises(RunError, match=r"measure\.stride=33: .*; set it to 32 or less"):
        execute(compose(tmp_path, "measure.stride=33"))


def test_a_shorter_context_is_used_throughout(tmp_path: Path, compose: Compose) -> None:
    execute(compose(tmp_path, "data.context=16", "stage.name=digital"))
    assert record(tmp_path, "digital")["training_tokens"] == 4 * 2 * 16


def test_a_missing_model_is_refused_first(tmp_path: Path, compose: Compose, no_training: None) -> None:
    with pytest.raises(RunError, match=r"model\.source=.*nowhere: no model there: .*; check the path or the network"):
        execute(compose(tmp_path, f"model.source={tmp_path}/nowhere"))


def test_a_truncated_model_is_named(tmp_path: Path, compose: Compose, folder_of_model: Path) -> None:
    weights = folder_of_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(RunError, match=r"model\.source=.*model: cannot be loaded"):
        execute(compose(tmp_path / "out", f"model.source={folder_of_model}"))


@pytest.mark.parametrize("stage", ["pipeline", "linear"])
def test_a_model_without_supported_attention_is_refused_first(
    tmp_path: Path, compose: Compose, folder_of_model: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.run.train", lambda *args, **kwargs: pytest.fail("training was started"))
    BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(folder_of_model)
    out = tmp_path / "out"
    if stage == "linear":
        shutil.copytree(folder_of_model, out / FOLDERS["digital"])
    with pytest.raises(RunError, match=r"BloomForCausalLM.*cannot go onto gain-cell arrays.*attention interface"):
        execute(compose(out, f"model.source={folder_of_model}", f"stage.name={stage}", "data.context=32"))


def test_token_ids_outside_the_vocabulary_are_refused_first(
    tmp_path: Path, compose: Compose, no_training: None, folder_of_model: Path
) -> None:
    small = GPT2LMHeadModel(
        GPT2Config(vocab_size=200, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    small.save_pretrained(folder_of_model)
    with pytest.raises(RunError, match=r"token ids up to 299, outside the model's vocabulary of 200"):
        execute(compose(tmp_path / "out", f"model.source={folder_of_model}"))


def test_too_few_tokens_for_calibration_are_named(tmp_path: Path, done: Path, compose: Compose) -> None:
    with pytest.raises(
        RunError, match=r"stage\.calibration_batches=1000 × 4 sequences of 32 tokens need 128000 training tokens"
    ):
        execute(compose(tmp_path, "stage.calibration_batches=1000", "stage.name=adapt", f"previous={done}"))


def test_a_model_from_another_hardware_version_is_named(again: Path, compose: Compose) -> None:
    (again / "adapted" / MANIFEST).unlink()
    file = again / "adapted" / "config.json"
    config = json.loads(file.read_text())
    config["aimc"]["version"] = 99
    file.write_text(json.dumps(config))
    with pytest.raises(
        RunError, match=r"adapted/config\.json: version=99: .*; install a newer aimc, or convert the model again"
    ):
        execute(compose(again, "stage.name=finetune", "restart=true"))


@pytest.mark.parametrize(
    ("values", "share"),
    [((100.0, 400.0, 200.0), 0.5), ((100.0, 400.0, 100.0), 1.0), ((100.0, 90.0, 80.0), None)],
)
def test_the_gap_is_counted_in_nats(values: tuple[float, float, float], share: float | None) -> None:
    names = ("digital", "nonlinear cell, unadapted", "nonlinear cell, fine-tuned")
    got = gap_closed(dict(zip(names, values, strict=True)))
    assert got is None if share is None else got == pytest.approx(share)


def test_evaluating_a_converted_checkpoint(
    done: Path, tmp_path: Path, compose_evaluation: Callable[..., EvaluationConfig]
) -> None:
    evaluate(compose_evaluation(done / "finetuned", "measure.chips=2", f"output_dir={tmp_path}", "ablate=true"))
    results = json.loads((tmp_path / "results.json").read_text())
    rows = {(row["group"], row["name"]): row for row in results["rows"]}
    assert rows["nonideality", "clean"]["perplexity"] == pytest.approx(
        record(done, "finetune")["perplexity"]["nonlinear cell, fine-tuned"], rel=1e-5
    )
    assert rows["stage", "all effects"]["perplexity"] == pytest.approx(
        rows["nonideality", "clean"]["perplexity"], rel=1e-6
    )
    assert rows["nonideality", "all"]["chips"] == 2
    assert (tmp_path / "nonidealities.png").exists()
    assert (tmp_path / "results.csv").exists()


def test_evaluating_a_digital_checkpoint_beside_its_files(
    again: Path, compose_evaluation: Callable[..., EvaluationConfig]
) -> None:
    evaluate(compose_evaluation(again / "digital", "nonideality=none"))
    results = json.loads((again / "digital" / "evaluation" / "results.json").read_text())
    assert [row["name"] for row in results["rows"] if row["group"] == "nonideality"] == ["clean"]
    assert results["rows"][-1]["perplexity"] == pytest.approx(
        record(again, "digital")["perplexity"]["digital"], rel=1e-5
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"a digital model has no arrays to be non-ideal; set nonideality=none"),
        (["nonideality=none", "data.context=64"], r"data\.context=64: the model has 32 positions"),
        (["nonideality=none", "measure.stride=40"], r"measure\.stride=40: .*; set it to 32 or less"),
    ],
)
def test_an_evaluation_that_makes_no_sense_is_refused(
    again: Path, compose_evaluation: Callable[..., EvaluationConfig], overrides: list[str], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        evaluate(compose_evaluation(again / "digital", *overrides))


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
def test_a_damaged_checkpoint_is_named(
    again: Path, compose_evaluation: Callable[..., EvaluationConfig], damage: str
) -> None:
    file = again / "finetuned" / damage
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(RunError, match=r"finetuned.*(damaged|cannot be read).*use another copy"):
        evaluate(compose_evaluation(again / "finetuned"))
