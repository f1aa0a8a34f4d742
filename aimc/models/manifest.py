"""What stands in a folder, with a checksum each: `manifest.json`, written last when a folder is saved and compared
whenever it is loaded, so that no byte of a model changes unseen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"
"""The file. A folder without one, from elsewhere or an older aimc, is taken as it is."""
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
CONFIG = ("config.json", "generation_config.json")
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model", "chat_template*")
_NOT_LISTED = (MANIFEST, "README.md")
"""A card is for people, who may write on in it."""


class Damaged(ValueError):
    """A file is not what it was when its folder was saved; the message begins with its name."""


def write_manifest(folder: Path, files: Iterable[Path] | None = None) -> None:
    """List what stands in a folder.

    Args:
        folder: whose files are all written.
        files: those to list; None: all, also in folders inside.
    """
    found = sorted(path for path in files or folder.rglob("*") if path.is_file() and path.name not in _NOT_LISTED)
    listed = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": checksum(path)} for path in found
    }
    text = json.dumps({"version": 1, "files": listed}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def checksum(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; about 0.7 s for 500 MB."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage_of(
    folder: Path, patterns: Iterable[str] = ("*",), read: Callable[[Path], bool] = lambda path: True
) -> str | None:
    """The first file in a folder that is not as its manifest says, and how; None: all are, or it has no manifest.
    Arguments are those of :func:`damages`."""
    return next((f"{name} {what}" for name, what in damages(folder, patterns, read)), None)


def damages(
    folder: Path, patterns: Iterable[str] = ("*",), read: Callable[[Path], bool] = lambda path: True
) -> Iterator[tuple[str, str]]:
    """The files in a folder that are not as its manifest says, each with how; none where it has no manifest.

    Args:
        folder: of a model, a point to resume from, or tokens.
        patterns: of the names that are looked at.
        read: whether a file is read for its checksum; the size of every one is compared.
    """
    if not (folder / MANIFEST).exists():
        return
    try:
        listed = _listed(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield MANIFEST, f"cannot be read ({type(error).__name__})"
        return
    for name, (size, wanted) in listed.items():
        if not any(fnmatch(name, pattern) for pattern in patterns):
            continue
        path = folder / name
        if not path.is_file():
            yield name, "is missing"
        elif path.stat().st_size != size:
            yield name, f"has {path.stat().st_size} bytes in place of {size}"
        elif read(path) and checksum(path) != wanted:
            yield name, "is not what was saved (its SHA-256 is another)"


def _listed(folder: Path) -> dict[str, tuple[int, str]]:
    manifest: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    listed = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    if manifest["version"] != 1 or any(_leads_out(name) for name in listed):
        raise ValueError("another version, or names outside the folder")
    return listed


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def require_intact(folder: str | Path, *patterns: str) -> None:
    """Check a folder, or some of its files, against its manifest.

    Args:
        folder: anything else, such as a hub name, is not looked at.
        patterns: :data:`WEIGHTS`, :data:`CONFIG`, :data:`TOKENIZER`; none: everything that is listed.

    Raises:
        Damaged: a file is missing, cut off or changed.
    """
    what = damage_of(Path(folder), patterns or ("*",)) if Path(folder).is_dir() else None
    if what is not None:
        raise Damaged(
            f"{folder}: damaged or changed since it was saved: {what}; a model with other weights or settings would"
            f" give other numbers without a word: use another copy, or, where it was changed on purpose, remove its"
            f" {MANIFEST}"
        )
