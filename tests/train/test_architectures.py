"""Families side by side: as many parameters, one harness, and a word where arrays have nothing to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.conftest import compose_config
from train import pipeline
from train.architectures import FAMILIES, fresh
from train.configs import checked
from train.errors import RunError
from train.evaluate import evaluate
from train.schema import EvaluationConfig, RunConfig

Compose = Callable[..., RunConfig]
OTHERS = [family for family in FAMILIES if family != "gpt2"]


class Tokenizer:
    """Only what a fresh model takes of one."""

    bos_token_id = eos_token_id = 0

    def __len__(self) -> int:
        return 2048


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_have_as_many_parameters(family: str) -> None:
    made = []
    for choice in ("gpt2_tiny", f"{family}_tiny"):
        config = checked(compose_config("run", f"model={choice}"), RunConfig).model
        tokenizer: Any = Tokenizer()
        made.append(fresh(config, tokenizer))
    sizes = [model.num_parameters() for model in made]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)
    tokens = torch.randint(0, 2048, (2, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = float(made[1].eval()(tokens, labels=tokens).loss)
    assert loss < 8.5, "a fresh model guesses evenly: log 2048 = 7.6"


@pytest.mark.parametrize("family", OTHERS)
def test_a_family_is_trained_and_measured_as_gpt2_is(
    family: str, tmp_path: Path, compose: Compose, compose_evaluation: Callable[..., EvaluationConfig]
) -> None:
    said: list[str] = []
    config = compose(tmp_path, f"model.family={family}", "stage=digital", "model.n_layer=1", "measure.tokens=128")
    pipeline.execute(config, lambda what: said.append(str(what)))
    record = json.loads((tmp_path / "digital" / "stage.json").read_text())
    assert record["training_steps"] == 4
    assert 100 < record["perplexity"]["digital"] < 400
    readme = (tmp_path / "digital" / "README.md").read_text()
    assert f"Architecture: {family}, 1 layers, width 32" in readme
    evaluate(compose_evaluation(tmp_path / "digital", "nonideality=none"))
    results = json.loads((tmp_path / "digital" / "evaluation" / "results.json").read_text())
    assert results["rows"][0]["perplexity"] == pytest.approx(record["perplexity"]["digital"], rel=1e-3)


@pytest.mark.parametrize("family", OTHERS)
def test_arrays_have_nothing_to_do_in_it_and_the_pipeline_says_so_before_it_trains(
    family: str, tmp_path: Path, compose: Compose
) -> None:
    with pytest.raises(RunError, match=f"model_type='{family}'.*cannot go onto gain-cell arrays") as error:
        pipeline.execute(compose(tmp_path, f"model.family={family}", "stage=pipeline"), lambda what: None)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "digital").exists()
