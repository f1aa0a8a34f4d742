"""Where text comes from: an iterator of (split, document) for each kind of source. No tokens here.

A document goes to a split by the hash of its name, so the same document lands in the same split on every machine, and
train, valid and test never share one.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimc.models.hub import hub_answers

from .errors import RESUME, RunError

if TYPE_CHECKING:
    from .schema import DataConfig

SPLITS = ("train", "valid", "test")
HELD_OUT_PERCENT = 6
"""Percent of the documents in each of valid and test, where a source brings no split of its own."""
_SPLIT_FILES = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}
_UNSTABLE_PACKAGES = {
    "test",
    "idlelib",
    "lib2to3",
    "distutils",
    "turtledemo",
    "site-packages",
    "dist-packages",
    "ensurepip",
}
"""Parts of the standard library that come and go between Python builds, or are not prose."""
_SHORTEST_DOCSTRING = 40
LONGEST_WORD = 1000
"""Characters without a space between them, or spaces without a character, that are tokenised together."""
_ENDLESS = re.compile(rf"\S{{{LONGEST_WORD + 1},}}|\s{{{LONGEST_WORD + 1},}}")

BATCH, BATCH_CHARACTERS = 256, 2**22
"""Documents, or their characters, that are tokenised between two commits."""
_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".arrow": "arrow", ".csv": "csv"}
"""What reads a single file of a dataset."""

Document = tuple[str, str]
Place = dict[str, Any]
"""Goes into JSON and back."""


class Broken(RunError):
    """What text comes from broke off; the same command goes on."""

    status = RESUME


def documents(config: DataConfig, place: Place | None = None) -> Iterable[Document]:
    """The documents of the configured source, with their splits; of a :class:`Hub`, from a place on."""
    if config.text_kind == "embedded":
        return embedded()
    if config.text_kind == "text":
        return local(_required(config.path, "data.path"))
    return Hub(_required(config.dataset, "data.dataset"), config.dataset_config, config.column, place)


@dataclass(frozen=True, slots=True)
class Mark:
    """A place between two documents."""

    documents: int = 0
    """How many are before it."""
    place: Place | None = None
    """Where that is, of a source that can go there; None: it is read from the beginning."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive documents."""

    documents: list[Document]
    before: Mark
    after: Mark


def batches(config: DataConfig, start: Mark) -> Iterator[Batch]:
    """The documents behind a mark, some at a time."""
    source = documents(config) if start.place is None else documents(config, start.place)
    stream = islice(source, start.documents if start.place is None else 0, None)
    while batch := _some(stream):
        place = source.place() if isinstance(source, Hub) else None
        after = Mark(start.documents + len(batch), place)
        yield Batch(batch, start, after)
        start = after


def _some(stream: Iterator[Document]) -> list[Document]:
    """The next ones."""
    batch: list[Document] = []
    size = 0
    for document in stream:
        batch.append(document)
        size += len(document[1])
        if len(batch) >= BATCH or size >= BATCH_CHARACTERS:
            break
    return batch


def _required(value: str | None, name: str) -> str:
    if value is None:
        raise RunError(f"{name} is not set: this data source needs it; set {name}=…")
    return value


