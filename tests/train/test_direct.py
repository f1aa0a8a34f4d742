"""The default route: nonlinear cells from the start, matched layer by layer, then trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import aimc
from aimc.hardware import Noise
from aimc.models.arrays import gain_cell_layers
from tests.train.conftest import same_weights, weights_of
from train import pipeline
from train.errors import RunError
from train.schema import RunConfig

Compose = Callable[..., RunConfig]
DIRECT = ("recipe=direct", "stage.with_softmax=false")


def execute(config: RunConfig) -> str:
    said: list[str] = []
    pipeline.execute(config, lambda what: said.append(str(what)))
    return "\n".join(said)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, compose: Compose) -> tuple[Path, str]:
    """A finished run, and what it said."""
    folder = tmp_path_factory.mktemp("direct") / "out"
    column = ("hardware.normaliser.is_on=true", "hardware.normaliser.full_scale=0.05")  # soon full
    return folder, execute(
        compose(
            folder,
            *DIRECT,
            *column,
            "stage.fit_sequences=4",
            "trainer.finetune.teacher=control",
            "trainer.finetune.distillation=0.5",
        )
    )


def test_it_has_its_stages_and_no_linear_cell(done: tuple[Path, str]) -> None:
    folder, said = done
    assert {p.name for p in folder.iterdir() if not p.name.startswith(".")} == {
        *("digital", "control", "matched", "finetuned", "report"),
    }
    records = {p.parent.name: json.loads(p.read_text()) for p in folder.glob("*/stage.json")}
    assert list(records["matched"]["perplexity"]) == [
        "nonlinear cell, straight from digital",
        "nonlinear cell, statistics start",
        "nonlinear cell, layer-wise start",
        "nonlinear cell, projections fitted",
    ]
    assert records["matched"]["notes"]["fit of the projections"].startswith(
        "output projections of 1 layers fitted to 128 tokens"
    )
    assert records["matched"]["training_tokens"] == records["finetuned"]["training_tokens"] == 4 * 2 * 32
    assert records["control"]["training_tokens"] == 8 * 2 * 32  # as many as both
    assert records["finetuned"]["settings"]["input"].startswith("match-")
    assert "normaliser counters are full" in said and "raise hardware.normaliser.full_scale=0.05" in said
    assert "of the gap" in said


def test_the_matched_model_differs_in_attention_alone(done: tuple[Path, str]) -> None:
    before, after = (weights_of(done[0] / name) for name in ("digital", "matched"))
    assert {name.split(".")[3] for name, x in before.items() if not x.equal(after[name])} == {"attn"}


def test_it_is_what_the_library_does(done: tuple[Path, str]) -> None:
    model = aimc.from_pretrained(done[0] / "finetuned")
    hardware = next(aimc.models.arrays.gain_cell_layers(model))[1].hardware
    assert hardware.normaliser.is_on and hardware.normaliser.full_scale == 0.05
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.arange(20)[None]).logits).all()


def test_the_control_as_teacher_must_be_there(compose: Compose, tmp_path: Path) -> None:
    config = compose(
        tmp_path / "out",
        *DIRECT,
        "trainer.finetune.teacher=control",
        "trainer.finetune.distillation=0.5",
        "stage.with_control=false",
    )
    with pytest.raises(RunError, match="control"):
        execute(config)


def test_no_steps_is_the_statistics_start(done: tuple[Path, str], compose: Compose, tmp_path: Path) -> None:
    config = compose(tmp_path / "out", *DIRECT, "stage=match", "trainer.match.steps=0", f"previous={done[0]}")
    execute(config)
    record = json.loads((tmp_path / "out" / "matched" / "stage.json").read_text())
    assert list(record["perplexity"])[-1] == "nonlinear cell, statistics start" and record["training_tokens"] == 0
    assert not same_weights(weights_of(tmp_path / "out" / "matched"), weights_of(done[0] / "matched"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["stage.match_own_stream=0.5"], "s, from step 3 on its own hidden states: mean relative error"),
        (["stage.match_patience=1", "trainer.match.learning_rate=1e-12"], "s (stopped early): mean relative error"),
    ],
)
def test_the_own_stream_and_patience(
    done: tuple[Path, str], compose: Compose, tmp_path: Path, settings: list[str], told: str
) -> None:
    said = execute(compose(tmp_path / "out", *DIRECT, "stage=match", *settings, f"previous={done[0]}"))
    assert told in said


@pytest.mark.parametrize("group", ["scalers", "attention"])
def test_a_group_stays_while_blocks_are_matched(
    done: tuple[Path, str], compose: Compose, tmp_path: Path, group: str
) -> None:
    settings = ("stage=match", f"trainer.match.learning_rates.{group}=0", f"previous={done[0]}")
    execute(compose(tmp_path / "start", *DIRECT, "stage=match", "trainer.match.steps=0", f"previous={done[0]}"))
    execute(compose(tmp_path / "out", *DIRECT, *settings))
    before, after = (weights_of(tmp_path / name / "matched") for name in ("start", "out"))
    changed = {
        "scalers" if "gain_cell" in name else "attention" for name, x in before.items() if not x.equal(after[name])
    }
    assert changed == {"scalers", "attention"} - {group}


def test_a_match_that_breaks_is_told_in_a_line(
    done: tuple[Path, str], compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimc.calibrate.output_training.relative_error", lambda output, *_: output.sum() * torch.nan)
    with pytest.raises(RunError, match=r"^stage match: step 0: the error of layer 0 is nan.*; see trainer\.match"):
        execute(compose(tmp_path / "out", *DIRECT, "stage=match", f"previous={done[0]}"))


def test_a_share_of_steps_that_nobody_knows_is_refused(compose: Compose, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"stage\.match_own_stream=0\.5: it is a share of the steps.*minutes=1"):
        compose(tmp_path, *DIRECT, "stage.match_own_stream=0.5", "trainer.match.minutes=1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["stage.match_own_stream=0.01"], r"match_own_stream=0\.01: of trainer\.match\.steps=4 that is not one step"),
        (
            ["recipe=published", "stage.start=published", "hardware.features.balance=true"],
            r"stage\.start=published: it measures nothing.*set stage\.start=statistics",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(compose: Compose, tmp_path: Path, settings: list[str], message: str) -> None:
    with pytest.raises(RunError, match=message):
        compose(tmp_path, *DIRECT, *settings)


RECORDED = ("matched", "finetuned")
FITTED = ("hardware.normaliser.is_on=true", "hardware.array.full_scales=head")


def test_full_scales_of_heads_are_fitted_where_the_hardware_has_them(compose: Compose, tmp_path: Path) -> None:
    """For levels before blocks are matched, for noise behind fine-tuning, and before it where it is under noise."""

    def run(*words: str) -> str:
        return execute(compose(tmp_path / "out", *DIRECT, *FITTED, "stage.with_control=false", *words))

    assert run().count("Full scales of ") == 2
    records = {name: json.loads((tmp_path / "out" / name / "stage.json").read_text()) for name in RECORDED}
    for record in records.values():
        (told,) = record["notes"]["full scales"]
        assert told.startswith("Full scales of ")
    of_match, of_finetune = (records[name]["settings"] for name in RECORDED)
    assert (of_match["fits"], of_finetune["fits"]) == ("levels", "noise")
    assert of_finetune["nonideality"]["read_av"] == 0.02 and "nonideality" not in of_match
    weights = weights_of(tmp_path / "out" / "finetuned")
    found = torch.cat([x for key, x in weights.items() if key.endswith("normaliser_full_scale")])
    assert len(found) and not (found == 1.0).any()
    assert "Full scales of " not in run()  # finished
    assert run("nonideality.read_av=0.1").count("Full scales of ") == 1  # blocks stay matched
    assert run("trainer.finetune.noise.scale=0.5").count("Full scales of ") == 2
    notes = json.loads((tmp_path / "out" / "finetuned" / "stage.json").read_text())["notes"]
    assert len(notes["full scales"]) == 2
    assert "Full scales of " not in run("nonideality=none")  # none depends on them


def test_they_are_fitted_on_a_chip_that_is_not_measured(
    done: tuple[Path, str], compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chips, wanted, fit = [], [], aimc.fit_full_scales

    def watched(model: PreTrainedModel, *given: Any, nonideality: Noise, trained: bool) -> object:
        chips.append({layer.chip_seed for _, layer in gain_cell_layers(model)})
        wanted.append((nonideality.read_av, trained))
        return fit(model, *given, nonideality=nonideality, trained=trained)

    monkeypatch.setattr(aimc, "fit_full_scales", watched)
    finetune = ("stage=finetune", f"previous={done[0]}", "trainer.finetune.noise.scale=0.5")
    execute(compose(tmp_path / "out", *DIRECT, *FITTED, *finetune))
    assert chips == [{2**32}] * 2 and wanted == [(0.01, False), (0.02, True)]
    model = aimc.from_pretrained(tmp_path / "out" / "finetuned")
    assert {layer.chip_seed for _, layer in gain_cell_layers(model)} == {None}
    assert aimc.models.hardware_of(model).noise == Noise()


def test_one_full_scale_for_the_chip_depends_on_no_noise(done: tuple[Path, str]) -> None:
    for name in RECORDED:
        record = json.loads((done[0] / name / "stage.json").read_text())
        assert "full scales" not in record["notes"] and "nonideality" not in record["settings"]


def test_a_fine_tuned_model_goes_on(done: tuple[Path, str], compose: Compose, tmp_path: Path) -> None:
    """From another run's, on other hardware, which is said."""
    out = tmp_path / "out"
    words = ("stage=further", "trainer.further.steps=3", "trainer.further.batch_size=2", f"previous={done[0]}")
    said = execute(compose(out, *DIRECT, *FITTED, *words))
    assert said.count("Full scales of ") == 2 and "on other hardware than it was fine-tuned on" in said
    assert {path.name for path in out.iterdir() if path.is_dir()} >= {"further"}
    record = json.loads((out / "further" / "stage.json").read_text())
    assert list(record["perplexity"]) == ["nonlinear cell, as fine-tuned", "nonlinear cell, trained further"]
    assert record["settings"]["input"].startswith("finetune-") and record["training_tokens"] == 3 * 2 * 32
    assert record["settings"]["trainer"]["further"]["noise"]["scale"] == 1.0
    before, after = weights_of(done[0] / "finetuned"), weights_of(out / "further")
    assert {name for name, x in before.items() if not x.equal(after[name])} >= {"transformer.wte.weight"}
    assert record["perplexity"]["nonlinear cell, as fine-tuned"] == pytest.approx(perplexity_of(done[0] / "finetuned"))
    assert aimc.models.hardware_of(aimc.from_pretrained(out / "further")).array.full_scales == "head"
    assert "skipped" in execute(compose(out, *DIRECT, *FITTED, *words))
    assert "skipped" not in execute(compose(out, *DIRECT, *FITTED, *words, "nonideality.read_av=0.1"))


def perplexity_of(folder: Path) -> float:
    """The last that a stage has measured."""
    return list(json.loads((folder / "stage.json").read_text())["perplexity"].values())[-1]
