"""The shipped checkpoints are what their cards say."""

from __future__ import annotations

import importlib.util
import json
import math
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import aimc
from train import corpus

SHIPPED = Path(__file__).parents[1] / "checkpoints" / "shipped"
STAGES = ("digital", "control", "linear", "adapted", "finetuned")
ON_TILES = pytest.param(
    "joint", marks=pytest.mark.skipif(importlib.util.find_spec("aihwkit") is None, reason="static tiles need aihwkit")
)


def load(stage: str) -> PreTrainedModel:
    if stage in ("digital", "control"):
        return AutoModelForCausalLM.from_pretrained(SHIPPED / stage)
    return aimc.from_pretrained(SHIPPED / stage)


def record(stage: str) -> dict:
    return json.loads((SHIPPED / stage / "stage.json").read_text())


@pytest.fixture(scope="module")
def held_out() -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / "digital")
    text = "\n\n".join(text for split, text in corpus.embedded() if split == "test")
    return torch.tensor(tokenizer(text)["input_ids"])


@pytest.fixture(scope="module")
def score(held_out: torch.Tensor) -> Callable[[str], float]:
    """Perplexity of a stage on the first 4096 tokens."""
    return cache(lambda stage: float(aimc.perplexity(load(stage), held_out[:4096])))


@pytest.mark.parametrize("stage", [*STAGES, "joint"])
def test_folder_is_whole_and_small(stage: str) -> None:
    files = {file.name: file.stat().st_size for file in (SHIPPED / stage).iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "stage.json", "history.json"} <= set(
        files
    )
    assert sum(files.values()) < 8e6
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in files)
    card = (SHIPPED / stage / "README.md").read_text()
    assert f"{list(record(stage)['perplexity'].values())[-1]:.2f}" in card and "Command" in card


@pytest.mark.parametrize("stage", [*STAGES, ON_TILES])
def test_scores_about_what_its_card_says(stage: str, score: Callable[[str], float]) -> None:
    """Another stretch and another Python give another perplexity, but not another kind of model."""
    recorded = list(record(stage)["perplexity"].values())[-1]
    assert score(stage) == pytest.approx(recorded, rel=0.35)


def test_the_story_holds(held_out: torch.Tensor, score: Callable[[str], float]) -> None:
    """Digital, then out of its mind on the arrays, adapted, fine-tuned: measured now, on one stretch of text."""
    text = held_out[:4096]
    hardware = aimc.models.arrays.hardware_of(load("finetuned"))
    assert hardware.cell.coefficients == list(aimc.presets.CMOS_COEFFICIENTS)
    naive = load("digital")
    aimc.convert(naive, hardware)
    swapped = load("linear")
    aimc.set_hardware(swapped, hardware)
    measured = {"naive": float(aimc.perplexity(naive, text)), "unadapted": float(aimc.perplexity(swapped, text))}
    nat = {name: math.log(value) for name, value in (measured | {stage: score(stage) for stage in STAGES}).items()}
    assert nat["naive"] - nat["digital"] > 1.0
    assert nat["adapted"] - nat["linear"] < math.log(1.13)
    assert nat["adapted"] <= nat["unadapted"]
    assert nat["finetuned"] < nat["adapted"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_scores_exactly_what_its_card_says(stage: str) -> None:
    from train.schema import DataConfig
    from train.tokens import prepare

    if platform.python_version() != "3.11.7":
        pytest.skip(
            f"the cards were measured on the documentation of Python 3.11.7; this is {platform.python_version()}, with"
            " other text"
        )
    tokens = prepare(DataConfig(), str(SHIPPED / "digital"), 256).tensor("test", 65536)
    recorded = list(record(stage)["perplexity"].values())[-1]
    noise = None if stage in ("digital", "control") else aimc.Noise()
    assert float(aimc.perplexity(load(stage), tokens, nonideality=noise)) == pytest.approx(recorded, rel=1e-3)


@pytest.mark.slow
def test_the_whole_chip_scores_exactly_what_its_card_says() -> None:
    """Three programmings, a day later, drift compensated."""
    pytest.importorskip("aihwkit")
    from aimc.evaluate.ageing import ageing
    from aimc.static.programming import DAY_S
    from train.schema import DataConfig
    from train.tokens import prepare

    if platform.python_version() != "3.11.7":
        pytest.skip(
            f"the cards were measured on the documentation of Python 3.11.7; this is {platform.python_version()}, with"
            " other text"
        )
    tokens = prepare(DataConfig(), str(SHIPPED / "digital"), 256).tensor("test", 65536)
    (day,) = ageing(load("joint"), tokens, times_s=[DAY_S], compensation=[True], nonideality=aimc.Noise(), context=256)
    assert float(day.perplexity) == pytest.approx(
        record("joint")["perplexity"]["trained together, a day after programming"], rel=1e-3
    )


def test_the_direct_routes_model_is_what_its_card_says(held_out: torch.Tensor) -> None:
    folder = SHIPPED.parent / "direct" / "finetuned"
    told = json.loads((folder / "stage.json").read_text())["perplexity"]["nonlinear cell, fine-tuned"]
    assert f"{told:.2f}" in (folder / "README.md").read_text()
    model = aimc.from_pretrained(folder)
    assert aimc.models.hardware_of(model).normaliser.is_on
    assert float(aimc.perplexity(model, held_out[:4096])) == pytest.approx(told, rel=0.35)
