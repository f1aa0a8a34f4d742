"""`python -m benchmarks.data_path`: what the way from a text to batches delivers, beside what a GPU takes: tokenising
by one process and by several, tokens a second from disk to tensors, and the start on a file of 10 GB."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import psutil
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, RandomSampler
from transformers import AutoTokenizer, PreTrainedTokenizerBase, default_data_collator

from aimc.models.manifest import MANIFEST, checksum
from benchmarks.machine import provenance
from train import encoding, shards
from train.cache import PROGRESS, note_large
from train.schema import DataConfig
from train.tokens import Blocks, prepare, train_tokenizer

PARAMETERS, PEAK_FLOPS, UTILISATION = 124e6, 990e12, 0.4
"""GPT-2 small on an H200: dense bfloat16 by its data sheet, and the share of it that good training code reaches."""
TAKEN = UTILISATION * PEAK_FLOPS / (6 * PARAMETERS)
"""Tokens a second of a training step, forward and backward, 6 operations a parameter and token."""
WANTED = 20
"""Times that, so that reading never holds up eight such GPUs."""
BATCH, CONTEXT = 32, 1024
SELF = Path("/proc/self")
START_S = 2.0


@dataclass(frozen=True, slots=True)
class Start:
    """How a run with a large text begins."""

    gigabytes: float
    seconds: float
    """Until the first batch: checked, opened, order drawn."""
    read_mb: float
    """Read by system calls meanwhile."""
    mapped_mb: float
    """More of memory in use at its peak meanwhile, mapped files included."""


@dataclass(frozen=True, slots=True)
class Tokenised:
    """A text, tokenised."""

    megabytes: float
    tokens: int
    seconds: float
    own_s: float
    """CPU seconds of the process that reads and writes."""
    others_s: float
    """Of those that tokenise."""
    start_s: float
    """Before the first tokens."""


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; 1 where the loader misses what is wanted of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_path", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="*", default=(1, 2), help="processes that tokenise")
    parser.add_argument("--megabytes", type=float, default=24.0, help="of text that is tokenised")
    parser.add_argument("--text", type=Path, help="a text file; otherwise the documentation inside CPython")
    parser.add_argument("--tokenizer", help="a folder; otherwise one that is trained on that documentation")
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--gigabytes", type=float, default=10.0, help="of the sparse file that a loader starts on")
    options = parser.parse_args(arguments)
    console = Console()
    where = provenance("cpu")
    console.print(f"{where['device']}, {where['cores']} cores, load {where['load']}, torch {where['torch']}")
    with tempfile.TemporaryDirectory() as folder:
        if options.workers:
            wanted = (options.text, options.tokenizer, options.megabytes, options.workers)
            console.print(tokenising(Path(folder), *wanted))
        delivered = {n: loading(Path(folder), options.batches, n) for n in (0, 1)}
        start = starting(Path(folder), options.gigabytes)
    table = Table("trainer.workers", "tokens/s", f"× GPT-2 small on an H200 ({TAKEN / 1e3:.0f} k tokens/s, estimated)")
    for n, speed in delivered.items():
        table.add_row(str(n), f"{speed / 1e6:.1f} M", f"{speed / TAKEN:.0f}")
    console.print(table)
    console.print(
        f"first batch of a text of {start.gigabytes:g} GB in {start.seconds:.2f} s; {start.read_mb:.1f} MB read,"
        f" {start.mapped_mb:.0f} MB more memory"
    )
    reached = max(delivered.values()) >= WANTED * TAKEN and start.seconds < START_S
    console.print(f"{'reached' if reached else 'missed'}: {WANTED} times, and {START_S:g} s")
    return 0 if reached else 1


def tokenising(folder: Path, text: Path | None, tokenizer: str | None, megabytes: float, workers: list[int]) -> Table:
    """A dataset of documents of 4,500 characters, read, tokenised and written by several numbers of processes."""
    import datasets

    datasets.disable_progress_bars()
    found = [text.read_text(encoding="utf-8")] if text else list(import_module("pydoc_data.topics").topics.values())
    found = [document[at : at + 4500] for document in found for at in range(0, len(document), 4500)]
    known = AutoTokenizer.from_pretrained(tokenizer) if tokenizer else train_tokenizer(found, 8192)
    n_documents = int(megabytes * 1e6 / statistics.mean(len(document.encode()) for document in found))
    rows = {"text": list(islice(cycle(found), n_documents))}
    datasets.Dataset.from_dict(rows).to_parquet(folder / "train.parquet")
    table = Table("data.workers", "MB/s", "tokens/s", "CPU s a MB: tokenise", "read and write", "start, s")
    for n in workers:
        one = _tokenising(folder, known, sum(map(len, map(str.encode, rows["text"]))) / n_documents, n)
        table.add_row(
            str(n),
            f"{one.megabytes / one.seconds:.2f}",
            f"{one.tokens / one.seconds / 1e3:.0f} k",
            f"{(one.others_s if n > 1 else one.own_s) / one.megabytes:.3f}",
            f"{one.own_s / one.megabytes:.3f}" if n > 1 else "in that",
            f"{one.start_s:.1f}",
        )
    return table


def _tokenising(folder: Path, tokenizer: PreTrainedTokenizerBase, document_bytes: float, workers: int) -> Tokenised:
    """Behind the first batches, when all work."""
    config = DataConfig(kind="hub", dataset=str(folder / "train.parquet"), workers=workers, cache_dir=str(folder))
    alone, encoding.ALONE = encoding.ALONE, 0 if workers > 1 else encoding.ALONE
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        began = time.perf_counter()
        done = shards.tokenise(config, tokenizer, np.dtype(np.uint16), place)
        first = max(n for n, _ in islice(done, workers))
        started, own, others = time.perf_counter(), time.process_time(), _of_others()
        total, n_tokens = first, 0
        for n_documents, tokens in done:
            total, n_tokens = n_documents, n_tokens + tokens
            end, own_end, others_end = time.perf_counter(), time.process_time(), max(others, _of_others())
        if not n_tokens:
            sys.exit(
                f"--megabytes: {workers} processes had tokenised all of the text before they were timed; ask for more"
            )
        size = (total - first) * document_bytes / 1e6
        return Tokenised(size, n_tokens, end - started, own_end - own, others_end - others, started - began)
    finally:
        encoding.ALONE = alone


def _of_others() -> float:
    """CPU seconds of the processes that tokenise."""
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(spent.user + spent.system for spent in times)


def loading(folder: Path, batches: int, workers: int, size: int = 2**26) -> float:
    """Tokens a second out of a file of `size` that the system has in memory, as int64 on the CPU; the median of five
    rounds."""
    file = folder / "dense.bin"
    if not file.exists():
        np.random.default_rng(0).integers(50257, size=size, dtype=np.uint16).tofile(file)
    text = Blocks(np.memmap(file, np.uint16, mode="r"), CONTEXT)
    speeds = []
    for _ in range(5):
        loader = iter(_loader(text, workers))
        assert next(loader)["input_ids"].shape == (BATCH, CONTEXT)
        began, count = time.perf_counter(), 0
        for batch in islice(loader, batches):
            count += batch["input_ids"].numel()
        speeds.append(count / (time.perf_counter() - began))
        del loader
    return statistics.median(speeds)


def _loader(text: Blocks, workers: int) -> DataLoader:
    """As the trainer has it."""
    loader = DataLoader(
        text, BATCH, sampler=RandomSampler(text), collate_fn=default_data_collator, drop_last=True, num_workers=workers
    )
    return Accelerator(cpu=True).prepare(loader)


def starting(folder: Path, gigabytes: float) -> Start:
    """The start on a sparse text of many shards."""
    (folder / "text").mkdir(exist_ok=True)
    for number in range(120):
        (folder / "text" / f"{number}.txt").write_text(f"Document number {number}. " * 99, encoding="utf-8")
    config = DataConfig(kind="text", path=str(folder / "text"), vocab_size=300, cache_dir=str(folder / "cache"))
    _grow(folder / "cache" / prepare(config, None, 64).fingerprint, int(gigabytes * 1e9))
    with _measured() as used:
        data = prepare(config, None, CONTEXT, _refuse)
        text = data.training_blocks(CONTEXT)
        assert isinstance(text, Blocks) and len(text) > 0.9 * gigabytes * 1e9 / 2 / CONTEXT
        assert next(iter(_loader(text, 0)))["input_ids"].shape == (BATCH, CONTEXT)
    return Start(gigabytes, *used)


def _refuse(line: object) -> None:
    raise AssertionError(f"the sparse text was not taken: {line}")


def _grow(folder: Path, size: int) -> None:
    """Add sparse shards to a folder, as if they had been tokenised and checked."""
    progress, manifest = (json.loads((folder / name).read_text()) for name in (PROGRESS, MANIFEST))
    of_shard = 2 * shards.SHARD_TOKENS
    for number in range(1, 1 + -(-size // of_shard)):
        name, length = f"train-{number:05}.bin", min(of_shard, size - (number - 1) * of_shard)
        with (folder / name).open("wb") as file:
            file.truncate(length)
        progress["shards"][name] = progress["shards"]["train.bin"]
        manifest["files"][name] = {"bytes": length, "sha256": "not read"}
    text = json.dumps(progress)
    (folder / PROGRESS).write_text(text)
    manifest["files"][PROGRESS] = {"bytes": len(text), "sha256": checksum(folder / PROGRESS)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    note_large(folder)


@contextmanager
def _measured() -> Iterator[list[float]]:
    """Seconds, megabytes that were read, and megabytes of more memory; in the list when the block is over."""
    found: list[float] = []
    (SELF / "clear_refs").write_text("5")  # its peak is what it has now
    began, read, memory = time.perf_counter(), _number("io", "rchar"), _number("status", "VmRSS")
    yield found
    more = _number("status", "VmHWM") - memory
    found += [time.perf_counter() - began, (_number("io", "rchar") - read) / 1e6, more * 1024 / 1e6]


def _number(file: str, name: str) -> int:
    """What the system says of this process: of `io` `rchar`, bytes that were read by system calls, from a disk or from
    what the system has in memory; of `status` `VmRSS` and `VmHWM`, kB of memory now and at its peak."""
    lines = dict(line.split(":", 1) for line in (SELF / file).read_text().splitlines())
    return int(lines[name].split()[0])


if __name__ == "__main__":
    sys.exit(main())
