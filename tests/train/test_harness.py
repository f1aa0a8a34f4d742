"""lm-evaluation-harness on local files: its numbers are those that the model's logits give directly, digital and on the
arrays, offline."""

from __future__ import annotations

import importlib
import json
import math
import socket
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import HydraException
from transformers import AutoTokenizer, PreTrainedModel

from aimc.hardware import Noise
from aimc.models.arrays import hardware_of, set_chip, set_hardware
from tests.conftest import REPOSITORY
from tests.train.conftest import compose_config
from train.configs import checked
from train.errors import RunError
from train.evaluate import evaluate
from train.harness import DEFINITIONS, Score, caveats, load_tasks, run_tasks
from train.models import load_any
from train.schema import EvaluationConfig

needs_harness = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'aimc[eval]'"
)
REAL = REPOSITORY.parent / "shared" / "data" / "eval"
SHIPPED = REPOSITORY / "checkpoints" / "shipped"
LAMBADA = [
    "The class statement makes a new class. A class may inherit from another class",
    "If the name is not found, an error is raised. So the name must be found",
    'A string begins with a quote and ends with a "quote',
    "The list is empty. There is nothing in the list",
    "An object has a type and a value. The type of an object is fixed, but not its\nvalue",
    "The import statement finds a module, and then it runs the module",
]
QUESTIONS = [
    (
        "Question: What does a function return without a return statement?",
        ["None", "an empty string", "zero, as in C", "itself"],
        0,
    ),
    ("Question: Which of these can be changed after it was made?", ["a tuple", "a list", "a string", "a number"], 1),
    ("Question: What ends a loop early?", ["continue", "pass", "break", "the end of the file"], 2),
    (
        "Question: What raises an exception?",
        ["the try statement", "the with statement", "a comment", "the raise statement"],
        3,
    ),
    (
        "Question: Where does a module's name live?",
        ["in sys", "in its __name__ attribute, which the import sets", "nowhere", "it has none"],
        1,
    ),
]
ENDINGS = [
    (
        ["The list was longer than the tuple because the list", "The list was longer than the tuple because the tuple"],
        "had more items.",
        0,
    ),
    (
        ["A class is not an instance, since the class", "A class is not an instance, since the instance"],
        "is made by calling the other.",
        1,
    ),
    (
        ["The module imports the package, so the module", "The module imports the package, so the package"],
        "is loaded first.",
        1,
    ),
    (
        ["The caller waits for the function until the caller", "The caller waits for the function until the function"],
        "returns.",
        1,
    ),
]


SCENES = [
    (
        "[header] How to write a module [title] Name it. [step] The name of a module is the name of its file.",
        ["[title] Import it. [step] The import statement finds the module.", "A file is closed.", "None.", "The end"],
        "A",
    ),
    ("A function is called. the caller", ["waits for it.", "is deleted.", "has no name.", "raises an error."], "A"),
    ("The list is sorted. it", ["is now empty.", "is in order.", "is a tuple [sic].", "raises an error."], "B"),
    ("A name is looked up. the name", ["is not a string.", "was bound before.", "ends.", "is found"], "D"),
]


