"""A fine-tuned model recalibrated to one chip: what changes, on which chip it helps, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import aimc
from aimc.hardware import Noise
from tests.conftest import REPOSITORY
from tests.train.conftest import compose_config, weights_of
from train import pipeline
from train.configs import checked
from train.errors import RunError
from train.schema import RunConfig

SHIPPED = REPOSITORY / "checkpoints" / "shipped"
FOLDER, CHIP, OTHER = "recalibrated", 7, 8
OFFSETS = ("nonideality=none", "nonideality.column_offset=0.1")
"""A chip whose columns are far off, each its own way, and the same at every read."""


def config(output: Path, text: Path, *words: str) -> RunConfig:
    """Of the model that ships, on little text."""
    groups = ["experiment=release", "stage=recalibrate", "model=shipped", "data=text"]
    short = [f"trainer.recalibrate.{word}" for word in ("steps=8", "batch_size=4", f"noise.chip={CHIP}")]
    short += ["measure.tokens=512", "trainer.eval_tokens=512"]
    places = [f"previous={SHIPPED}", f"output_dir={output}", f"data.path={text}", f"data.cache_dir={output / 'cache'}"]
    return checked(compose_config("run", *groups, *short, *places, *words), RunConfig)


def recalibrated(output: Path, text: Path, *words: str) -> dict[str, float]:
    """The stage run; its perplexities."""
    pipeline.execute(config(output, text, *words), lambda what: None)
    return json.loads((output / FOLDER / "stage.json").read_text("utf-8"))["perplexity"]


def test_scalers_alone_change_and_the_chip_is_better_for_it(tmp_path: Path, text_folder: Path) -> None:
    before, after = recalibrated(tmp_path, text_folder, *OFFSETS).values()
    assert after < 0.99 * before
    was, is_now = weights_of(SHIPPED / "finetuned"), weights_of(tmp_path / FOLDER)
    changed = {name for name in was if not was[name].equal(is_now[name])}
    assert changed and all("scaler" in name for name in changed)


def test_what_is_learned_with_the_projections_is_this_chips(tmp_path: Path, text_folder: Path) -> None:
    """It helps the chip that it was learned on more than another of the same kind."""
    words = (*OFFSETS, "trainer.recalibrate.learning_rates.attention=1")
    perplexity = recalibrated(tmp_path, text_folder, *words)
    text = pipeline.opened(config(tmp_path, text_folder, *words), lambda what: None, pipeline.PartialState()).text

    def on_chip(folder: Path, chip: int) -> float:
        model = aimc.from_pretrained(folder)
        noise = Noise(column_offset=0.1)
        return float(aimc.perplexity(model, text, context=256, stride=128, nonideality=noise, chips=1, seed=chip))

    before, after = SHIPPED / "finetuned", tmp_path / FOLDER
    gain = {chip: on_chip(before, chip) / on_chip(after, chip) for chip in (CHIP, OTHER)}
    assert list(perplexity) == [f"chip {CHIP}, as it is", f"chip {CHIP}, recalibrated"]
    assert list(perplexity.values()) == pytest.approx([on_chip(before, CHIP), on_chip(after, CHIP)])
    assert gain[CHIP] > 1.02 * gain[OTHER]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.recalibrate.noise.chip=fresh"], r"^trainer\.recalibrate\.noise\.chip=fresh: .*one chip.*number"),
        (["trainer.recalibrate.noise.scale=0"], r"^trainer\.recalibrate\.noise\.scale=0: nothing is off"),
        (["nonideality=none"], r"^trainer\.recalibrate\.noise\.scale=1\.0: it scales `nonideality`"),
        (["previous=null"], "^stage recalibrate learns from the digital model, and there is none in"),
    ],
)
def test_what_is_no_recalibration_is_refused_at_once(
    words: list[str], message: str, tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "run_stage", lambda run: pytest.fail("a stage was started"))
    with pytest.raises(RunError, match=message):
        pipeline.execute(config(tmp_path, text_folder, *words), lambda what: None)
