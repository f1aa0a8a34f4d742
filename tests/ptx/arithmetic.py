"""What each thread computes for itself."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

TYPES: dict[str, Any] = {
    **{f"b{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"u{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    **{"bf16": np.dtype("u2"), "bf16x2": np.dtype("u4"), "f16x2": np.dtype("u4"), "pred": np.dtype("?")},
}
"""Of what PTX calls them; a bfloat16 is known by its bits."""


def of_bfloat16(bits: Array) -> Array:
    """As float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16(x: Array) -> Array:
    """The nearest one's bits; of two as near the even one."""
    bits = x.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def numbers_of(x: Array, kind: str) -> Array:
    """What the bits of a type stand for, as numpy can compute with it; of packed ones `[N]`, each `[2·N]`."""
    if kind.startswith("bf16"):
        return of_bfloat16(np.ascontiguousarray(x).view(np.uint16))
    return np.ascontiguousarray(x).view(np.float16) if kind == "f16x2" else x


def bits_of(x: Array, kind: str) -> Array:
    """:func:`numbers_of`, the other way round."""
    x = to_bfloat16(x) if kind.startswith("bf16") else x
    return x.view(np.uint32) if kind.endswith("x2") else x


def _upper_half(a: Array, b: Array) -> Array:
    """Of a product of 32 bits."""
    assert a.dtype.itemsize == 4, "64 bits"
    return np.asarray((a.astype(f"{a.dtype.kind}8") * b >> 32).astype(a.dtype))


def _divided(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    quotient = np.abs(a.astype(np.int64)) // np.abs(b.astype(np.int64))
    return np.asarray((np.sign(a) * np.sign(b) * quotient).astype(a.dtype))


def _remainder(a: Array, b: Array) -> Array:
    return np.asarray(a - _divided(a, b) * b)


def _fused(a: Array, b: Array, c: Array) -> Array:
    """By way of float64, which is all but rounded once."""
    return np.asarray((a.astype(np.float64) * b + c).astype(a.dtype))


def _shifted_right(a: Array, n: Array) -> Array:
    """By more than there are bits, too."""
    most = a.dtype.itemsize * 8
    return np.where(
        n >= most, a >> (most - 1) if a.dtype.kind == "i" else 0, a >> np.minimum(n, most - 1).astype(a.dtype)
    )


def _shifted_left(a: Array, n: Array) -> Array:
    most = a.dtype.itemsize * 8
    return np.where(n >= most, 0, a << np.minimum(n, most - 1).astype(a.dtype)).astype(a.dtype)


def _cut_out(a: Array, at: Array, n: Array) -> Array:
    """`n` bits from `at` on, with the sign of the last where a is signed."""
    most = a.dtype.itemsize * 8
    up = most - at.astype(np.int64) - n
    return np.asarray((a << up.astype(a.dtype)) >> (most - n).astype(a.dtype))


def _permuted(a: Array, b: Array, selector: Array) -> Array:
    """Each byte one of eight, of which the first four are a's."""
    both = np.stack([a, b], axis=-1).view(np.uint8)
    which = (selector[:, None] >> np.arange(0, 16, 4, dtype=np.uint32)) & np.uint32(15)
    assert (which < 8).all(), "bytes of signs"
    return np.ascontiguousarray(np.take_along_axis(both, which.astype(np.int64), axis=1)).view(np.uint32)[:, 0]


ARITHMETIC: dict[str, Callable[..., Array]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "mul.lo": operator.mul,
    "mul.hi": _upper_half,
    "mad.lo": lambda a, b, c: a * b + c,
    "fma": _fused,
    "div": _divided,
    "rem": _remainder,
    "min": lambda a, b: np.fmin(a, b) if a.dtype.kind == "f" else np.minimum(a, b),
    "max": lambda a, b: np.fmax(a, b) if a.dtype.kind == "f" else np.maximum(a, b),
    "abs": np.abs,
    "neg": operator.neg,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "not": operator.invert,
    "shl": _shifted_left,
    "shr": _shifted_right,
    "bfe": _cut_out,
    "prmt": _permuted,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "rcp": lambda x: 1 / x,
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
}
"""By the opcode without its type and how it rounds: nothing here rounds but to the nearest."""

WIDE: dict[str, Callable[..., Array]] = {
    "mul.wide": operator.mul,
    "mad.wide": lambda a, b, c: a * b + c,
}
"""Of twice the bits."""

COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


def comparison(name: str) -> Callable[[Array, Array], Array]:
    """Of `setp`: `lt`, or `ltu` where what is no number passes."""
    if name in COMPARISONS and name != "ne":
        return COMPARISONS[name]
    if name == "ne":  # of floats: false where one is no number, unlike Python's
        return lambda a, b: (a != b) & (a == a) & (b == b)
    if name == "nan":
        return lambda a, b: (a != a) | (b != b)
    if name == "num":
        return lambda a, b: (a == a) & (b == b)
    ordered = COMPARISONS[name[:-1]]
    return lambda a, b: ordered(a, b) | (a != a) | (b != b)


ROUNDINGS: dict[str, Callable[[Array], Array]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
"""To whole numbers."""


def converted(x: Array, to: str, of: str, rounding: str | None) -> Array:
    """`cvt`, of a number in `of` to one in `to`; rounded to the nearest where nothing else is said."""
    if of == "bf16":
        x = of_bfloat16(x)
    if rounding in ROUNDINGS:
        x = ROUNDINGS[rounding](x)
    if to == "bf16":
        return to_bfloat16(x.astype(np.float32))
    kind = TYPES[to]
    if x.dtype.kind == "f" and kind.kind != "f":
        limits = np.iinfo(kind)
        return np.clip(np.nan_to_num(x.astype(np.float64)), limits.min, limits.max).astype(kind)
    return x.astype(kind)