def write_items(folder: Path) -> Path:
    """Files in the formats of mosaicml/llm-foundry."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = [{"query": query, "choices": choices, "gold": gold} for query, choices, gold in QUESTIONS]
    ways = [{"query": f"{query}\n", "choices": choices[:2], "gold": gold % 2} for query, choices, gold in QUESTIONS]
    rows: dict[str, list[dict[str, Any]]] = {
        "lambada_test": [{"text": text} for text in LAMBADA],
        "arc_easy": questions,
        "arc_challenge": questions[::-1],
        "piqa": ways,
        "winogrande": [{"context_options": begin, "continuation": end, "gold": gold} for begin, end, gold in ENDINGS],
    }
    for name, items in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    scenes = [
        {"question": scene, "choices": dict(zip("ABCD", endings, strict=True)), "answer": letter, "id": number}
        for number, (scene, endings, letter) in enumerate(SCENES)
    ]
    halves = {"dataset": "hellaswag", "dev": scenes[:2], "test": scenes[2:]}
    (folder / "hellaswag_sample_2000.json").write_text(json.dumps(halves, indent=4), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_items(tmp_path_factory.mktemp("items"))


@pytest.fixture
def configure(items: Path, tmp_path: Path) -> Callable[..., EvaluationConfig]:
    def make(
        *overrides: str, checkpoint: str = "finetuned", data: Path | None = items, tasks: str = ",".join(DEFINITIONS)
    ) -> EvaluationConfig:
        where = "null" if data is None else str(data)
        fixed = [
            f"checkpoint={SHIPPED / checkpoint}",
            f"eval_data={where}",
            f"tasks=[{tasks}]",
            f"data.cache_dir={tmp_path}/cache",
        ]
        return checked(compose_config("evaluation", *fixed, f"output_dir={tmp_path}/out", *overrides), EvaluationConfig)

    return make


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(SHIPPED / "digital")


@torch.no_grad()
def log_likelihood(model: PreTrainedModel, text: str, answer: str) -> tuple[float, bool]:
    """Sum of the log-probabilities of the answer's tokens, and whether each is the likeliest. One text at a time,
    nothing padded."""
    words = tokenizer()
    ids = torch.tensor(words(text + answer)["input_ids"])
    n = len(ids) - len(words(text)["input_ids"])
    ids = ids[-(model.config.max_position_embeddings + 1) :]
    logits = model(ids[None, :-1], use_cache=False).logits[0, -n:].double().log_softmax(-1)
    return float(logits.gather(1, ids[-n:, None]).sum()), bool((logits.argmax(-1) == ids[-n:]).all())


def _scene(item: dict[str, Any]) -> dict[str, Any]:
    """An item of HellaSwag, cleaned by the harness's own function for it."""
    clean = importlib.import_module("lm_eval.tasks.hellaswag.utils").preprocess
    choices = [clean(ending).strip() for ending in item["choices"].values()]
    return {"query": clean(item["question"]).strip(), "choices": choices, "gold": "ABCD".index(item["answer"])}


def directly(
    model: PreTrainedModel, folder: Path, limit: int | None = None, tasks: Sequence[str] = tuple(DEFINITIONS)
) -> dict[tuple[str, str], float]:
    """The metrics of tasks, without the harness."""

    def read(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()][
            :limit
        ]

    result = {}
    if "lambada" in tasks:
        last = [
            log_likelihood(model, row["text"].rpartition(" ")[0], " " + row["text"].rpartition(" ")[2])
            for row in read("lambada_test")
        ]
        result["lambada", "acc"] = statistics.fmean(greedy for _, greedy in last)
        result["lambada", "perplexity"] = math.exp(-statistics.fmean(value for value, _ in last))
    file = json.loads((folder / "hellaswag_sample_2000.json").read_text(encoding="utf-8"))
    rows = {"hellaswag": [_scene(item) for item in (file["dev"] + file["test"])[:limit]]}
    rows |= {name: read(name) for name in ("arc_easy", "arc_challenge", "piqa")}
    for name, after in (
        ("hellaswag", ""),
        ("arc_easy", "\nAnswer:"),
        ("arc_challenge", "\nAnswer:"),
        ("piqa", "Answer:"),
    ):
        if name not in tasks:
            continue
        right, right_by_length = [], []
        for row in rows[name]:
            values = [log_likelihood(model, row["query"] + after, " " + choice)[0] for choice in row["choices"]]
            by_length = [value / len(choice) for value, choice in zip(values, row["choices"], strict=True)]
            right.append(values.index(max(values)) == row["gold"])
            right_by_length.append(by_length.index(max(by_length)) == row["gold"])
        result[name, "acc"], result[name, "acc_norm"] = statistics.fmean(right), statistics.fmean(right_by_length)
    if "winogrande" in tasks:
        right = []
        for row in read("winogrande"):
            values = [log_likelihood(model, begin, " " + row["continuation"])[0] for begin in row["context_options"]]
            right.append(values.index(max(values)) == row["gold"])
        result["winogrande", "acc"] = statistics.fmean(right)
    return result


def by_name(scores: list[Score]) -> dict[tuple[str, str], Score]:
    return {(score.task, score.metric): score for score in scores}


def score(
    config: EvaluationConfig, model: PreTrainedModel, noise: Noise | None = None, chips: int = 1, **kwargs: Any
) -> list[Score]:
    return run_tasks(model, tokenizer(), load_tasks(config), nonideality=noise or Noise(), chips=chips, **kwargs)


