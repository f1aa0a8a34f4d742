"""What threads do together: products of matrices, loads of their fragments, looks at one another.

Layouts are those of the PTX ISA: "Matrix Fragments for mma.m16n8k16", "ldmatrix", "stmatrix", "shfl.sync",
"Asynchronous Warpgroup Level Matrix Instructions".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.ptx.arithmetic import Array, of_bfloat16
from tests.ptx.memory import Shared, require_aligned

WARP = 32


def _numbers(register: Array, kind: str) -> Array:
    """The numbers in a register `[N]` of 32 bits by warp, group of four threads, and order in it, float32."""
    if kind == "tf32":
        return (register & np.uint32(0xFFFFE000)).view(np.float32).reshape(-1, 8, 4)
    halves = np.ascontiguousarray(register).view(np.uint16)
    of = of_bfloat16(halves) if kind == "bf16" else halves.view(np.float16).astype(np.float32)
    return of.reshape(-1, 8, 8)


def product(kind: str, a: Sequence[Array], b: Sequence[Array], c: Sequence[Array]) -> list[Array]:
    """`a·b + c` of registers `[N]`: matrices 16 × K, K × 8 and 16 × 8 for each warp; K is 16, and 8 for `tf32`."""
    right = np.concatenate([_numbers(x, kind) for x in b], axis=2)  # `[8, K]`
    return _added(_rows(kind, a) @ right.swapaxes(1, 2), c)


def _rows(kind: str, a: Sequence[Array]) -> Array:
    """The first factor, `[16, K]` for each warp."""
    parts = [_numbers(x, kind) for x in a]
    if len(a) == 2:  # half of K
        return np.concatenate(parts, axis=1)
    return np.concatenate([np.concatenate(parts[0::2], axis=2), np.concatenate(parts[1::2], axis=2)], axis=1)


def _added(sums: Array, given: Sequence[Array]) -> list[Array]:
    """To registers `[N]` that hold a matrix 16 × C of each warp, `[16, C]`."""
    found = []
    for i, x in enumerate(given):
        rows, columns = 8 * (i % 4 // 2), 8 * (i // 4)
        of_register = sums[:, rows : rows + 8, columns + i % 2 : columns + 8 : 2]
        found.append((x.view(np.float32) + of_register.reshape(-1)).view(np.uint32))
    return found


def wide_product(
    kind: str, shared: Shared, a: Sequence[Array], b: Array, given: Sequence[Array], transposed: Sequence[bool]
) -> list[Array]:
    """`a·b + given` for each four warps, 64 × K, K × C and 64 × C, the latter in registers `[N]`, as is `a`, or else it
    has, like `b`, one register that describes where it is in shared memory. `transposed`: the rows of a there, and
    the columns of b, lie side by side."""
    n_columns, k = 2 * len(given), {"tf32": 8}.get(kind, 16)
    is_shared = len(a) == 1
    left = _described(kind, shared, a[0], 64, k, transposed[0]).reshape(-1, 16, k) if is_shared else _rows(kind, a)
    right = _described(kind, shared, b, n_columns, k, transposed[1])
    return _added(left @ right.swapaxes(1, 2).repeat(4, axis=0), given)


def _described(kind: str, shared: Shared, descriptor: Array, n: int, k: int, transposed: bool) -> Array:
    """`[n, k]` for each four warps, out of shared memory, whose addresses are swizzled."""
    words = descriptor[:: 4 * WARP].astype(np.int64)[:, None, None]
    start, leading, stride = (((words >> at) & 0x3FFF) << 4 for at in (0, 16, 32))
    size = 4 if kind == "tf32" else 2
    (swizzle,) = {int(word) >> 62 & 3 for word in words.flat}
    if not swizzle or any(int(word) >> 49 & 7 for word in words.flat):
        raise NotImplementedError("a matrix not swizzled, or with an offset: tests/ptx does not know it; add it")
    width = 256 >> swizzle  # bytes that lie side by side: 128, 64 or 32
    row, column = np.arange(n)[:, None], np.arange(k)
    if transposed:
        side = width // size
        at = row // side * leading + column // 8 * stride + column % 8 * width + row % side * size
    else:
        at = row // 8 * stride + row % 8 * width + column * size
    address = start + at
    address ^= (address >> 3) & (width - 16)
    bits = shared.load(address.reshape(-1).astype(np.uint32), size).reshape(address.shape)
    if kind == "tf32":
        return (bits & np.uint32(0xFFFFE000)).view(np.float32)
    return of_bfloat16(bits) if kind == "bf16" else bits.view(np.float16).astype(np.float32)


def fragments(shared: Shared, address: Array, n: int, transposed: bool) -> list[Array]:
    """`n` matrices of 8 × 8 numbers of 16 bits, from the addresses of their rows: of the first matrix by the first
    eight threads of a warp, and so on."""
    rows = address.reshape(-1, WARP)[:, : 8 * n].reshape(-1)
    require_aligned(rows, 16)
    words = np.stack([shared.load(rows + np.uint32(4 * i), 4) for i in range(4)], axis=-1)
    numbers = np.ascontiguousarray(words).view(np.uint16).reshape(-1, n, 8, 8)
    if transposed:
        numbers = numbers.swapaxes(2, 3)
    by_thread = np.ascontiguousarray(numbers).view(np.uint32).reshape(-1, n, WARP)
    return [by_thread[:, i].reshape(-1) for i in range(n)]


def put(shared: Shared, address: Array, registers: Sequence[Array], transposed: bool) -> None:
    """:func:`fragments`, the other way round."""
    n = len(registers)
    rows = address.reshape(-1, WARP)[:, : 8 * n].reshape(-1)
    require_aligned(rows, 16)
    by_thread = np.stack([x.reshape(-1, WARP) for x in registers], axis=1)
    numbers = by_thread.view(np.uint16).reshape(-1, n, 8, 8)
    if transposed:
        numbers = numbers.swapaxes(2, 3)
    words = np.ascontiguousarray(numbers).view(np.uint32).reshape(-1, 4)
    for i in range(4):
        shared.store(rows + np.uint32(4 * i), np.ascontiguousarray(words[:, i]))


def seen(x: Array, how: str, by: Array) -> Array:
    """Another thread's number: of the one whose place differs in the bits of `by`, or at that place, or so many
    before or behind, or else the own."""
    lanes = np.arange(WARP)
    by = by.reshape(-1, WARP).astype(np.int64)
    source = {"bfly": lanes ^ by, "idx": by + 0 * lanes, "up": lanes - by, "down": lanes + by}[how]
    source = np.where((source < 0) | (source >= WARP), lanes, source)
    return np.take_along_axis(x.reshape(-1, WARP), source, axis=1).reshape(-1)
