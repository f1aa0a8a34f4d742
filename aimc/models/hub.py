"""Where a model named in a command lies: in a folder, in the hub's cache, or on the hub, which is asked once and
shortly before its client library would retry for half a minute."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from queue import Empty, SimpleQueue
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, get_session
from transformers import logging as hf_logging

NETWORK_TIMEOUT_S = 5.0
"""How long the hub may take to answer at all, name service included."""
CLIENT_LOGGER = "huggingface_hub"


def place_of(source: str | Path, options: Mapping[str, Any]) -> str | Path:
    """Where a folder's files are, which may be a `subfolder`; of a hub name that name."""
    return Path(source, options.get("subfolder") or "") if Path(source).is_dir() else source


def require_reachable(
    name: str | Path, *, cache_dir: str | Path | None = None, revision: str | None = None, subfolder: str = ""
) -> bool:
    """Check that a model can be had, before anything is asked of it.

    Args:
        name: folder or hub name.
        cache_dir, revision, subfolder: as in transformers' `from_pretrained`.

    Returns:
        Whether the hub is to be asked: False for a folder, and for a repository that was downloaded before and a hub
            that does not answer. Load with `local_files_only=True` then.

    Raises:
        FileNotFoundError: neither a folder, nor in the cache, nor is there a hub to ask; told on one line.
    """
    if Path(name).is_dir():
        return False
    if hub_answers(str(name)):
        return True
    config_file = str(PurePosixPath(subfolder) / "config.json")
    if not _is_downloaded(str(name), config_file, cache_dir, revision):
        raise FileNotFoundError(
            f"{name}: no model there (no such folder, not downloaded before, and the hub does not answer); give a"
            " folder, or check the network"
        )
    return False


def hub_answers(name: str) -> bool:
    """Whether the hub can be asked for a repository: one request, given up after :data:`NETWORK_TIMEOUT_S`.

    Raises:
        FileNotFoundError: the name is a path, which the hub cannot have.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise FileNotFoundError(f"{name}: no model there (no such folder); give a folder, or a hub name owner/name")
    return server_answers(constants.ENDPOINT)


def server_answers(address: str) -> bool:
    """Whether a server can be asked at all: one request, given up after :data:`NETWORK_TIMEOUT_S`."""
    answers: SimpleQueue[bool] = SimpleQueue()
    # In a thread of its own: a client's timeout does not cover the name service, which alone can take half a minute.
    threading.Thread(target=lambda: answers.put(_answers(address)), daemon=True).start()
    try:
        return answers.get(timeout=NETWORK_TIMEOUT_S)
    except Empty:
        return False


def _answers(address: str) -> bool:
    try:
        get_session().head(address, timeout=NETWORK_TIMEOUT_S)
    except Exception:  # no route, no name service, offline mode: each client library has its own kind
        return False
    return True


def _is_downloaded(name: str, config_file: str, cache_dir: str | Path | None, revision: str | None) -> bool:
    try:
        found = try_to_load_from_cache(name, config_file, cache_dir=cache_dir, revision=revision)
    except HFValidationError:  # no name that a repository can have
        return False
    return isinstance(found, str)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Neither transformers nor the hub's client says anything below an error, so that ours is the only line."""
    verbosity, client = hf_logging.get_verbosity(), logging.getLogger(CLIENT_LOGGER)
    level = client.level
    hf_logging.set_verbosity_error()
    client.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        client.setLevel(level)