@needs_harness
@pytest.mark.parametrize("checkpoint", ["digital", "finetuned"])
def test_scores_are_those_of_the_logits(
    checkpoint: str, items: Path, configure: Callable[..., EvaluationConfig]
) -> None:
    model = load_any(str(SHIPPED / checkpoint))
    want = directly(model, items)
    scores = by_name(score(configure(checkpoint=checkpoint), model))
    assert scores.keys() == want.keys()
    for key, value in want.items():
        assert scores[key].mean == pytest.approx(value, rel=1e-4), key
        assert scores[key].std == 0 and scores[key].per_chip == [scores[key].mean]
    assert {name: scores[name, "acc"].n_items for name in DEFINITIONS} == {
        "arc_challenge": 5,
        "arc_easy": 5,
        "hellaswag": 4,
        "lambada": 6,
        "piqa": 5,
        "winogrande": 4,
    }
    assert len({value for value in want.values() if 0 < value < 1}) > 1, (
        "items that tell nothing apart would test nothing"
    )


@needs_harness
@pytest.mark.skipif(not REAL.exists(), reason="no ../shared/data/eval: the real files are not part of the repository")
@pytest.mark.parametrize("checkpoint", ["digital", "finetuned"])
def test_the_same_on_the_real_files(checkpoint: str, configure: Callable[..., EvaluationConfig]) -> None:
    model = load_any(str(SHIPPED / checkpoint))
    scores = by_name(score(configure(checkpoint=checkpoint, data=REAL), model, limit=3))
    for key, value in directly(model, REAL, limit=3).items():
        assert scores[key].mean == pytest.approx(value, rel=1e-4), key
        assert scores[key].n_items == 3


@needs_harness
@pytest.mark.parametrize("checkpoint", ["digital", "finetuned"])
def test_padding_and_batches_change_nothing(checkpoint: str) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = load_any(str(SHIPPED / checkpoint))
    pairs = [(query, f" {choice}") for query, choices, _ in QUESTIONS for choice in choices]
    requests = [Instance("loglikelihood", {}, pair, 0, ("padding", i, 1)) for i, pair in enumerate(pairs)]
    one, eight = (
        HFLM(pretrained=model, tokenizer=tokenizer(), backend="causal", batch_size=size).loglikelihood(
            requests, disable_tqdm=True
        )
        for size in (1, 8)
    )
    assert [greedy for _, greedy in one] == [greedy for _, greedy in eight]
    assert [value for value, _ in one] == pytest.approx([value for value, _ in eight], rel=1e-5)


@needs_harness
def test_each_chip_is_a_result(items: Path, configure: Callable[..., EvaluationConfig]) -> None:
    noise = Noise(mismatch_gain=0.3, mismatch_offset_v=0.1)
    model = load_any(str(SHIPPED / "finetuned"))
    # Without levels: texts of other lengths beside it round differently, and rarely that moves a count by a step.
    converters = {
        c: replace(getattr(hardware_of(model), c), n_levels=None) for c in ("input_dac", "storage_dac", "readout")
    }
    set_hardware(model, replace(hardware_of(model), **converters))
    hardware = hardware_of(model)
    scores = by_name(score(configure(tasks="lambada,piqa"), model, noise, chips=2))
    assert hardware_of(model) == hardware, "noise is put back"
    set_hardware(model, replace(hardware, noise=noise))
    want = []
    for chip in range(2):
        set_chip(model, chip)
        want.append(directly(model, items, tasks=("lambada", "piqa")))
    assert want[0]["lambada", "perplexity"] != pytest.approx(want[1]["lambada", "perplexity"], rel=1e-2)
    assert scores.keys() == want[0].keys()
    for key, got in scores.items():
        single = [chip[key] for chip in want]
        assert got.per_chip == pytest.approx(single, rel=1e-4), key
        assert got.mean == pytest.approx(statistics.fmean(single), rel=1e-4)
        assert got.std == pytest.approx(statistics.stdev(single), rel=1e-2)


@needs_harness
def test_noise_of_writes_and_reads_repeats(configure: Callable[..., EvaluationConfig]) -> None:
    config = configure(tasks="lambada")
    model = load_any(str(SHIPPED / "finetuned"))
    noise = Noise(write_v=0.05, read_qk=0.1)
    first, again = (by_name(score(config, model, noise, chips=2))["lambada", "perplexity"] for _ in range(2))
    assert first.per_chip == again.per_chip
    assert first.std > 0


