"""Tasks as the library runs them: the same numbers each time, also on static tiles, and no trace in the model."""

from __future__ import annotations

import copy
import json
import math
import statistics
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import aimc
from aimc.evaluate.tasks import DEFINITIONS, TaskError, compare_tasks, load_tasks, run_tasks, tokenizer_of
from aimc.hardware import Noise
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'aimc[eval]'"
)
SHIPPED = REPOSITORY / "checkpoints" / "shipped"
TEXTS = ["The class statement makes a new class.", "If the name is not found, an error is raised."]


def digital_model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


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


QUESTIONS = [
    ("What does a function return without a return statement?", ["None", "an empty string", "zero", "itself"], 0),
    ("Which of these can be changed after it was made?", ["a tuple", "a list", "a string", "a number"], 1),
    ("What ends a loop early?", ["continue", "pass", "break", "the end of the file"], 2),
    ("What raises an exception?", ["the try statement", "a comment", "the raise statement"], 2),
    ("Which statement makes a new class?", ["the class statement", "the del statement"], 0),
    ("Where does a module's name live?", ["in sys", "in its __name__ attribute", "nowhere", "it has none"], 1),
]


def test_standard_errors_chance_and_paired_differences_by_hand(items: Path) -> None:
    """Of the same items, read by the shipped digital model and by the one that was adapted to arrays."""
    (items / "arc_easy.jsonl").write_text(
        "".join(json.dumps({"query": f"Question: {q}", "choices": c, "gold": gold}) + "\n" for q, c, gold in QUESTIONS)
    )
    with (items / "lambada_test.jsonl").open("a") as file:
        file.write(json.dumps({"text": "The list is empty. There is nothing in the list"}))
    digital, model = digital_model(SHIPPED / "digital"), aimc.from_pretrained(SHIPPED / "linear")
    tasks = load_tasks(["arc_easy", "lambada"], eval_data=items)
    words = tokenizer_of(SHIPPED / "digital")
    noise = Noise(mismatch_gain=0.5)
    compared = compare_tasks(model, digital, words, tasks, nonideality=noise, chips=2)
    rows = {(row.task, row.metric): row for row in compared}
    chips = [run_tasks(model, words, tasks, nonideality=noise, seed=seed) for seed in (0, 1)]
    by_chip = [{(score.task, score.metric): score for score in scores} for scores in chips]

    row = rows["arc_easy", "acc"]
    assert row.chance == row.model.chance == pytest.approx((4 / 4 + 1 / 3 + 1 / 2) / 6)
    right = [row.digital.per_item[item] for item in range(6)]
    assert set(right) == {0.0, 1.0} and row.digital.mean == statistics.fmean(right), "items that tell models apart"
    p = row.digital.mean
    assert row.digital.stderr == pytest.approx(math.sqrt(p * (1 - p) / 5))
    ours = [statistics.fmean(of["arc_easy", "acc"].per_item[item] for of in by_chip) for item in range(6)]
    pairs = [a - b for a, b in zip(ours, right, strict=True)]
    assert row.difference == pytest.approx(statistics.fmean(pairs))
    assert row.stderr == pytest.approx(statistics.stdev(pairs) / math.sqrt(6))
    assert any(pairs), "models that answer alike would test nothing"

    row = rows["lambada", "perplexity"]
    assert (row.chance, rows["lambada", "acc"].chance, row.n_items) == (None, None, 3)
    losses = [value / row.digital.mean for value in row.digital.per_item.values()]
    assert row.digital.mean == pytest.approx(math.exp(statistics.fmean(losses)))
    assert row.digital.stderr == pytest.approx(row.digital.mean * statistics.stdev(losses) / math.sqrt(3))
    assert row.difference == pytest.approx(row.model.mean - row.digital.mean) and row.stderr > 0
    assert "per_item" not in json.dumps(row.to_dict()) and row.to_dict()["model"]["per_chip"] == row.model.per_chip


def test_a_model_does_not_differ_from_itself(items: Path) -> None:
    digital, words = digital_model(SHIPPED / "digital"), tokenizer_of(SHIPPED / "digital")
    tasks = load_tasks(["lambada"], eval_data=items)
    assert [(row.difference, row.stderr) for row in compare_tasks(digital, digital, words, tasks)] == [(0.0, 0.0)] * 2
    short = copy.deepcopy(digital)
    short.config.max_position_embeddings = short.config.n_positions = 16
    with pytest.raises(TaskError, match="it has 16 positions and the model 256"):
        compare_tasks(digital, short, words, tasks)
    with pytest.raises(ValueError, match="it is on analog hardware itself"):
        compare_tasks(digital, aimc.from_pretrained(SHIPPED / "finetuned"), words, tasks)


LETTERS = {"A": "sits.", "B": "stands."}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is not a JSON object with lists of items"),
        ({"dataset": "hellaswag"}, "hellaswag_sample_2000.json is empty"),
        (
            {"dev": [{"question": "He", "choices": LETTERS, "answer": "C"}]},
            "item 1 of .*answer='C', of the choices A, B",
        ),
        ({"dev": [], "test": [{"choices": LETTERS, "answer": "A"}]}, "item 1 of .*it has no query"),
        ({"dev": ["He"]}, "item 1 of .* is not an item of this task"),
    ],
)
def test_damaged_hellaswag(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"no file hellaswag.jsonl or hellaswag_sample_2000.json there"):
        load_tasks(["hellaswag"], eval_data=tmp_path)
    (tmp_path / "hellaswag_sample_2000.json").write_text(json.dumps(content))
    with pytest.raises(TaskError, match=message):
        load_tasks(["hellaswag"], eval_data=tmp_path)


def test_hellaswag_in_llm_foundrys_format_comes_first(tmp_path: Path) -> None:
    halves = {"dev": [{"question": "He", "choices": LETTERS, "answer": "B"}]}
    (tmp_path / "hellaswag_sample_2000.json").write_text(json.dumps(halves))
    (task,) = load_tasks(["hellaswag"], eval_data=tmp_path).values()
    assert [(doc["query"], doc["choices"], doc["gold"]) for doc in task.eval_docs] == [("He", ["sits.", "stands."], 1)]
    line = {"query": "Baking: She [title] 'stirs'", "choices": ["[step] it's", 'a "b"'], "gold": 0}
    (tmp_path / "hellaswag.jsonl").write_text(json.dumps(line))
    (task,) = load_tasks(["hellaswag"], eval_data=tmp_path).values()
    (doc,) = task.eval_docs
    assert (task.doc_to_text(doc), task.doc_to_choice(doc)) == ("Baking: She. 'stirs'", ["it's", 'a "b"'])


@pytest.mark.parametrize("names", [[], "lambada"])
def test_no_list_of_names(names: object, items: Path) -> None:
    with pytest.raises(TaskError, match="a list of names is needed"):
        load_tasks(names, eval_data=items)


def test_errors_are_value_errors_and_a_digital_model_takes_no_noise(items: Path) -> None:
    with pytest.raises(ValueError, match="is not among the tasks on local files"):
        load_tasks(["nonsense"], eval_data=items)
    assert list(DEFINITIONS) == ["arc_challenge", "arc_easy", "hellaswag", "lambada", "piqa", "winogrande"]
    model = aimc.from_pretrained(SHIPPED / "finetuned")
    aimc.to_digital(model)
    with pytest.raises(ValueError, match="no analog arrays"):
        tasks = load_tasks(["lambada"], eval_data=items)
        run_tasks(model, tokenizer_of(SHIPPED / "digital"), tasks, nonideality=Noise(read_qk=1.0))
