"""A process that ends with the one that started it, however that ended."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable


def end_with_parent(before: Callable[[], None] = lambda: None) -> None:
    """From now on, in a process of `multiprocessing`: as soon as its parent is gone, call `before`, and end."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        before()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