@needs_harness
def test_every_chip_reads_the_same_examples(configure: Callable[..., EvaluationConfig]) -> None:
    config = configure("num_fewshot=2", tasks="lambada,winogrande")
    model = load_any(str(SHIPPED / "finetuned"))
    faint = by_name(score(config, model, Noise(column_offset=1e-12), chips=2))
    assert faint["lambada", "perplexity"].per_chip[0] == pytest.approx(
        faint["lambada", "perplexity"].per_chip[1], rel=1e-5
    )
    without = by_name(score(configure(tasks="lambada"), model))
    assert faint["lambada", "perplexity"].mean != pytest.approx(without["lambada", "perplexity"].mean, rel=1e-2)


@needs_harness
def test_answers_longer_than_the_model_are_left_out(tmp_path: Path, configure: Callable[..., EvaluationConfig]) -> None:
    long = "the name of a variable " * 60
    rows = [
        {"query": "Question: Which?\n", "choices": ["this", long], "gold": 0},
        {"query": f"Question: {long}?\n", "choices": ["this", "that"], "gold": 0},
        {"query": "Question: What?\n", "choices": ["this", "that"], "gold": 1},
    ]
    (tmp_path / "piqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = load_any(str(SHIPPED / "digital"))
    scores = score(configure(data=tmp_path, tasks="piqa"), model)
    assert [(s.n_items, s.n_left_out, s.n_cut) for s in scores] == [(2, 1, 2)] * 2
    assert caveats(scores) == [
        "piqa: 1 items left out, whose answers alone are longer than the model's positions.",
        "piqa: 2 requests lost their beginning, because they are longer than the model's positions.",
    ]
    with pytest.raises(RunError, match="the answers of all 1 items of piqa are longer than the model's 256 positions"):
        score(configure(data=tmp_path, tasks="piqa"), model, limit=1)


@needs_harness
def test_the_command_writes_scores_and_reaches_no_network(
    configure: Callable[..., EvaluationConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reached = []
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, lambda _, address: reached.append(address) or 1)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: reached.append(args) or [])
    evaluate(configure("nonideality=none", "task_limit=3", tasks="lambada,piqa,lambada"))
    assert reached == []
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results) == ["tasks"], "no text is measured unless asked for"
    assert results["tasks"]["rule"]["task_limit"] == 3
    assert [(row["task"], row["n_items"]) for row in results["tasks"]["scores"]] == [("lambada", 3)] * 2 + [
        ("piqa", 3)
    ] * 2
    assert "acc_norm" in capsys.readouterr().out


@needs_harness
def test_both_models_on_the_same_items_in_one_command(
    configure: Callable[..., EvaluationConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(configure("nonideality=none", "task_limit=4", "with_digital=true", tasks="lambada,piqa"))
    found = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]
    assert found["digital"] == str(SHIPPED / "digital")
    rows = {(row["task"], row["metric"]): row for row in found["comparisons"]}
    assert [row["mean"] for row in found["scores"]] == [row["model"]["mean"] for row in rows.values()]
    digital = by_name(score(configure(), load_any(str(SHIPPED / "digital")), limit=4))
    for key, row in rows.items():
        assert row["digital"]["mean"] == pytest.approx(digital[key].mean, rel=1e-5)
        assert row["difference"] == pytest.approx(row["model"]["mean"] - row["digital"]["mean"])
        assert row["n_items"] == 4 and row["stderr"] is not None
    assert rows["piqa", "acc"]["chance"] == 0.5 and rows["lambada", "perplexity"]["difference"] != 0
    printed = capsys.readouterr().out
    assert "against the digital model" in printed and "piqa acc_norm" in printed


@needs_harness
def test_text_and_tasks_in_one_command(
    configure: Callable[..., EvaluationConfig], text_folder: Path, tmp_path: Path
) -> None:
    text = ["data=text", f"data.path={text_folder}", "measure.tokens=300", "with_perplexity=true"]
    evaluate(configure("nonideality=none", *text, tasks="winogrande", checkpoint="digital"))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["clean"]
    assert [row["metric"] for row in results["tasks"]["scores"]] == ["acc"]
    assert (tmp_path / "out" / "results.csv").exists()


def damaged(folder: Path, line: str) -> Path:
    (folder / "piqa.jsonl").write_text(
        f'{{"query": "Question: ?", "choices": ["a", "b"], "gold": 1}}\n{line}\n', encoding="utf-8"
    )
    return folder


@needs_harness
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2 of piqa\.jsonl is not an item of this task"),
        ('{"query": "Question: ?", "gold": 1}', r"line 2 of piqa\.jsonl .*it has no choices"),
        (
            '{"query": "Question: ?", "choices": ["a", "b"], "gold": 2}',
            r"line 2 of piqa\.jsonl .*gold=2, of 2 choices counted from 0",
        ),
    ],
)
def test_damaged_items_are_named(
    line: str, message: str, tmp_path: Path, configure: Callable[..., EvaluationConfig]
) -> None:
    with pytest.raises(RunError, match=message):
        load_tasks(configure(data=damaged(tmp_path, line), tasks="piqa"))


