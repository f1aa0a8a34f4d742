"""An earlier commit as a tree of its own, in a scratch clone that is gone afterwards."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.machine import REPOSITORY


class CommitError(RuntimeError):
    """A commit that is not there, or cannot be cloned."""


def resolve(commit: str) -> str:
    """The full hash of a commit of this repository.

    Args:
        commit: hash, tag, branch or what else git knows a commit by.

    Raises:
        CommitError: there is no such commit, or this is no git repository.
    """
    found = _git(
        REPOSITORY, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}", refused=True
    )
    if not found:
        raise CommitError(
            f"{commit!r}: git knows no such commit in {REPOSITORY}, so there is nothing to compare with; give a hash, a"
            " tag or a branch, for example HEAD~1"
        )
    return found


@contextmanager
def scratch_clone(commit: str) -> Iterator[Path]:
    """A folder with that commit checked out; it shares this repository's objects, and is removed behind the block.

    It is ready as it is: nothing of aimc has to be compiled.

    Raises:
        CommitError: as :func:`resolve`, or the clone fails.
    """
    found = resolve(commit)
    with tempfile.TemporaryDirectory(prefix="aimc-bench-") as scratch:
        folder = Path(scratch) / found[:12]
        _git(REPOSITORY, "clone", "--quiet", "--shared", "--no-checkout", str(REPOSITORY), str(folder))
        _git(folder, "checkout", "--quiet", "--detach", found)
        yield folder


def subject(commit: str) -> str:
    """Short hash and first line of a commit's message."""
    return _git(REPOSITORY, "show", "--no-patch", "--format=%h %s", commit)


def _git(folder: Path, *words: str, refused: bool = False) -> str:
    """What git says; with `refused` nothing where it refuses."""
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
    except OSError as error:
        raise CommitError(f"git: {error.strerror}; no commit is found without it: install it or use --base") from error
    if done.returncode and not refused:
        said = done.stderr.strip().splitlines()
        raise CommitError(
            f"git {words[0]} failed, so there is no tree to compare with ({said[-1] if said else ''}): use --base"
        )
    return "" if done.returncode else done.stdout.strip()
