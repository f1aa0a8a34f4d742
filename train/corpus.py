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
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from aimc.models.hub import hub_answers

from .errors import RunError

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

Document = tuple[str, str]


def documents(config: DataConfig) -> Iterator[Document]:
    """The documents of the configured source, with their splits."""
    if config.text_kind == "embedded":
        return embedded()
    if config.text_kind == "text":
        return local(_required(config.path, "data.path"))
    return hub(_required(config.dataset, "data.dataset"), config.dataset_config, config.column)


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
        texts = [
            ast.get_docstring(n)
            for n in ast.walk(tree)
            if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        ]
        long_enough = [t for t in texts if t and len(t) >= _SHORTEST_DOCSTRING]
        if long_enough:
            yield f"module:{relative.with_suffix('').as_posix()}", "\n\n".join(long_enough)


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


def hub(dataset: str, config: str | None, column: str) -> Iterator[Document]:
    """A Hugging Face dataset by hub name or local folder, streamed. Its own validation and test parts are used where it
    has them; otherwise documents are held out by the hash of their text, so that the split does not depend on their
    order.

    Raises:
        RunError: it cannot be opened (no network, no such dataset), or has no such text column.
    """
    if not Path(dataset).exists():
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
        parts = datasets.load_dataset(dataset, config, streaming=True)
    except Exception as error:  # the library raises many kinds; all mean the same to the user
        raise RunError(
            f"data.dataset={dataset}: cannot be opened ({type(error).__name__}: {error}); check the name and the"
            " network, or use data=text with data.path"
        ) from error
    own = {
        split: next((parts[s] for s in (*stems, "validation") if s in parts), None)
        for split, stems in _SPLIT_FILES.items()
    }
    own_split = own["valid"] is not None and own["test"] is not None
    for split, part in own.items():
        if part is None or (split != "train" and not own_split):
            continue
        for row in part:
            if column not in row:
                raise RunError(
                    f"data.column={column}: the dataset has the columns {', '.join(row)}; name the one with the text"
                )
            text = row[column]
            yield (split if own_split else split_of(text)), text
