"""Tokenising once: exact, resumable, kept apart by split, and clear about text that will not do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.conftest import english, write_text_folder
from train import cache, corpus, tokens
from train.errors import RunError
from train.files import write_json
from train.schema import DataConfig


def settings(path: Path, cache: Path) -> DataConfig:
    return DataConfig(kind="text", path=str(path), vocab_size=300, cache_dir=str(cache))


def hub(dataset: Path, cache: Path, column: str = "text") -> DataConfig:
    return DataConfig(kind="hub", dataset=str(dataset), column=column, vocab_size=300, cache_dir=str(cache))


def many_files(folder: Path, count: int = 60) -> Path:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i}.txt").write_text(english(400, skip=400 * i))
    return folder


def test_the_tokenizer_gives_the_text_back() -> None:
    text = english(5000) + " naïve 文字 😀 \t\n"
    tokenizer = tokens.train_tokenizer([english(20000)], 400)
    assert len(tokenizer) == 400
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids(tokens.END_OF_TEXT)


def test_each_split_holds_exactly_its_documents(tmp_path: Path) -> None:
    folder = many_files(tmp_path / "text")
    data = tokens.prepare(settings(folder, tmp_path / "cache"), None, 32)
    by_split: dict[str, list[str]] = {split: [] for split in corpus.SPLITS}
    for split, text in corpus.local(str(folder)):
        by_split[split].append(text)
    for split in corpus.SPLITS:
        decoded = data.tokenizer.decode(data.tensor(split)).split(tokens.END_OF_TEXT)
        assert decoded == [*by_split[split], ""], split
    assert not set(by_split["train"]) & {*by_split["valid"], *by_split["test"]}


@pytest.mark.parametrize(("n_entries", "dtype"), [(300, np.uint16), (70_000, np.uint32)])
def test_ids_take_no_more_bytes_than_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_entries: int, dtype: type
) -> None:
    text = write_text_folder(tmp_path / "text")
    monkeypatch.setattr(tokens.PreTrainedTokenizerFast, "__len__", lambda self: n_entries)
    data = tokens.prepare(settings(text, tmp_path / "cache"), None, 32)
    for split in corpus.SPLITS:
        assert isinstance(data.splits[split], np.memmap)
        assert data.splits[split].dtype == dtype
    assert data.tensor("valid").dtype == torch.int64
    assert data.tokenizer.decode(data.tensor("valid")) == (text / "valid.txt").read_text() + tokens.END_OF_TEXT


def test_blocks_are_consecutive_and_do_not_overlap() -> None:
    stream = np.arange(107, dtype=np.uint16)
    blocks = tokens.Blocks(stream, 10)
    assert len(blocks) == 10
    assert torch.cat([blocks[i]["input_ids"] for i in range(10)]).equal(torch.arange(100))
    assert blocks[3]["labels"][1:].equal(blocks[3]["input_ids"][1:])
    assert blocks[3]["labels"][0] == -100  # the trainer's mean must be over the tokens that are predicted
    assert len(tokens.Blocks(stream, 10, limit=35)) == 3
    assert len(tokens.Blocks(stream, 10, limit=10**6)) == 10


def test_a_killed_tokenisation_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = many_files(tmp_path / "text")
    whole = tokens.prepare(settings(folder, tmp_path / "whole"), None, 32)
    original, read = corpus.documents, []

    def cut_off(config: DataConfig) -> Iterator[corpus.Document]:
        """The tokenizer's own pass is left alone; the pass that writes tokens dies after 37 documents."""
        for number, document in enumerate(original(config)):
            if list((tmp_path / "cut").glob("*/tokenizer")):
                if number == 37:
                    raise KeyboardInterrupt
                read.append(number)
            yield document

    monkeypatch.setattr(corpus, "BATCH", 8)
    monkeypatch.setattr(corpus, "documents", cut_off)
    with pytest.raises(KeyboardInterrupt):
        tokens.prepare(settings(folder, tmp_path / "cut"), None, 32)
    (cut,) = (tmp_path / "cut").glob(f".{whole.fingerprint}.*.partial")
    assert len(read) == 37
    assert json.loads((cut / "progress.json").read_text())["documents"] == 32
    with (cut / "train.bin").open("ab") as file:
        file.write(b"written after the last commit")

    written: list[int] = []

    def noted(path: Path, data: dict[str, int], **how: bool) -> None:
        written.append(data["documents"])
        write_json(path, data, **how)

    monkeypatch.setattr(corpus, "documents", original)
    monkeypatch.setattr(cache, "write_json", noted)
    tokens.prepare(settings(folder, tmp_path / "cut"), None, 32)
    assert written == [40, 48, 56, 60]  # from the 33rd document on
    cut = tmp_path / "cut" / whole.fingerprint
    for split in corpus.SPLITS:
        assert (cut / f"{split}.bin").read_bytes() == (
            tmp_path / "whole" / whole.fingerprint / f"{split}.bin"
        ).read_bytes()


