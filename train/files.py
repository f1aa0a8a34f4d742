"""Files that are either whole or not there: written under a temporary name, flushed to the disk, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aimc.models.manifest import MANIFEST, damage_of, write_manifest

from .errors import RunError


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace `path` by a file with this text, in one step.

    Args:
        path: of the file; its folder is made if it is not there.
        text: what it holds.
        durable: False: without waiting for the disk, for what may be lost with the machine.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    if durable:
        flush(temporary)
    os.replace(temporary, path)
    if durable:
        flush(path.parent)


def write_json(path: Path, data: Any, *, durable: bool = True) -> None:
    """Replace `path` by a JSON file, in one step."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n", durable=durable)


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None: there is no such file, or it holds no object, being damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


@contextmanager
def whole_folder(path: Path, setting: str = "output_dir") -> Iterator[Path]:
    """A temporary folder that takes the place of `path`, with a manifest of its files, when the block ends without an
    error; until then the old one stays. Where `path` is a link, the folder that it leads to is replaced.

    Raises:
        RunError: it cannot be written; the old one is there as it was.
    """
    path = path.resolve()
    partial, old = _beside(path)
    with saving(path, setting):
        remove(partial)
        partial.mkdir(parents=True)
        try:
            yield partial
            finish(partial)
        except BaseException:
            remove(partial)  # on a full disk, room for the next try
            raise
        if path.exists():
            remove(old)
            path.rename(old)
        put_in_place(partial, path)
        remove(old)


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")


def settle(path: Path) -> None:
    """Put in place what a run that was killed between the two renames of :func:`whole_folder` has left."""
    path = path.resolve()
    if not path.exists():
        for left in _beside(path):
            if (left / MANIFEST).exists() and damage_of(left) is None:
                left.rename(path)
                return


def finish(folder: Path) -> None:
    """Write a folder's manifest, and everything in it to the disk."""
    write_manifest(folder)
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def put_in_place(folder: Path, path: Path) -> None:
    """Give a finished folder its name, for good."""
    folder.rename(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    if os.name != "posix" and path.is_dir():  # only there a folder can be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """A file, a link (not what it leads to) or a folder with all that is in it; or nothing."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


@contextmanager
def saving(path: Path, setting: str, what: str = "", errors: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Whatever goes wrong while `path` is written, such as a full disk, on one line.

    Args:
        path: what the user is told of.
        setting: that says where it is.
        what: that was kept, in the message.
        errors: kinds beside those of the system. safetensors and tokenizers raise kinds of their own, with the system's
            words in them.

    Raises:
        RunError: it cannot be written.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).partition("\n")[0]
        if not isinstance(error, (OSError, *errors)) and "(os error " not in reason:
            raise
        raise RunError(
            f"{setting}={path}: cannot be written ({reason}); {what or 'what was saved before is intact'}; make room,"
            f" or choose another place with {setting}=…, and give the command again"
        ) from error


def require_writable(folder: Path, setting: str = "output_dir") -> None:
    """Make the folder and try a file in it.

    Raises:
        RunError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # without a name, for two jobs may try at once
            pass
    except OSError as error:
        raise RunError(
            f"{setting}={folder}: cannot be written ({error.strerror}); choose another with {setting}=…"
        ) from error
