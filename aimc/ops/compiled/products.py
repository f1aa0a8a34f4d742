"""Matrix products inside compiled functions, by the BLAS that scipy brings and numba links its own with."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numba import types
from numba.np.linalg import ensure_blas
from threadpoolctl import ThreadpoolController

from aimc.ops.compiled.once import ANY, F1, NOTHING, once

ensure_blas()
_F = types.CPointer(types.float32)
_sgemm: Any = types.ExternalFunction(
    "numba_xxgemm",
    types.intc(
        *(types.char, types.char, types.char, types.intp, types.intp, types.intp),
        *(_F, _F, types.intp, _F, types.intp, _F, _F, types.intp),
    ),
)
KIND, AS_IT_IS, TRANSPOSED = ord("s"), ord("n"), ord("t")
ONE = np.ones(1, np.float32)
_lock, _inside = threading.Lock(), 0
_limit: Any = None


@once(NOTHING, ANY, ANY, F1, ANY)
def multiply(left, right, scale, out):  # type: ignore[no-untyped-def]
    """`out = left·right + scale·out`, `[M, K]·[K, N]`, float32; of `out` the rows, of the others rows or columns have
    their numbers side by side."""
    item = left.itemsize
    left_turned, right_turned = left.strides[1] != item, right.strides[1] != item
    # BLAS counts by columns, in which a row-major matrix is its transpose. The steps of a single row mean nothing.
    _sgemm(
        KIND,
        TRANSPOSED if right_turned else AS_IT_IS,
        TRANSPOSED if left_turned else AS_IT_IS,
        right.shape[1],
        left.shape[0],
        left.shape[1],
        ONE.ctypes,
        right.ctypes,
        max(right.strides[1] // item, right.shape[0])
        if right_turned
        else max(right.strides[0] // item, right.shape[1]),
        left.ctypes,
        max(left.strides[1] // item, left.shape[0]) if left_turned else max(left.strides[0] // item, left.shape[1]),
        scale.ctypes,
        out.ctypes,
        max(out.strides[0] // item, out.shape[1]),
    )


@functools.cache
def _controller() -> Any:
    """Of the libraries that are loaded; looking for them takes milliseconds."""
    return ThreadpoolController()


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Products in the block are not split: whoever calls them runs side by side with others already."""
    global _inside, _limit
    with _lock:
        _inside += 1
        if _inside == 1:
            _limit = _controller().limit(limits=1, user_api="blas")
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _limit.restore_original_limits()
