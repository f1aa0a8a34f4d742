"""What a program reads and writes: tensors by their addresses, each access looked at, and what its threads share."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class AccessError(Exception):
    """A thread goes where nothing is."""


def require_aligned(address: NDArray[np.unsignedinteger], n_bytes: int) -> None:
    """What a thread reads or writes at once begins at a multiple of its length.

    Raises:
        AccessError: it does not.
    """
    if (address % address.dtype.type(n_bytes)).any():
        raise AccessError(f"{n_bytes} bytes are read or written that begin at no multiple of as many")


class Memory:
    """Tensors of a launch, at the addresses where they are.

    Args:
        tensors: whatever the program may read or write.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._regions = []
        for x in tensors:
            if x.numel():
                n_bytes = x.element_size() * (1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)))
                start = x.data_ptr()
                data = np.frombuffer((ctypes.c_byte * n_bytes).from_address(start), dtype=np.uint8)
                self._regions.append((start, start + n_bytes, data))

    def load(self, address: NDArray[np.uint64], size: int) -> NDArray[np.unsignedinteger]:
        """Numbers of `size` bytes."""
        data, at = self._found(address, size)
        return data[at]

    def store(self, address: NDArray[np.uint64], value: NDArray[np.unsignedinteger]) -> None:
        """Numbers in place of those there."""
        data, at = self._found(address, value.itemsize)
        data[at] = value

    def _found(self, address: NDArray[np.uint64], size: int) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
        """The tensor that all of the addresses are in, and where."""
        first, last = int(address.min()), int(address.max()) + size
        for start, end, data in self._regions:
            if start <= first and last <= end:
                require_aligned(address, size)
                require_aligned(np.array([start], np.uint64), size)
                at = (address - np.uint64(start)).astype(np.int64)
                whole = len(data) // size * size
                return data[:whole].view(_UNSIGNED[size]), at // size
        near = min((abs(first - start), start, end) for start, end, _ in self._regions)
        raise AccessError(
            f"threads read or write bytes {first} to {last}, which are of no tensor; the nearest one is at {near[1:]}"
        )


class Shared:
    """Memory that the threads of a program share, unwritten at first: it holds quiet NaNs.

    Args:
        n_bytes: how much.
    """

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.data = np.full(-(-n_bytes // 16) * 16, 0xFF, dtype=np.uint8)

    def load(self, address: NDArray[np.uint32], size: int) -> NDArray[np.unsignedinteger]:
        """Numbers of `size` bytes."""
        self._look_at(address, size)
        return self.data.view(_UNSIGNED[size])[address // np.uint32(size)]

    def store(self, address: NDArray[np.uint32], value: NDArray[np.unsignedinteger]) -> None:
        """Numbers in place of those there."""
        self._look_at(address, value.itemsize)
        self.data.view(value.dtype)[address // np.uint32(value.itemsize)] = value

    def _look_at(self, address: NDArray[np.uint32], size: int) -> None:
        require_aligned(address, size)
        if len(address) and int(address.max()) + size > self.n_bytes:
            raise AccessError(f"threads read or write beside the {self.n_bytes} bytes that they share")