def test_finished_tokens_are_reopened_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(write_text_folder(tmp_path / "text"), tmp_path / "cache")
    first = tokens.prepare(config, None, 32)
    monkeypatch.setattr(corpus, "documents", lambda config: pytest.fail("the text was read again"))
    second = tokens.prepare(config, None, 32)
    assert second.tensor("train").equal(first.tensor("train"))


def test_changed_text_is_tokenised_anew(tmp_path: Path) -> None:
    text = write_text_folder(tmp_path / "text")
    first = tokens.prepare(settings(text, tmp_path / "cache"), None, 32)
    (text / "test.txt").write_text(english(2000, skip=90_000))
    second = tokens.prepare(settings(text, tmp_path / "cache"), None, 32)
    assert second.fingerprint != first.fingerprint
    assert second.tokenizer.decode(second.tensor("test")) == (text / "test.txt").read_text() + tokens.END_OF_TEXT


def dataset(folder: Path, splits: dict[str, int]) -> Path:
    """A Hugging Face dataset as JSON lines, one file a split."""
    folder.mkdir()
    for split, count in splits.items():
        lines = [json.dumps({"id": i, "text": f"{split} {i}: " + english(150, skip=150 * i)}) for i in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def test_a_dataset_with_its_own_splits_keeps_them(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "set", {"train": 40, "validation": 12, "test": 11})
    data = tokens.prepare(hub(folder, tmp_path / "cache"), None, 32)
    for split, name, count in (("train", "train", 40), ("valid", "validation", 12), ("test", "test", 11)):
        documents = data.tokenizer.decode(data.tensor(split)).split(tokens.END_OF_TEXT)[:-1]
        assert [d.split(":")[0] for d in documents] == [f"{name} {i}" for i in range(count)]


def test_a_dataset_with_training_text_only_holds_documents_out_by_their_text(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "set", {"train": 120})
    documents = list(corpus.Hub(str(folder), None, "text"))
    assert len(documents) == 120
    assert {split for split, _ in documents} == set(corpus.SPLITS)
    assert all(split == corpus.split_of(text) for split, text in documents)


def test_a_wrong_column_is_named_with_the_right_ones(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "set", {"train": 5})
    with pytest.raises(
        RunError, match=r"data\.column=body: the dataset has the columns id, text; name the one with the text"
    ):
        tokens.prepare(hub(folder, tmp_path / "cache", "body"), None, 32)


def test_a_dataset_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "no-such-set"
    with pytest.raises(RunError, match=r"data\.dataset=.*no-such-set: cannot be opened .* use data=text"):
        list(corpus.Hub(str(missing), None, "text"))


@pytest.mark.parametrize("text", ["", "too short"])
def test_empty_or_short_text_names_the_remedy(tmp_path: Path, text: str) -> None:
    folder = write_text_folder(tmp_path / "text")
    (folder / "valid.txt").write_text(text)
    with pytest.raises(
        RunError,
        match=r"the valid part of the text has \d+ tokens, fewer than one context of 32; give more text \(data\.path\)",
    ):
        tokens.prepare(settings(folder, tmp_path / "cache"), None, 32)


def test_no_document_at_all_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("")
    with pytest.raises(RunError, match=r"data\.(path|dataset)"):
        tokens.prepare(hub(tmp_path / "set", tmp_path / "cache"), None, 32)


@pytest.mark.parametrize(("kind", "field"), [("text", "data.path"), ("hub", "data.dataset")])
def test_a_source_without_its_place_is_named(tmp_path: Path, kind: str, field: str) -> None:
    with pytest.raises(RunError, match=rf"{field} is not set: .* set {field}=…"):
        tokens.prepare(DataConfig(kind=kind, cache_dir=str(tmp_path)), None, 32)


def test_a_model_without_a_tokenizer_is_named(tmp_path: Path, text_folder: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(RunError, match=r"model\.source=.*model: its tokenizer cannot be loaded"):
        tokens.prepare(settings(text_folder, tmp_path / "cache"), str(tmp_path / "model"), 32)


def test_two_jobs_that_start_together_tokenise_once(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    text = write_text_folder(tmp_path / "text")
    alone = tokens.prepare(settings(text, tmp_path / "alone"), None, 16)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(tokens.prepare, settings(text, tmp_path / "shared"), None, 16) for _ in range(4)]
        together = [job.result() for job in jobs]
    for data in together:
        assert {name: len(x) for name, x in data.splits.items()} == {name: len(x) for name, x in alone.splits.items()}
        assert np.array_equal(data.splits["train"], alone.splits["train"])
