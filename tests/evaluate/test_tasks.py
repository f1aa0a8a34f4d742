"""Tasks as the library runs them: the same numbers each time, also on static tiles, and no trace in the model."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import aimc
from aimc.evaluate.tasks import DEFINITIONS, TaskError, load_tasks, run_tasks, tokenizer_of
from aimc.hardware import Noise
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'aimc[eval]'"
)
SHIPPED = REPOSITORY / "checkpoints" / "shipped"
TEXTS = ["The class statement makes a new class.", "If the name is not found, an error is raised."]


@pytest.fixture
def items(tmp_path: Path) -> Path:
    (tmp_path / "lambada_test.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return tmp_path


def test_scores_on_static_tiles_repeat_and_chips_count(items: Path) -> None:
    """Reads of tiles are random though the gain cells have no noise."""
    pytest.importorskip("aihwkit")
    model, tokenizer = aimc.from_pretrained(SHIPPED / "joint"), tokenizer_of(SHIPPED / "joint")
    tasks = load_tasks(["lambada"], eval_data=items)
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        runs.append(run_tasks(model, tokenizer, tasks, nonideality=Noise(), chips=2))
    assert runs[0] == runs[1]
    (spread,) = (score for score in runs[0] if score.metric == "perplexity")
    assert len(set(spread.per_chip)) == 2 and spread.std > 0
    (second,) = (
        score
        for score in run_tasks(model, tokenizer, tasks, seed=1, nonideality=Noise())
        if score.metric == "perplexity"
    )
    assert second.per_chip == spread.per_chip[1:]


def test_the_model_is_as_it_was_also_after_an_exception(items: Path) -> None:
    model, tokenizer = aimc.from_pretrained(SHIPPED / "finetuned"), tokenizer_of(SHIPPED / "finetuned")
    tasks = load_tasks(["lambada"], eval_data=items)
    model.train()
    model.transformer.h[0].eval()
    modes, config = [module.training for module in model.modules()], model.config.to_dict()
    noise = Noise(mismatch_gain=0.1)
    run_tasks(model, tokenizer, tasks, nonideality=noise)

    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    assert [module.training for module in model.modules()] == modes and model.config.to_dict() == config
    model.lm_head.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        run_tasks(model, tokenizer, tasks, nonideality=noise, chips=2)
    assert [module.training for module in model.modules()] == modes and model.config.to_dict() == config


@pytest.mark.parametrize("names", [[], "lambada"])
def test_no_list_of_names(names: object, items: Path) -> None:
    with pytest.raises(TaskError, match="a list of names is needed"):
        load_tasks(names, eval_data=items)


def test_errors_are_value_errors_and_a_digital_model_takes_no_noise(items: Path) -> None:
    with pytest.raises(ValueError, match="is not among the tasks on local files"):
        load_tasks(["nonsense"], eval_data=items)
    assert list(DEFINITIONS) == ["arc_challenge", "arc_easy", "lambada", "piqa", "winogrande"]
    model = aimc.from_pretrained(SHIPPED / "finetuned")
    aimc.to_digital(model)
    with pytest.raises(ValueError, match="no analog arrays"):
        tasks = load_tasks(["lambada"], eval_data=items)
        run_tasks(model, tokenizer_of(SHIPPED / "digital"), tasks, nonideality=Noise(read_qk=1.0))
