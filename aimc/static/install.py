"""aihwkit is a guest: it is imported only when static tiles are asked for, and found missing with the line that
installs it."""

from __future__ import annotations

import importlib.util

INSTALL = "pip install 'aimc[static]' && pip install --only-binary aihwkit --no-deps aihwkit"
"""What installs aihwkit beside any torch: its own requirement of torchvision, which tiles never use, breaks
transformers beside a CPU build."""


class MissingAihwkit(ImportError):
    """Static tiles were asked for, and aihwkit is not installed."""


def require_aihwkit() -> None:
    """Check that aihwkit is there.

    Raises:
        MissingAihwkit: it is not; the message is the line that installs it.
    """
    if importlib.util.find_spec("aihwkit") is None:
        raise MissingAihwkit(f"static tiles are emulated by IBM's aihwkit, which is not installed; run: {INSTALL}")
