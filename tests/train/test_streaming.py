"""Training text that is never kept: the same sequences however they are read, held-out text left out, gone on with
where it stopped, and refusals of what a stream cannot give."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.train.conftest import english, same_weights, weights_of
from tests.train.processes import run_together
from train import corpus, pipeline, tokens
from train.errors import RunError
from train.schema import DataConfig, RunConfig
from train.streaming import Stream
from train.trainer import HardwareAwareTrainer

Compose = Callable[..., RunConfig]
CONTEXT, WINDOW = 16, 8


class Killed(BaseException):
    """Stands for a process that ends without warning."""


def rows(count: int, name: str = "train") -> list[dict[str, Any]]:
    return [{"id": i, "text": f"{name} {i}: " + english(150, skip=150 * i)} for i in range(count)]


def write_jsonl(file: Path, given: list[dict[str, Any]]) -> None:
    file.write_text("\n".join(json.dumps(row) for row in given))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretrained model with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tokens.train_tokenizer([english(20_000)], 300)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": 300}
    GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.1, eos_token_id=299)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one_part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with training text alone, in two files."""
    folder = tmp_path_factory.mktemp("one_part")
    for number, given in enumerate((rows(120)[:50], rows(120)[50:])):
        write_jsonl(folder / f"train-{number}.jsonl", given)
    return folder


@pytest.fixture(scope="module")
def three_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three_parts")
    for name, count in (("train", 60), ("validation", 40), ("test", 40)):
        write_jsonl(folder / f"{name}.jsonl", rows(count, name))
    return folder


def settings(dataset: Path, cache: Path, **fields: Any) -> DataConfig:
    fields = {"streaming": True, "head_tokens": 400, "shuffled_sequences": WINDOW, "workers": 1} | fields
    return DataConfig(kind="hub", dataset=str(dataset), cache_dir=str(cache), **fields)


def stream(config: DataConfig, source: Path, seed: int = 0) -> Stream:
    found = tokens.prepare(config, str(source), CONTEXT).training_blocks(CONTEXT, seed)
    assert isinstance(found, Stream)
    return found


def first(text: Stream, count: int) -> list[list[int]]:
    found = [row["input_ids"].tolist() for row in islice(text, count)]
    text.close()
    return found


def save_to_disk(folder: Path, kind: str) -> Path:
    import datasets

    datasets.disable_progress_bars()
    whole = datasets.Dataset.from_list(rows(40))
    if kind == "arrow":
        whole.save_to_disk(folder / "set", num_shards=3)
    elif kind == "parquet":
        (folder / "set").mkdir()
        for number in range(3):
            whole.shard(3, number, contiguous=True).to_parquet(folder / "set" / f"train-{number}.parquet")
    else:
        write_jsonl(folder / "set.jsonl", rows(40))
        return folder / "set.jsonl"
    return folder / "set"


@pytest.mark.parametrize("kind", ["arrow", "parquet", "file"])
def test_local_datasets_go_on_from_any_place(tmp_path: Path, kind: str) -> None:
    place = save_to_disk(tmp_path, kind)
    wanted = [row["text"] for row in rows(40)]
    assert [text for _, text in corpus.Hub(str(place), None, "text")] == wanted
    for count in (1, 13, 14, 39):
        began = corpus.Hub(str(place), None, "text")
        before = [text for _, text in islice(began, count)]
        note = json.loads(json.dumps(began.place()))
        after = [text for _, text in corpus.Hub(str(place), None, "text", note)]
        assert before + after == wanted


