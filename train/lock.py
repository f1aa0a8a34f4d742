"""One job a folder: a second one that would write into the same is refused, and told by whom it is held."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from .errors import RunError

try:
    import fcntl
except ImportError:  # no such locks on this system: jobs are not kept apart
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""Names the job that writes into the folder it lies in."""


@contextmanager
def one_job(folder: Path, say: Callable[[Any], None], *, main_process: bool = True) -> Iterator[None]:
    """Hold the folder while the block runs.

    The system holds the lock and lets go of it with the process, however that ends; what the file says is for people.

    Args:
        folder: is made if it is not there.
        say: gets a line where a job that died left its lock.
        main_process: False: one of several processes of the same job, whose first holds the folder.

    Raises:
        RunError: another job holds it.
    """
    if fcntl is None or not main_process:
        yield
        return
    file = _hold(folder / LOCK, say)
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        file.close()


@contextmanager
def in_turn(folder: Path, say: Callable[[Any], None]) -> Iterator[None]:
    """Hold a folder that several jobs share, whether it is there or not, while the block runs; a second job waits for
    the first, and says for whom."""
    if fcntl is None:
        yield
        return
    path = folder.with_name(f".{folder.name}{LOCK}")
    file = _locked(path, lambda holder: say(f"{folder}: waiting for the job that makes it ({_told(holder)})"))
    try:
        _sign(file)
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _hold(path: Path, say: Callable[[Any], None]) -> TextIO:
    def refuse(holder: dict[str, Any]) -> None:
        raise _refusal(path, holder)

    file = _locked(path, refuse)
    left = _read(file)
    if left and left.get("host") != socket.gethostname():  # locks need not reach from machine to machine
        file.close()
        raise _refusal(path, left)
    if left:
        say(f"{path.parent}: taken over from a job that died ({_told(left)})")
    _sign(file)
    return file


def _locked(path: Path, on_held: Callable[[dict[str, Any]], None]) -> TextIO:
    """The file, locked by this job; where another one holds it, after a call of `on_held`, which need not return."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_held(_read(file))
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: jobs are not kept apart
            return file
        except BaseException:
            file.close()
            raise
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return file
        file.close()  # its holder ended, and took the file along, between our opening and our locking


def _sign(file: TextIO) -> None:
    """Write into a lock who holds it."""
    file.truncate(0)
    json.dump(
        {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
            "command": shlex.join(sys.argv),
        },
        file,
    )
    file.flush()


def _read(file: TextIO) -> dict[str, Any]:
    file.seek(0)
    try:
        holder = json.loads(file.read() or "{}")
        return holder if isinstance(holder, dict) else {"command": "unknown"}
    except ValueError:  # killed while it wrote its name
        return {"command": "unknown"}


def _told(holder: dict[str, Any]) -> str:
    known = {name: holder.get(name, "unknown") for name in ("pid", "host", "started", "command")}
    return f"process {known['pid']} on {known['host']}, started {known['started']}: {known['command']}"


def _refusal(path: Path, holder: dict[str, Any]) -> RunError:
    elsewhere = holder.get("host", socket.gethostname()) != socket.gethostname()
    remedy = f", or remove {path} if that job is gone" if elsewhere else ""
    return RunError(
        f"output_dir={path.parent}: another job writes into it ({_told(holder)}), and two would overwrite each other;"
        f" wait for it, choose another output_dir=…{remedy}"
    )
