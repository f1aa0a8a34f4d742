"""Folders of tokens that jobs share: made once, in private, renamed into place when whole, and checked when opened."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from aimc.models.manifest import MANIFEST, damages

from .files import finish, flush, put_in_place, read_object, remove, require_writable, saving, write_json
from .lock import in_turn

SETTING = "data.cache_dir"
PROGRESS = "progress.json"
_DIGEST = "sha256"
"""In it: of all else that it says, for nothing else vouches for it before its folder is whole."""
_SEEN = ".seen.json"
"""When large files were last read for their checksum."""
LARGE = 2**28
"""Bytes of tokens in a folder above which a file is read for its checksum only where its time of change is another than
when that was done before: tokens of gigabytes are opened without being read."""
SHARD = ".bin"
"""Ending of the files that hold tokens."""
FLUSH_S = 10.0
"""Seconds of work that a loss of power may cost; to wait for the disk at every commit would take long."""

Say = Callable[[Any], None]
Mend = Callable[[Path, list[str]], bool]


def kept(folder: Path, make: Callable[[Path], None], say: Say, mend: Mend | None = None) -> Path:
    """A folder as an earlier job left it, or as it is made now.

    Args:
        folder: of tokens, in a place that jobs share, named after everything that shapes what is in it.
        make: puts files into the folder that it is given. One that was killed is called again with what it left.
        say: gets a line where a folder is damaged, and where another job is waited for.
        mend: makes single files of a folder again, each as it was, and says whether it could; None: nothing can.

    Raises:
        RunError: the folder cannot be written.
    """
    if _damages(folder) == []:
        return folder
    require_writable(folder.parent, SETTING)
    with in_turn(folder, say):
        damaged = _damages(folder)
        if damaged == []:
            return folder
        if folder.exists() and mend is not None and damaged and _mended(folder, damaged, mend, say):
            return folder
        if folder.exists():
            what = " ".join(damaged[0]) if damaged else "it has no checksums, being of an earlier version"
            say(f"{folder}: {what}; it is made again")
        with saving(folder.parent, SETTING, "what was written so far is kept"):
            remove(folder)
            # Private to this machine: where locks do not reach from one to another, each makes its own.
            partial = folder.with_name(f".{folder.name}.{_plain(socket.gethostname())}.partial")
            partial.mkdir(exist_ok=True)
            make(partial)
            finish(partial)
            note_large(partial)
            if folder.exists():  # another machine was faster
                remove(partial)
            else:
                put_in_place(partial, folder)
    return folder


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)


def _damages(folder: Path) -> list[tuple[str, str]] | None:
    """The files in a folder that are not what they were, each with how; None: there is nothing to compare with."""
    if not (folder / MANIFEST).exists():
        return None
    seen = read_object(folder / _SEEN) or {}
    is_large = _size(folder) > LARGE

    def is_read(path: Path) -> bool:
        return not is_large or seen.get(path.name) != path.stat().st_mtime_ns

    found = list(damages(folder, read=is_read))
    if not found:
        note_large(folder)
    return found


def _mended(folder: Path, damaged: list[tuple[str, str]], mend: Mend, say: Say) -> bool:
    """Have single files made again, in place."""
    names = [name for name, _ in damaged]
    if not all(name.endswith(SHARD) for name in names) or read_object(folder / PROGRESS) is None:
        return False
    for name, how in damaged:
        say(f"{folder}: {name} {how}; it is made again")
    with saving(folder.parent, SETTING):
        if not mend(folder, names):
            say(f"{folder}: it cannot be made again as it was; all of the text is tokenised again")
            remove(folder)
            return False
    note_large(folder)
    return True


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"*{SHARD}"))


def note_large(folder: Path) -> None:
    """Note of a folder of large files that they are what they were."""
    if _size(folder) <= LARGE:
        return
    large = {path.name: path.stat().st_mtime_ns for path in folder.glob(f"*{SHARD}")}
    if large != read_object(folder / _SEEN):
        with suppress(OSError):  # a folder that is only read
            write_json(folder / _SEEN, large, durable=False)


def _digest(progress: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(progress, sort_keys=True).encode()).hexdigest()


class Growing:
    """Files that grow batch by batch, with a commit after each; what is written after the last commit is dropped when
    they are opened again, and everything where they are not what was committed and cannot be mended.

    Args:
        folder: they are in.
        names: of the files that are there from the beginning; others come with their first :meth:`write`.
    """

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder, self.names = folder, names
        self.documents = 0
        self.facts: dict[str, Any] = {}
        """What else was committed."""
        self._hashes = {name: hashlib.sha256() for name in names}
        self._bytes = dict.fromkeys(names, 0)
        self._files: dict[str, IO[bytes]] = {}
        self._stack = ExitStack()
        self._flushed = time.monotonic()

    @contextmanager
    def opened(self, mend: Mend | None = None) -> Iterator[Growing]:
        """Go on after the last commit; `mend` makes damaged files again, as for :func:`kept`."""
        progress = read_object(self.folder / PROGRESS)
        if progress is None or not self._is_taken_over(progress, mend):
            self.__init__(self.folder, self.names)  # type: ignore[misc]  # from the beginning
        for path in self.folder.glob(f"*{SHARD}"):
            if path.name not in self._bytes:  # begun after the last commit
                path.unlink()
        with self._stack:
            for name, size in self._bytes.items():
                if name in self.names or (self.folder / name).stat().st_size != size:
                    self._open(name)
            yield self

    def write(self, name: str, data: bytes) -> None:
        """Append to one of the files."""
        if name not in self._files:
            self._open(name)
        self._files[name].write(data)
        self._hashes[name].update(data)
        self._bytes[name] += len(data)

    def close(self, name: str) -> None:
        """Nothing more comes into a file; it goes to the disk."""
        if (file := self._files.pop(name, None)) is not None:
            file.close()
        flush(self.folder / name)

    def size(self, name: str) -> int:
        """Bytes in a file so far."""
        return self._bytes.get(name, 0)

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
        files = {name: {"bytes": n, "sha256": self._hashes[name].hexdigest()} for name, n in self._bytes.items()}
        progress = {"documents": self.documents, "files": files, **facts}
        write_json(self.folder / PROGRESS, {**progress, _DIGEST: _digest(progress)}, durable=durable)

    def _open(self, name: str) -> None:
        self._hashes.setdefault(name, hashlib.sha256())
        file = open(self.folder / name, "ab")  # noqa: SIM115  # closed with the others
        self._stack.callback(file.close)
        if file.tell() != self._bytes.setdefault(name, 0):  # written after the last commit
            file.truncate(self._bytes[name])
        self._files[name] = file

    def _is_taken_over(self, progress: Mapping[str, Any], mend: Mend | None) -> bool:
        """Take what was committed, where all of it is there, or can be made again."""
        if progress.get(_DIGEST) != _digest({name: value for name, value in progress.items() if name != _DIGEST}):
            return False
        try:
            files = dict(progress["files"])
            lost = [name for name, committed in files.items() if not self._is_as_committed(name, committed)]
            if lost and (mend is None or not mend(self.folder, lost)):
                return False
            if not all(self._is_as_committed(name, files[name]) for name in lost) or not set(self.names) <= set(files):
                return False
            self.documents = int(progress["documents"])
        except (KeyError, TypeError, ValueError, AttributeError):
            return False
        self.facts = {name: value for name, value in progress.items() if name not in ("documents", "files", _DIGEST)}
        return True

    def _is_as_committed(self, name: str, committed: Mapping[str, Any]) -> bool:
        self._hashes[name], left = hashlib.sha256(), int(committed["bytes"])
        self._bytes[name] = left
        try:
            with open(self.folder / name, "rb") as file:
                while left and (part := file.read(min(left, 2**24))):
                    self._hashes[name].update(part)
                    left -= len(part)
        except OSError:
            return False
        return not left and self._hashes[name].hexdigest() == committed["sha256"]
