"""What was frozen at fabrication is drawn once: tables of the chips in use are kept, the least recently used go first.

A table is a pure function of its key, so that a kept one is never stale.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

MOST_BYTES = 2**29
"""Of all tables together. A chip of GPT-2 small at 1024 slots with mismatch of gain and offset has 150 MB."""


class Tables:
    """Tensors by key; nobody may change them.

    Args:
        most_bytes: that they have together; a table that is larger by itself is not kept.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes, self.n_bytes = most_bytes, 0
        self._tables: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, draw: Callable[[], Tensor]) -> Tensor:
        """The table of a key, drawn if it is not there."""
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
                return self._tables[key]
        with torch.inference_mode(False), torch.no_grad():  # a tensor of the inference mode is of no use in training
            table = draw()
        with self._lock:
            if key not in self._tables:
                self._tables[key] = table
                self.n_bytes += table.nbytes
            while self.n_bytes > self.most_bytes:
                self.n_bytes -= self._tables.popitem(last=False)[1].nbytes
        return table

    def clear(self) -> None:
        """Forget all, and free their memory."""
        with self._lock:
            self._tables.clear()
            self.n_bytes = 0


TABLES = Tables()
"""Of all chips of this process."""
