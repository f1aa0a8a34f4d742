"""Documents to tokens, in the order of the text: in this process, or by several where there is much of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

import numpy as np

from . import corpus
from .parent import end_with_parent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALONE = 2**24
"""Characters before other processes are started, which takes seconds: little text is done without."""
MOST = 32
"""Processes, unless more are asked for; one that reads feeds no more."""
_AHEAD = 3
"""Batches a process that wait for it or for those before them."""


def encoded(
    batches: Iterable[corpus.Batch], tokenizer: PreTrainedTokenizerBase, dtype: np.dtype, workers: int | None
) -> Generator[tuple[corpus.Batch, list[np.ndarray]], None, None]:
    """Each batch with its tokens: an array a document, which ends with the mark behind a text. What comes does not
    depend on the number of processes.

    Args:
        batches: of documents.
        tokenizer: of the model.
        dtype: of the arrays.
        workers: processes that tokenise; None: one a CPU that this one may use.

    Raises:
        Broken: one of them died.
    """
    count = workers or min(_cpus(), MOST)
    batches, alone = iter(batches), 0
    for batch in batches:
        if count > 1 and alone >= ALONE:
            yield from _by_several(batch, batches, tokenizer, dtype, count)
            return
        yield batch, encode(tokenizer, dtype, [text for _, text in batch.documents])
        alone += sum(len(text) for _, text in batch.documents)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Encoded = tuple[np.ndarray, list[int]]
"""Tokens of several documents, and how many each has."""


def _encode(tokenizer: PreTrainedTokenizerBase, dtype: np.dtype, texts: list[str]) -> Encoded:
    pieces = [corpus.pieces(text) for text in texts]
    ids = iter(tokenizer([piece for document in pieces for piece in document], verbose=False)["input_ids"])
    documents = [[token for _ in document for token in next(ids)] for document in pieces]
    end = tokenizer.eos_token_id
    parts = [np.asarray([*document, end], dtype=dtype) for document in documents]
    return np.concatenate(parts), [len(part) for part in parts]


def encode(tokenizer: PreTrainedTokenizerBase, dtype: np.dtype, texts: list[str]) -> list[np.ndarray]:
    """Tokens of each text, with the mark behind it; here and now."""
    return _split(_encode(tokenizer, dtype, texts))


def _split(tokens: Encoded) -> list[np.ndarray]:
    return np.split(tokens[0], np.cumsum(tokens[1])[:-1])


def _by_several(
    first: corpus.Batch,
    batches: Iterator[corpus.Batch],
    tokenizer: PreTrainedTokenizerBase,
    dtype: np.dtype,
    count: int,
) -> Generator[tuple[corpus.Batch, list[np.ndarray]], None, None]:
    """In order; this process reads, and takes what is done."""
    # Never a copy of this process, which may hold threads, a GPU and the connections of a distributed run.
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(kind)
    context.set_forkserver_preload([__name__, type(tokenizer).__module__])  # imported once, not by each
    waiting: deque[tuple[corpus.Batch, Future[Encoded]]] = deque()
    pool = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(tokenizer, dtype.str))
    try:
        batch: corpus.Batch | None = first
        while batch is not None or waiting:
            if batch is not None:
                waiting.append((batch, pool.submit(_work, [text for _, text in batch.documents])))
                batch = next(batches, None)
            if batch is None or len(waiting) >= _AHEAD * count:
                done, tokens = waiting.popleft()
                yield done, _split(tokens.result())
    except BrokenProcessPool as error:
        raise corpus.Broken(
            f"data.workers={count}: a process that tokenises was killed, by the system where memory is short; what is"
            " done is kept, and the same command goes on from there, with fewer where you set data.workers lower"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_tokenizer: PreTrainedTokenizerBase
_dtype: np.dtype


def _begin(tokenizer: PreTrainedTokenizerBase, dtype: str) -> None:
    """In a new process: what it works with, and that it ends with the one that started it."""
    global _tokenizer, _dtype
    _tokenizer, _dtype = tokenizer, np.dtype(dtype)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the other one, which ends this one
    end_with_parent()


def _work(texts: list[str]) -> Encoded:
    return _encode(_tokenizer, _dtype, texts)
