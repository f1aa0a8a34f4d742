"""Folders of tokens that jobs share: made once, in private, renamed into place when whole, and checked when opened."""

from __future__ import annotations

import hashlib
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from aimc.models.manifest import MANIFEST, damage_of

from .files import finish, flush, put_in_place, read_object, remove, require_writable, saving, write_json
from .lock import in_turn

SETTING = "data.cache_dir"
PROGRESS = "progress.json"
_SEEN = ".seen.json"
"""When large files were last read for their checksum."""
LARGE = 2**28
"""Bytes above which a file is read for its checksum only where its time of change is another than when that was done
before: tokens of gigabytes are opened without being read."""
FLUSH_S = 10.0
"""Seconds of work that a loss of power may cost; to wait for the disk at every commit would take long."""

Say = Callable[[Any], None]


def kept(folder: Path, make: Callable[[Path], None], say: Say) -> Path:
    """A folder as an earlier job left it, or as it is made now.

    Args:
        folder: of tokens, in a place that jobs share, named after everything that shapes what is in it.
        make: puts files into the folder that it is given. One that was killed is called again with what it left.
        say: gets a line where a folder is damaged, and where another job is waited for.

    Raises:
        RunError: the folder cannot be written.
    """
    if _damage(folder) is None:
        return folder
    require_writable(folder.parent, SETTING)
    with in_turn(folder, say):
        damage = _damage(folder)
        if damage is None:
            return folder
        if folder.exists():
            say(f"{folder}: {damage}; it is made again")
        with saving(folder.parent, SETTING, "what was written so far is kept"):
            remove(folder)
            # Private to this machine: where locks do not reach from one to another, each makes its own.
            partial = folder.with_name(f".{folder.name}.{_plain(socket.gethostname())}.partial")
            partial.mkdir(exist_ok=True)
            make(partial)
            finish(partial)
            _note_large(partial)
            if folder.exists():  # another machine was faster
                remove(partial)
            else:
                put_in_place(partial, folder)
    return folder


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)


def _damage(folder: Path) -> str | None:
    """What is wrong with a folder, if only that it is not there; None: nothing."""
    if not (folder / MANIFEST).exists():
        return "it has no checksums, being of an earlier version"
    seen = read_object(folder / _SEEN) or {}

    def is_read(path: Path) -> bool:
        return path.stat().st_size <= LARGE or seen.get(path.name) != path.stat().st_mtime_ns

    damage = damage_of(folder, read=is_read)
    if damage is None:
        _note_large(folder)
    return damage


def _note_large(folder: Path) -> None:
    large = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.bin") if path.stat().st_size > LARGE}
    if large and large != read_object(folder / _SEEN):
        with suppress(OSError):  # a folder that is only read
            write_json(folder / _SEEN, large, durable=False)


class Growing:
    """Files that grow batch by batch, with a commit after each; what is written after the last commit is dropped when
    they are opened again, and everything where they are not what was committed."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder, self.names = folder, names
        self.documents = 0
        self._hashes = {name: hashlib.sha256() for name in names}
        self._bytes = dict.fromkeys(names, 0)
        self._files: dict[str, IO[bytes]] = {}
        self._flushed = time.monotonic()

    @contextmanager
    def opened(self) -> Iterator[Growing]:
        """Go on after the last commit."""
        progress = read_object(self.folder / PROGRESS) or {}
        try:
            as_committed = all(self._is_as_committed(name, progress["files"][name]) for name in self.names)
            self.documents = int(progress["documents"]) if as_committed else 0
        except (KeyError, TypeError, ValueError, AttributeError, OSError):
            as_committed = False
        if not as_committed:
            self.__init__(self.folder, self.names)  # type: ignore[misc]  # from the beginning
        with ExitStack() as stack:
            for name in self.names:
                self._files[name] = stack.enter_context(open(self.folder / name, "ab"))
                self._files[name].truncate(self._bytes[name])
            yield self

    def write(self, name: str, data: bytes) -> None:
        """Append to one of the files."""
        self._files[name].write(data)
        self._hashes[name].update(data)
        self._bytes[name] += len(data)

    def commit(self, n_documents: int, **facts: Any) -> None:
        """Note that so many more documents are written."""
        self.documents += n_documents
        durable = time.monotonic() - self._flushed > FLUSH_S
        for file in self._files.values():
            file.flush()
            if durable:
                flush(Path(file.name))
        if durable:
            self._flushed = time.monotonic()
        files: Mapping[str, Any] = {
            name: {"bytes": self._bytes[name], "sha256": self._hashes[name].hexdigest()} for name in self.names
        }
        write_json(self.folder / PROGRESS, {"documents": self.documents, "files": files, **facts}, durable=durable)

    def _is_as_committed(self, name: str, committed: Mapping[str, Any]) -> bool:
        left, size = int(committed["bytes"]), int(committed["bytes"])
        with open(self.folder / name, "rb") as file:
            while left and (part := file.read(min(left, 2**24))):
                self._hashes[name].update(part)
                left -= len(part)
        self._bytes[name] = size
        return not left and self._hashes[name].hexdigest() == committed["sha256"]