@pytest.mark.parametrize("parts", ["one_part", "three_parts"])
def test_a_pass_is_the_training_text(parts: str, source: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The sequences of the same text on disk, shuffled window by window; held-out documents are not among them."""
    dataset = request.getfixturevalue(parts)
    whole = tokens.prepare(settings(dataset, tmp_path, streaming=False), str(source), CONTEXT)
    on_disk = whole.tensor("train")
    n = len(on_disk) // CONTEXT
    wanted = on_disk[: n * CONTEXT].view(n, CONTEXT).tolist()
    for workers in (1, 2):
        text = stream(settings(dataset, tmp_path, workers=workers), source)
        seen = first(text, n + WINDOW)
        assert seen[:n] != wanted
        for start in range(0, n, WINDOW):
            assert sorted(seen[start : min(start + WINDOW, n)]) == sorted(wanted[start : start + WINDOW])
        assert sorted(seen[n:]) == sorted(wanted[:WINDOW]) and seen[n:] != seen[:WINDOW], "another order next time"
    assert first(stream(settings(dataset, tmp_path), source, seed=1), n) != seen[:n]


@pytest.mark.parametrize("parts", ["one_part", "three_parts"])
def test_the_head_is_the_beginning_of_each_part(
    parts: str, source: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dataset = request.getfixturevalue(parts)
    whole = tokens.prepare(settings(dataset, tmp_path, streaming=False), str(source), CONTEXT)
    said: list[str] = []
    data = tokens.prepare(settings(dataset, tmp_path), str(source), CONTEXT, said.append)
    assert ("own parts" if parts == "three_parts" else "left out of training") in said[0]
    for split in corpus.SPLITS:
        kept = data.tensor(split, 400)
        assert len(kept) == 400 and kept.equal(whole.tensor(split, 400))
    assert "train" in data.cut and data.extent == "streamed" and data.fingerprint != whole.fingerprint
    with pytest.raises(
        RunError, match=r"data\.head_tokens=400: 9999 tokens of the train part are wanted.*streaming=false"
    ):
        data.tensor("train", 9999)


def test_a_stream_goes_on_where_it_was(one_part: Path, source: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """In the first pass, its last, smaller window and the second; whatever batches it is read in."""
    config = settings(one_part, tmp_path)
    n = len(tokens.prepare(settings(one_part, tmp_path, streaming=False), str(source), CONTEXT).tensor("train"))
    per_pass = n // CONTEXT
    count = per_pass + 5 * WINDOW
    wanted = first(stream(config, source), count)
    text = stream(config, source)
    reading = iter(text)
    at = 0
    for number, stop in enumerate([0, 1, WINDOW, 3 * WINDOW + 3, per_pass - 1, per_pass, per_pass + WINDOW + 1]):
        assert [row["input_ids"].tolist() for row in islice(reading, stop - at)] == wanted[at:stop]
        at = stop
        text.save(tmp_path, at)
        monkeypatch.setattr(corpus, "BATCH", [256, 3, 17][number % 3])
        again, restored = stream(config, source), list[str]()
        again.go_on(tmp_path, partial(restored.append, "random numbers"))
        assert first(again, 2 * WINDOW) == wanted[at : at + 2 * WINDOW] and restored == ["random numbers"]
    text.close()


def overrides(source: Path, dataset: Path, cache: Path) -> list[str]:
    of_text = [f"data.dataset={dataset}", "data.streaming=true", "data.head_tokens=600", "data.shuffled_sequences=4"]
    of_model = [f"model.source={source}", "measure.tokens=256"]
    of_training = ["trainer.eval_tokens=128", "stage.calibration_batches=1", "stage.calibration_batch_size=4"]
    return ["data=openwebtext", f"data.cache_dir={cache}", *of_text, *of_model, *of_training]


def test_a_killed_training_on_a_stream_ends_with_the_same_weights(
    compose: Compose, source: Path, one_part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, so that random numbers are where they were, too."""
    given = [*overrides(source, one_part, tmp_path / "cache"), "stage.name=digital", "trainer.digital.save_every=2"]
    given += ["trainer.digital.batch_size=2"]
    said: list[str] = []
    pipeline.execute(compose(tmp_path / "whole", *given), lambda what: said.append(str(what)))
    original = HardwareAwareTrainer.training_step

    def killed(self: HardwareAwareTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 3:
            raise Killed
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(HardwareAwareTrainer, "training_step", killed)
        pipeline.execute(compose(tmp_path / "killed", *given), lambda what: None)
    work = tmp_path / "killed" / ".work" / "digital"
    assert json.loads((work / "checkpoint-2" / "stream.json").read_text())["at"] == 2 * 2
    pipeline.execute(compose(tmp_path / "killed", *given), lambda what: None)
    assert same_weights(weights_of(tmp_path / "killed" / "digital"), weights_of(tmp_path / "whole" / "digital"))
    assert "; streamed" in (tmp_path / "whole" / "digital" / "README.md").read_text()


def test_the_text_alone_is_tokenised_for_later_runs(
    compose: Compose, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"data.path={text_folder}", f"data.cache_dir={tmp_path / 'cache'}"]
    said: list[str] = []
    pipeline.execute(compose(tmp_path / "a", *given, "stage.name=tokenise"), lambda what: said.append(str(what)))
    (folder,) = (tmp_path / "cache").glob("text-*")
    assert len(said) == 1 and said[0].startswith(f"{folder}: train ") and "test " in said[0]
    monkeypatch.setattr(corpus, "documents", lambda config: pytest.fail("the text was read again"))
    pipeline.execute(compose(tmp_path / "b", *given, "stage.name=digital"), lambda what: None)


@pytest.mark.slow
def test_two_processes_train_on_one_stream_as_one(
    smoke: Callable[..., list[str]], source: Path, one_part: Path, tmp_path: Path
) -> None:
    curves = []
    still = Path(shutil.copytree(source, tmp_path / "still"))
    config = json.loads((still / "config.json").read_text())
    (still / "config.json").write_text(json.dumps(config | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}))
    for n in (1, 2):
        sizes = [f"trainer.digital.batch_size={4 // n}", "trainer.digital.log_every=1"]
        given = smoke(tmp_path / str(n), *overrides(still, one_part, tmp_path / "cache"), "stage=digital", *sizes)
        given = [word for word in given if not word.startswith(("model.n_layer=", "data.path="))]
        assert run_together(given, tmp_path / "logs", n=n) == [0] * n, (tmp_path / "logs" / "0.txt").read_text()
        history = json.loads((tmp_path / str(n) / "digital" / "history.json").read_text())
        curves.append([line["loss"] for line in history if "loss" in line])
    assert len(curves[0]) == 4 and curves[1] == pytest.approx(curves[0], abs=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["data=embedded", "data.streaming=true"], r"streaming=true: kind=embedded is no dataset.*data\.kind=hub"),
        (["data.streaming=true"], r"data\.streaming=true: a model from scratch brings no tokenizer.*set model\.source"),
        (["data.streaming=true", "model.source=x", "trainer.workers=2"], r"trainer\.workers=2: streamed text is read"),
    ],
)
def test_what_a_stream_cannot_give_is_refused(compose: Compose, tmp_path: Path, given: list[str], message: str) -> None:
    with pytest.raises(RunError, match=message):
        compose(tmp_path, "data=openwebtext", *given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("measure.tokens=5000", r"data\.head_tokens=600: 5000 tokens of the test part.*measure\.tokens"),
        ("trainer.eval_tokens=5000", r"data\.head_tokens=600: 5000 tokens of the valid part"),
        ("stage.calibration_batches=40", r"data\.head_tokens=600: 5120 tokens of the train part"),
    ],
)
def test_a_head_that_is_too_short_is_named_before_training(
    compose: Compose, source: Path, one_part: Path, tmp_path: Path, cache: Path, given: str, message: str
) -> None:
    with pytest.raises(RunError, match=message):
        pipeline.execute(compose(tmp_path, *overrides(source, one_part, cache), given), lambda what: None)


def test_text_too_short_for_a_sequence_is_named(source: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "word"}] * 2)
    config = settings(tmp_path / "train.jsonl", tmp_path)
    text = Stream(config, tokens.vocabulary_of(str(source)).tokenizer, tokens.np.dtype("uint16"), CONTEXT, 0)
    with pytest.raises(RunError, match="fewer tokens than one sequence of 16; give more text"):
        next(iter(text))


def test_a_dataset_that_breaks_off_is_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", rows(3))
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("\n{broken")
    with pytest.raises(corpus.Broken, match=r"data\.dataset=.*: cannot be read on .*give the same command again"):
        list(corpus.Hub(str(tmp_path), None, "text"))


def test_rows_without_text_are_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a"}, {"text": None}])
    with pytest.raises(RunError, match=r"data\.column=text: a row holds None, no text"):
        list(corpus.Hub(str(tmp_path), None, "text"))