def split_of(name: str) -> str:
    """The split a document of this name belongs to."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 100
    if bucket < HELD_OUT_PERCENT:
        return "test"
    return "valid" if bucket < 2 * HELD_OUT_PERCENT else "train"


def embedded() -> Iterator[Document]:
    """English prose that every CPython carries: the documentation topics of `pydoc_data` and the standard library's
    docstrings.

    A paragraph that stands in several documents is kept once, training text first, so that nothing held out was trained
    on.
    """
    named = sorted([*_topics(), *_docstrings()], key=lambda pair: (SPLITS.index(split_of(pair[0])), pair[0]))
    seen: set[str] = set()
    for name, text in named:
        kept = []
        for paragraph in text.split("\n\n"):
            key = " ".join(paragraph.split())
            if key and key not in seen:
                seen.add(key)
                kept.append(paragraph.rstrip())
        if kept:
            yield split_of(name), "\n\n".join(kept)


def _topics() -> Iterator[Document]:
    topics = importlib.import_module("pydoc_data.topics").topics  # no type stubs: the module is generated text
    for name, text in topics.items():
        yield f"topic:{name}", text.strip()


def _docstrings() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _UNSTABLE_PACKAGES & set(relative.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue  # the standard library carries a few files that are broken on purpose
        texts = [ast.get_docstring(n) for n in _documented(tree)]
        long_enough = [t for t in texts if t and len(t) >= _SHORTEST_DOCSTRING]
        if long_enough:
            yield f"module:{relative.with_suffix('').as_posix()}", "\n\n".join(long_enough)


def _documented(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """What may have a docstring, in the order of :func:`ast.walk`, which looks into expressions, too, and takes three
    times as long."""
    left = deque[ast.AST]([tree])
    while left:
        node = left.popleft()
        for name in ("body", "handlers", "orelse", "finalbody", "cases"):
            left.extend(getattr(node, name, ()))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def local(path: str) -> Iterator[Document]:
    """Text files: a folder with `train`/`valid`/`test` files is taken as split; another folder is split by file, a
    single file into consecutive stretches.

    Raises:
        RunError: nothing readable there.
    """
    root = Path(path)
    if not root.exists():
        raise RunError(
            f"data.path={path}: no such file or folder; give a text file, or a folder with train.txt, valid.txt and"
            " test.txt"
        )
    if root.is_file():
        yield from _split_one_file(read_text(root))
        return
    found = {split: _first_file(root, stems) for split, stems in _SPLIT_FILES.items()}
    if found["train"]:
        for split, file in found.items():
            if file is None:
                raise RunError(
                    f"data.path={path}: there is a train file but no {split} file; add {split}.txt so that training and"
                    " held-out text stay apart"
                )
            yield split, read_text(file)
        return
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix in (".txt", ".md", ".rst"))
    if not files:
        raise RunError(f"data.path={path}: no .txt, .md or .rst file in it; give a folder of text")
    if len(files) == 1:
        yield from _split_one_file(read_text(files[0]))
        return
    for file in files:
        yield split_of(file.relative_to(root).as_posix()), read_text(file)


def _first_file(root: Path, stems: tuple[str, ...]) -> Path | None:
    return next((root / f"{stem}.txt" for stem in stems if (root / f"{stem}.txt").is_file()), None)


def read_text(file: Path, setting: str | None = None) -> str:
    """A text file; `setting` is what the user calls it.

    Raises:
        RunError: it is missing, or no UTF-8 text.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        where = f"{file}" if setting is None else f"{setting}={file}"
        raise RunError(f"{where}: cannot be read as UTF-8 text ({error}); convert it or leave it out") from error


def _split_one_file(text: str) -> Iterator[Document]:
    cuts = [
        0,
        round(len(text) * (1 - 2 * HELD_OUT_PERCENT / 100)),
        round(len(text) * (1 - HELD_OUT_PERCENT / 100)),
        len(text),
    ]
    for split, start, stop in zip(SPLITS, cuts, cuts[1:], strict=False):
        yield split, text[start:stop]


def pieces(text: str) -> list[str]:
    """A document in pieces that can be tokenised one by one: whole, but for words without end, whose tokens would take
    time by the square of their length."""
    cut: list[str] = []
    start = 0
    for word in _ENDLESS.finditer(text):
        for stop in range(word.start() + LONGEST_WORD, word.end() + 1, LONGEST_WORD):
            cut.append(text[start:stop])
            start = stop
    return [*cut, text[start:]] if start < len(text) or not cut else cut