@needs_harness
def test_an_empty_file_is_named(tmp_path: Path, configure: Callable[..., EvaluationConfig]) -> None:
    (tmp_path / "piqa.jsonl").write_text("\n")
    with pytest.raises(RunError, match=r"piqa\.jsonl is empty"):
        load_tasks(configure(data=tmp_path, tasks="piqa"))


@needs_harness
def test_a_missing_file_is_named_before_the_model_is_loaded(
    tmp_path: Path, configure: Callable[..., EvaluationConfig]
) -> None:
    with pytest.raises(RunError, match=r"eval_data=.*: no file lambada_test\.jsonl there"):
        evaluate(configure(data=tmp_path, tasks="lambada", checkpoint="nowhere"))


@needs_harness
def test_an_unknown_local_task_lists_ours(configure: Callable[..., EvaluationConfig]) -> None:
    with pytest.raises(
        RunError,
        match="siqa is not among .* arc_challenge, arc_easy, hellaswag, lambada, piqa, winogrande, or eval_data=null",
    ):
        load_tasks(configure(tasks="lambada,siqa"))


@needs_harness
def test_too_many_examples_are_refused(configure: Callable[..., EvaluationConfig]) -> None:
    with pytest.raises(RunError, match=r"num_fewshot=4: .*winogrande\.jsonl has 4 items, .*; use 3 at most"):
        load_tasks(configure("num_fewshot=4", tasks="winogrande"))


@pytest.mark.slow
@needs_harness
def test_the_harness_own_tasks_without_a_network(
    configure: Callable[..., EvaluationConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager()  # it looks through thousands of files: once is enough here
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda: manager)
    asked = []

    def offline(*_: Any, **kwargs: Any) -> None:
        asked.append(kwargs["path"])
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(RunError, match=r"cannot load them \(ConnectionError: no network\).*eval_data=<folder>"):
        load_tasks(configure(data=None, tasks="piqa"))
    assert asked == ["baber/piqa"], "without eval_data a name is the harness's own"
    with pytest.raises(RunError, match=r"tasks=\[nonsense\]: the harness cannot load them \(KeyError: .*nonsense"):
        load_tasks(configure(data=None, tasks="nonsense"))


def test_without_the_harness_it_says_what_to_install(
    configure: Callable[..., EvaluationConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(RunError, match=r"pip install 'aimc\[eval\]'"):
        evaluate(configure(checkpoint="nowhere"))


def test_a_digital_model_takes_no_noise_in_tasks_either(
    configure: Callable[..., EvaluationConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.harness.load_tasks", lambda _: {"local_piqa": None})
    with pytest.raises(RunError, match="a digital model has no arrays to be non-ideal"):
        evaluate(configure("nonideality=typical", checkpoint="digital"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task_limit=0"], "task_limit=0: must be at least 1"),
        (["num_fewshot=-1"], "num_fewshot=-1: must be at least 0"),
        (["tasks=[]"], r"eval_data=.*: no tasks to run on it; set tasks=\[lambada\]"),
    ],
)
def test_a_wrong_value_is_refused(
    overrides: list[str], message: str, configure: Callable[..., EvaluationConfig]
) -> None:
    with pytest.raises((RunError, HydraException), match=message):
        configure(*overrides)


def test_definitions_are_ours_by_name_and_hold_no_folder() -> None:
    assert list(DEFINITIONS) == ["arc_challenge", "arc_easy", "hellaswag", "lambada", "piqa", "winogrande"]
    for name, file in DEFINITIONS.items():
        text = file.read_text(encoding="utf-8")
        assert f"task: local_{name}\n" in text
        assert "/" not in text
