"""Training text that is tokenised while a model trains on it, and never kept: the same sequences however many processes
train and tokenise, and gone on with exactly where it stopped."""

from __future__ import annotations

import copy
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from . import corpus
from .cache import PROGRESS, Growing
from .encoding import encode, encoded
from .errors import RunError
from .files import read_object, remove, write_json
from .shards import FIRST

if TYPE_CHECKING:
    from .schema import DataConfig

PLACE = "stream.json"
"""In a point to resume from: where the text goes on."""
_CUT = "cut"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a window begins."""

    sequence: int = 0
    """Sequences before it, of all passes over the text."""
    passes: int = 0
    """Passes over the text that are over."""
    window: int = 0
    """Windows before it in its pass."""
    mark: corpus.Mark = field(default_factory=corpus.Mark)
    """A place at or before it."""
    tokens: int = 0
    """Of training text between the two."""


class Stream(torch.utils.data.IterableDataset):
    """Sequences of training text without end, pass after pass. Windows of consecutive ones are shuffled inside; the
    next window is read ahead. One process reads, and the trainer deals to the others, as it does with text on disk.

    Args:
        config: the dataset.
        tokenizer: of the model.
        dtype: integers that hold its ids.
        context: tokens a sequence.
        seed: of the order inside the windows.
    """

    def __init__(
        self, config: DataConfig, tokenizer: PreTrainedTokenizerBase, dtype: np.dtype, context: int, seed: int
    ) -> None:
        self.config, self.dtype, self.context, self.seed = config, dtype, context, seed
        self.tokenizer = copy.deepcopy(tokenizer)  # another thread works with it
        self._start, self._skip = Origin(), 0
        self._restore: Callable[[], None] | None = None
        self._origins: deque[Origin] = deque([self._start])
        self._rows: Generator[dict[str, torch.Tensor], None, None] | None = None

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        if self._restore is not None:
            self._restore()
        self.close()
        self._rows = self._sequences()
        return self._rows

    def close(self) -> None:
        """Read no further."""
        if self._rows is not None:
            self._rows.close()

    def save(self, folder: Path, sequence: int) -> None:
        """Note in a folder where the text goes on behind so many sequences."""
        origin = next(origin for origin in reversed(self._origins) if origin.sequence <= sequence)
        while self._origins[0] is not origin:
            self._origins.popleft()
        write_json(folder / PLACE, {"at": sequence, "origin": asdict(origin)})

    def go_on(self, folder: Path, restore: Callable[[], None]) -> None:
        """Begin where :meth:`save` was called.

        Args:
            folder: that has the note.
            restore: is called when reading begins, for the loader has then drawn a random number for itself.
        """
        note = read_object(folder / PLACE)
        if note is None:
            raise RunError(f"{folder}: {PLACE} is missing, so the text cannot go on; give restart=true to begin anew")
        origin = note["origin"]
        self._start = Origin(**{**origin, "mark": corpus.Mark(**origin["mark"])})
        self._skip, self._restore = note["at"] - self._start.sequence, restore
        self._origins = deque([self._start])

    def _sequences(self) -> Generator[dict[str, torch.Tensor], None, None]:
        skip = self._skip
        with closing(_ahead(self._windows(self._start))) as windows:
            for origin, window in windows:
                self._origins.append(origin)
                order = np.random.default_rng([self.seed, origin.passes, origin.window]).permutation(len(window))
                for number in order[skip:]:
                    ids = torch.from_numpy(window[number].astype(np.int64))
                    labels = ids.clone()
                    labels[0] = -100  # as in sequences of text on disk
                    yield {"input_ids": ids, "labels": labels}
                skip = 0

    def _windows(self, start: Origin) -> Generator[tuple[Origin, np.ndarray], None, None]:
        """Origin and sequences `[N, context]` of each window, from one on."""
        while True:
            before = start.sequence
            with closing(self._of_pass(start)) as windows:
                for origin, window in windows:
                    yield origin, window
                    start = replace(origin, sequence=origin.sequence + len(window))
            if start.sequence == before and start.window == 0:
                raise RunError(
                    f"the training text holds fewer tokens than one sequence of {self.context}; give more text"
                    " (data.dataset), or a model with fewer positions"
                )
            start = Origin(sequence=start.sequence, passes=start.passes + 1)

    def _of_pass(self, start: Origin) -> Generator[tuple[Origin, np.ndarray], None, None]:
        """Windows up to the end of the text; tokens that fill no sequence there are left out."""
        size = self.config.shuffled_sequences * self.context
        parts: deque[tuple[corpus.Mark, np.ndarray]] = deque()
        offset, total = start.tokens, -start.tokens
        origin = start
        with closing(encoded(self._training(start.mark), self.tokenizer, self.dtype, self.config.workers)) as stream:
            for batch, documents in stream:
                parts.append((batch.before, np.concatenate(documents)))
                total += len(parts[-1][1])
                while total >= size:
                    origin = replace(origin, mark=parts[0][0], tokens=offset)
                    window, offset = _take(parts, offset, size)
                    yield origin, window.reshape(-1, self.context)
                    total -= size
                    origin = replace(
                        origin, sequence=origin.sequence + self.config.shuffled_sequences, window=origin.window + 1
                    )
        if n := total // self.context:
            origin = replace(origin, mark=parts[0][0], tokens=offset)
            yield origin, _take(parts, offset, n * self.context)[0].reshape(-1, self.context)

    def _training(self, mark: corpus.Mark) -> Iterator[corpus.Batch]:
        """The documents that are not held out."""
        for batch in corpus.batches(self.config, mark):
            own = [document for document in batch.documents if document[0] == "train"]
            if own:
                yield replace(batch, documents=own)


def _take(parts: deque[tuple[corpus.Mark, np.ndarray]], offset: int, size: int) -> tuple[np.ndarray, int]:
    """So many tokens from an offset in the first part on, and the offset behind them; parts that are used up go."""
    found = []
    while size:
        while offset >= len(parts[0][1]):
            offset -= len(parts[0][1])
            parts.popleft()
        found.append(parts[0][1][offset : offset + size])
        offset += len(found[-1])
        size -= len(found[-1])
    return np.concatenate(found), offset


def _ahead(items: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """The same items, the next one made meanwhile by another thread."""
    made: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=1)
    is_over = threading.Event()

    def put(item: Any, error: BaseException | None = None) -> None:
        while not is_over.is_set():
            with suppress(queue.Full):
                return made.put((item, error), timeout=0.1)

    def make() -> None:
        try:
            for item in items:
                put(item)
                if is_over.is_set():
                    break
        except BaseException as error:
            put(None, error)
        finally:
            items.close()

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            yield item
    finally:
        is_over.set()
        thread.join()


def write_head(config: DataConfig, tokenizer: PreTrainedTokenizerBase, dtype: np.dtype, folder: Path) -> str:
    """Write the first `config.head_tokens` tokens of each split, or all where there are fewer, into a folder; returns
    where test and validation text come from: the dataset's own parts, or, where it lacks one of them, documents that
    are held out by the hash of their text and that no stream trains on."""
    remove(folder / PROGRESS)
    assert config.dataset is not None
    source = corpus.Hub(config.dataset, config.dataset_config, config.column)
    wanted, full = config.head_tokens * dtype.itemsize, set()
    with Growing(folder, FIRST).opened() as files:
        n_documents = 0
        for together in [(split,) for split in corpus.SPLITS] if source.has_splits else [corpus.SPLITS]:
            for split, text in source.part(together[0]):
                if split in full:
                    continue
                (tokens,) = encode(tokenizer, dtype, [text])
                files.write(f"{split}.bin", tokens.tobytes())
                n_documents += 1
                if files.size(f"{split}.bin") >= wanted:
                    full.add(split)
                    if full >= set(together):
                        break
        if not n_documents:
            raise RunError("the text is empty: there is no document in it; check data.dataset")
        files.commit(n_documents, **{_CUT: sorted(full)})
    if source.has_splits:
        return "the dataset's own parts"
    return f"{corpus.HELD_OUT_PERCENT} of a hundred documents each, by the hash of their text, left out of training"


def cut_in(folder: Path) -> frozenset[str]:
    """The splits of which a folder holds the head alone."""
    return frozenset((read_object(folder / PROGRESS) or {}).get(_CUT, ()))