class Hub:
    """A Hugging Face dataset by hub name, local folder or file, streamed. Its own validation and test parts are used
    where it has them; otherwise documents are held out by the hash of their text, so that the split does not depend on
    their order.

    Args:
        dataset: name, folder (also one of `save_to_disk`) or file.
        config: the dataset's configuration, where it has several.
        column: with the text.
        place: where an earlier one stopped (:meth:`place`), and this one goes on; None: at the beginning.

    Raises:
        RunError: it cannot be opened (no network, no such dataset), or has no such text column.
    """

    def __init__(self, dataset: str, config: str | None, column: str, place: Place | None = None):
        self.name, self.column = dataset, column
        parts = _parts(dataset, config)
        own = {
            split: next((parts[s] for s in (*stems, "validation") if s in parts), None)
            for split, stems in _SPLIT_FILES.items()
        }
        self.has_splits = own["valid"] is not None and own["test"] is not None
        """Whether it brings held-out parts of its own."""
        wanted = SPLITS if self.has_splits else SPLITS[:1]
        self._parts: list[tuple[str, Any]] = [(split, own[split]) for split in wanted if own[split] is not None]
        self._number = 0
        if place is not None:
            self._number = place["part"]
            self._parts[self._number][1].load_state_dict(place["rows"])

    def __iter__(self) -> Iterator[Document]:
        for number in range(self._number, len(self._parts)):
            self._number = number
            yield from self._documents(*self._parts[number])

    def part(self, split: str) -> Iterator[Document]:
        """The documents among which those of a split are."""
        return self._documents(*next(part for part in self._parts if part[0] == split or not self.has_splits))

    def place(self) -> Place:
        """Behind the last document that was given."""
        return {"part": self._number, "rows": self._parts[self._number][1].state_dict()}

    def _documents(self, split: str, rows: Any) -> Iterator[Document]:
        rows = iter(rows)
        while True:
            try:
                row = next(rows, None)
            except Exception as error:  # the library raises many kinds: of networks, of files, of formats
                raise Broken(
                    f"data.dataset={self.name}: cannot be read on ({type(error).__name__}: {_line(error)}); what was"
                    " read so far is kept: check the network, or that file, and give the same command again"
                ) from error
            if row is None:
                return
            if self.column not in row:
                raise RunError(
                    f"data.column={self.column}: the dataset has the columns {', '.join(row)}; name the one with the"
                    " text"
                )
            text = row[self.column]
            if not isinstance(text, str):
                raise RunError(
                    f"data.column={self.column}: a row holds {text!r:.40}, no text; name the column with the text, or"
                    " drop such rows"
                )
            yield (split if self.has_splits else split_of(text)), text


def _parts(dataset: str, config: str | None) -> Any:
    """The dataset's parts by name, streamed."""
    local = Path(dataset)
    if not local.exists():
        try:
            answers = hub_answers(dataset)
        except FileNotFoundError:
            answers = True  # a path, of which the library says best what is wrong
        if not answers:
            raise RunError(
                f"data.dataset={dataset}: cannot be opened (no such folder, and the hub does not answer); check the"
                " name and the network, or use data=text with data.path"
            )
    import datasets  # seconds to import

    try:
        if (local / "dataset_dict.json").exists() or (local / "state.json").exists():
            saved = datasets.load_from_disk(dataset)
            parts = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
            return {name: x.to_iterable_dataset(max(1, len(x.cache_files))) for name, x in parts.items()}
        if local.is_file() and (builder := _BUILDERS.get(local.suffix)):
            return datasets.load_dataset(builder, data_files={"train": [dataset]}, streaming=True)
        return datasets.load_dataset(dataset, config, streaming=True)
    except Exception as error:  # the library raises many kinds; all mean the same to the user
        raise RunError(
            f"data.dataset={dataset}: cannot be opened ({type(error).__name__}: {_line(error)}); check the name and the"
            " network, or use data=text with data.path"
        ) from error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
