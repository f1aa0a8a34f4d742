"""Sources of text: what they give, that held-out text stays held out, and what they say when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.conftest import write_text_folder
from train import corpus
from train.errors import RunError


@pytest.fixture(scope="module")
def embedded() -> list[corpus.Document]:
    return list(corpus.embedded())


def paragraphs(documents: list[corpus.Document], split: str) -> set[str]:
    return {" ".join(p.split()) for s, text in documents if s == split for p in text.split("\n\n")}


def test_embedded_is_over_a_megabyte_of_prose_in_three_splits(embedded: list[corpus.Document]) -> None:
    size = {split: sum(len(text) for s, text in embedded if s == split) for split in corpus.SPLITS}
    assert sum(size.values()) > 1_200_000
    assert size["train"] > 0.75 * sum(size.values())
    assert min(size["valid"], size["test"]) > 50_000
    text = " ".join(text for _, text in embedded)
    assert text.count(" the ") > 10_000


@pytest.mark.slow
def test_embedded_is_deterministic(embedded: list[corpus.Document]) -> None:
    assert list(corpus.embedded()) == embedded


def test_embedded_splits_share_no_paragraph_and_no_document(embedded: list[corpus.Document]) -> None:
    by_split = {split: paragraphs(embedded, split) for split in corpus.SPLITS}
    texts = [text for _, text in embedded]
    assert len(set(texts)) == len(texts)
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not by_split[one] & by_split[other], (one, other)
    # None of them stands twice inside a split either: the sets lose nothing.
    assert sum(len(s) for s in by_split.values()) == sum(
        len([p for p in text.split("\n\n") if p.strip()]) for text in texts
    )


def test_split_of_is_a_fixed_function_of_the_name() -> None:
    names = [f"document {i}" for i in range(2000)]
    counts = {split: sum(corpus.split_of(name) == split for name in names) for split in corpus.SPLITS}
    assert {name: corpus.split_of(name) for name in ("topic:assert", "module:os", "a.txt")} == {
        "topic:assert": "train",
        "module:os": "train",
        "a.txt": "train",
    }
    assert sum(counts.values()) == 2000
    for split in ("valid", "test"):
        assert abs(counts[split] / 2000 - corpus.HELD_OUT_PERCENT / 100) < 0.02


def test_a_folder_with_split_files_is_taken_as_split(tmp_path: Path) -> None:
    write_text_folder(tmp_path)
    (tmp_path / "notes.txt").write_text("not part of any split")
    documents = dict(corpus.local(str(tmp_path)))
    assert documents == {split: (tmp_path / f"{split}.txt").read_text() for split in corpus.SPLITS}


@pytest.mark.parametrize("name", ["validation", "val", "dev"])
def test_other_names_of_the_validation_file(tmp_path: Path, name: str) -> None:
    write_text_folder(tmp_path)
    (tmp_path / "valid.txt").rename(tmp_path / f"{name}.txt")
    assert dict(corpus.local(str(tmp_path)))["valid"] == (tmp_path / f"{name}.txt").read_text()


def test_one_file_is_cut_into_consecutive_stretches(tmp_path: Path) -> None:
    text = "".join(f"sentence {i}. " for i in range(1000))
    (tmp_path / "all.md").write_text(text)
    for path in (tmp_path, tmp_path / "all.md"):
        documents = list(corpus.local(str(path)))
        assert [split for split, _ in documents] == ["train", "valid", "test"]
        assert "".join(part for _, part in documents) == text
        assert len(documents[1][1]) == pytest.approx(0.06 * len(text), abs=2)


def test_many_files_are_split_by_name(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    names = [f"deeper/{i}.rst" for i in range(60)]
    for name in names:
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "ignored.bin").write_bytes(b"\xff\x00")
    documents = list(corpus.local(str(tmp_path)))
    assert sorted(documents) == sorted((corpus.split_of(name), f"text of {name}") for name in names)
    assert {split for split, _ in documents} == set(corpus.SPLITS)


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"data\.path=.*nowhere: no such file or folder; give a text file"):
        list(corpus.local(str(tmp_path / "nowhere")))


def test_a_folder_without_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"1")
    with pytest.raises(RunError, match=r"no \.txt, \.md or \.rst file"):
        list(corpus.local(str(tmp_path)))


@pytest.mark.parametrize("split", ["valid", "test"])
def test_training_text_without_held_out_text_is_refused(tmp_path: Path, split: str) -> None:
    write_text_folder(tmp_path)
    (tmp_path / f"{split}.txt").unlink()
    with pytest.raises(RunError, match=rf"no {split} file; add {split}\.txt"):
        list(corpus.local(str(tmp_path)))


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    write_text_folder(tmp_path)
    (tmp_path / "valid.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(RunError, match=r"valid\.txt: cannot be read as UTF-8 text .*; convert it"):
        list(corpus.local(str(tmp_path)))
