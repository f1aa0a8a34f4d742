"""Large texts: tokens in shards that are the same whoever makes them, gone on with after a kill, mended one by one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest

from aimc.models.manifest import damage_of
from tests.conftest import REPOSITORY
from tests.train.conftest import english
from tests.train.processes import PRELOADED
from train import corpus, encoding, shards, tokens
from train.cache import PROGRESS
from train.corpus import Broken
from train.errors import RESUME
from train.schema import DataConfig
from train.tokens import TokenData

LIMIT = 700
"""Tokens a shard here."""


def settings(text: Path, cache: Path, workers: int = 1) -> DataConfig:
    return DataConfig(kind="text", path=str(text), vocab_size=300, cache_dir=str(cache), workers=workers)


def prepare(text: Path, cache: Path, workers: int = 1, said: list[str] | None = None) -> TokenData:
    return tokens.prepare(settings(text, cache, workers), None, 32, (said if said is not None else []).append)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for i in range(60):
        (folder / f"{i:02}.txt").write_text(english(300 + i, skip=400 * i))
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards and batches of a few documents."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()  # with what tests beside these want
    monkeypatch.setattr(shards, "SHARD_TOKENS", LIMIT)
    monkeypatch.setattr(corpus, "BATCH", 8)
    monkeypatch.setattr(encoding, "ALONE", 0)


@pytest.fixture(scope="module")
def one(text: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    """One shard a split, by this process alone."""
    return prepare(text, tmp_path_factory.mktemp("one"))


@pytest.fixture
def several(text: Path, tmp_path: Path, small: None) -> Path:
    """A folder of several shards."""
    return tmp_path / "cache" / prepare(text, tmp_path / "cache").fingerprint


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


def test_shards_are_one_text(text: Path, one: TokenData, several: Path) -> None:
    data = prepare(text, several.parent)
    made = json.loads((several / PROGRESS).read_text())["shards"]
    assert len([name for name in made if name.startswith("train")]) > 5
    assert data.fingerprint == one.fingerprint and damage_of(several) is None
    for split in corpus.SPLITS:
        assert data.tensor(split).equal(one.tensor(split))
    train, whole = data.splits["train"], one.splits["train"]
    assert isinstance(train, shards.Tokens) and isinstance(whole, np.memmap)
    assert max(len(file) for file in train.files) <= LIMIT
    for start in range(0, len(whole), 97):
        for length in (0, 1, 32, 1500):
            assert np.array_equal(train[start : start + length], whole[start : start + length])
    assert np.array_equal(train[:], whole) and np.array_equal(train[-5:], whole[-5:])
    end = data.tokenizer.eos_token_id
    assert all(file[-1] == end for file in train.files), "no document goes over the end of a shard"


@pytest.mark.slow
def test_shards_are_the_same_by_any_number_of_processes(text: Path, several: Path, tmp_path: Path) -> None:
    data = prepare(text, tmp_path / "two", workers=2)
    assert data.fingerprint == several.name
    assert contents(tmp_path / "two" / several.name) == contents(several)


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_shard_is_made_again_alone(text: Path, several: Path, damage: str) -> None:
    before, wanted = {path: path.stat() for path in several.glob("*.bin")}, contents(several)
    lost = several / "train-00003.bin"
    data = wanted[lost.name]
    lost.unlink()
    if damage != "gone":
        lost.write_bytes(data[:100] if damage == "cut" else data[:-1] + b"?")
    said: list[str] = []
    prepare(text, several.parent, said=said)
    assert len(said) == 1 and f"{several.name}: train-00003.bin " in said[0] and said[0].endswith("it is made again")
    assert contents(several) == wanted and damage_of(several) is None
    assert all(path.stat().st_mtime_ns == before[path].st_mtime_ns for path in before if path != lost)
    assert not list(several.glob(".*.partial"))


def test_where_the_text_is_another_all_is_made_again(
    text: Path, several: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = corpus.documents

    def other(config: DataConfig) -> Iterator[corpus.Document]:
        for split, document in original(config):
            yield split, document.replace("the", "not")

    (several / "train-00003.bin").unlink()
    monkeypatch.setattr(corpus, "documents", other)
    said: list[str] = []
    data = prepare(text, several.parent, said=said)
    assert len(said) == 2 and "it cannot be made again as it was; all of the text is tokenised again" in said[1]
    assert " not " in data.tokenizer.decode(data.tensor("train")) and damage_of(several) is None


def test_a_process_that_dies_is_told_and_nothing_is_lost(
    text: Path, several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, killed = corpus.documents, []

    def kill_one(config: DataConfig) -> Iterator[corpus.Document]:
        for number, document in enumerate(original(config)):
            workers = multiprocessing.active_children()
            if number > 40 and workers and not killed:
                killed.append(workers[0].pid)
                os.kill(killed[0], signal.SIGKILL)
                time.sleep(0.2)
            yield document

    monkeypatch.setattr(corpus, "documents", kill_one)
    with pytest.raises(
        Broken, match=r"^data\.workers=2: a process that tokenises was killed.*goes on from there"
    ) as stop:
        prepare(text, tmp_path / "died", workers=2)
    assert stop.value.status == RESUME and killed and not multiprocessing.active_children()
    monkeypatch.setattr(corpus, "documents", original)
    prepare(text, tmp_path / "died", workers=1)
    assert contents(tmp_path / "died" / several.name) == contents(several)


SCRIPT = """
import sys, time
from pathlib import Path
from tests.train.test_shards import LIMIT, settings
from train import corpus, encoding, shards, tokens
shards.SHARD_TOKENS, corpus.BATCH, encoding.ALONE = LIMIT, 8, 0
original = corpus.documents
def slow(config):
    for document in original(config):
        time.sleep(0.02 if list(Path(sys.argv[2]).glob(".*.partial/tokenizer")) else 0)
        yield document
corpus.documents = slow
tokens.prepare(settings(Path(sys.argv[1]), Path(sys.argv[2]), 2), None, 32)
"""


@pytest.mark.slow
def test_a_killed_tokenisation_goes_on_from_its_whole_shards(text: Path, several: Path, tmp_path: Path) -> None:
    """SIGKILL, and no process stays behind."""
    cache = tmp_path / "killed"
    arguments = [sys.executable, "-c", SCRIPT, str(text), str(cache)]
    process = subprocess.Popen(arguments, cwd=REPOSITORY, start_new_session=True)
    try:
        until = time.monotonic() + 90
        while not list(cache.glob(".*.partial/train-00003.bin")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    until = time.monotonic() + 20
    while _is_alive(process.pid):
        assert time.monotonic() < until, "processes that tokenise outlive the one that they worked for"
        time.sleep(0.05)
    (half,) = cache.glob(".*.partial")
    done = json.loads((half / PROGRESS).read_text())
    whole = {name: (half / name).stat() for name in done["shards"]} if done["documents"] < 60 else {}
    assert len(whole) > 2
    prepare(text, cache)
    folder = cache / several.name
    assert contents(folder) == contents(several)
    kept = [name for name, stat in whole.items() if (folder / name).stat().st_mtime_ns == stat.st_mtime_ns]
    assert {"train.bin", "train-00001.bin"} <= set(kept)


def _is_alive(group: int) -> bool:
    """Whether a process of a session is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_shape_no_text(tmp_path: Path, text: Path) -> None:
    names = [tokens._fingerprint(settings(text, tmp_path, n), None, None) for n in (1, 7)]
    assert names[0] == names[1]
