"""Tokens of a text in files of a handy size, each with a checksum, and all of them as one array."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from . import corpus
from .cache import PROGRESS, SHARD, Growing
from .encoding import encoded
from .files import flush, read_object

if TYPE_CHECKING:
    from .schema import DataConfig

SHARD_TOKENS = 2**27
"""Tokens of a file; it ends before the document that would make it larger."""
_SHARDS, _MARK = "shards", "mark"
FIRST = tuple(f"{split}{SHARD}" for split in corpus.SPLITS)
"""The only files of a small text."""


class Tokens:
    """Files one behind the other as one array, int `[N]`; they are mapped, not read."""

    def __init__(self, files: Sequence[np.ndarray]) -> None:
        self.files = list(files)
        self.dtype = files[0].dtype
        self._ends = list(accumulate(len(file) for file in files))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, where: slice) -> np.ndarray:
        """A stretch, copied where it goes over the end of a file."""
        start, stop, step = where.indices(len(self))
        assert step == 1
        found = []
        number = bisect_right(self._ends, start)
        while start < stop:
            before = self._ends[number] - len(self.files[number])
            found.append(self.files[number][start - before : stop - before])
            start = min(stop, self._ends[number])
            number += 1
        return found[0] if len(found) == 1 else np.concatenate(found or [np.empty(0, self.dtype)])


def split_of_folder(folder: Path, split: str, dtype: np.dtype) -> np.ndarray | Tokens:
    """All tokens of a split, mapped: `[N]`."""
    shards = (read_object(folder / PROGRESS) or {}).get(_SHARDS) or {f"{split}{SHARD}": {"split": split}}
    files = [folder / name for name, shard in shards.items() if shard["split"] == split]
    parts = [np.memmap(file, dtype=dtype, mode="r") for file in files if file.exists() and file.stat().st_size]
    if len(parts) > 1:
        return Tokens(parts)
    return parts[0] if parts else np.empty(0, dtype)


def tokenise(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, dtype: np.dtype, folder: Path
) -> Iterator[tuple[int, int]]:
    """Write a text's shards into a folder, committing after every batch; one that was killed goes on from the last
    commit. What is in which file does not depend on the number of processes.

    Yields:
        Documents and tokens that are written.
    """

    def mend(place: Path, names: list[str]) -> bool:
        return remake(config, tokenizer, dtype, place, names)

    with Growing(folder, FIRST).opened(mend) as files:
        shards: dict[str, dict[str, Any]] = files.facts.get(_SHARDS) or {}
        current = {shard["split"]: name for name, shard in shards.items()}
        start = corpus.Mark(files.documents, (files.facts.get(_MARK) or {}).get("place"))
        with closing(encoded(corpus.batches(config, start), tokenizer, dtype, config.workers)) as stream:
            for batch, documents in stream:
                for number, tokens in enumerate(documents):
                    split = batch.documents[number][0]
                    name = current.get(split)
                    if name is None or 0 < files.size(name) > SHARD_TOKENS * dtype.itemsize - tokens.nbytes:
                        if name is not None:
                            files.close(name)
                        name = current[split] = _next(split, shards)
                        shards[name] = {"split": split, "first": batch.before.documents + number}
                        shards[name][_MARK] = asdict(batch.before)
                    shards[name]["last"] = batch.before.documents + number
                    files.write(name, tokens.tobytes())
                files.commit(len(batch.documents), **{_MARK: asdict(batch.after), _SHARDS: shards})
                yield files.documents, sum(map(len, documents))


def _next(split: str, shards: Mapping[str, Any]) -> str:
    number = sum(shard["split"] == split for shard in shards.values())
    return f"{split}{SHARD}" if number == 0 else f"{split}-{number:05}{SHARD}"


def remake(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, dtype: np.dtype, folder: Path, names: Sequence[str]
) -> bool:
    """Make single shards of a folder again, in place, from their documents alone; False: they would not be what they
    were, or nobody noted which documents they have."""
    progress = read_object(folder / PROGRESS) or {}
    try:
        wanted = [(name, progress[_SHARDS][name], progress["files"][name]["sha256"]) for name in names]
        return all(_remake(config, tokenizer, dtype, folder / name, *facts) for name, *facts in wanted)
    except (KeyError, TypeError):
        return False


def _remake(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    dtype: np.dtype,
    path: Path,
    shard: Mapping[str, Any],
    checksum: str,
) -> bool:
    partial = path.with_name(f".{path.name}.partial")
    found = hashlib.sha256()
    batches = _of_shard(config, shard)
    with open(partial, "wb") as file, closing(encoded(batches, tokenizer, dtype, config.workers)) as stream:
        for _, documents in stream:
            for tokens in documents:
                _append(file, found, tokens.tobytes())
    if found.hexdigest() != checksum:
        partial.unlink()
        return False
    flush(partial)
    os.replace(partial, path)
    flush(path.parent)
    return True


def _append(file: IO[bytes], found: Any, data: bytes) -> None:
    file.write(data)
    found.update(data)


def _of_shard(config: DataConfig, shard: Mapping[str, Any]) -> Iterator[corpus.Batch]:
    """The documents of one shard, in batches."""
    for batch in corpus.batches(config, corpus.Mark(**shard[_MARK])):
        if batch.before.documents > shard["last"]:
            return
        own = [
            document
            for number, document in enumerate(batch.documents, batch.before.documents)
            if shard["first"] <= number <= shard["last"] and document[0] == shard["split"]
        ]
        if own:
            yield replace(batch, documents=own)
