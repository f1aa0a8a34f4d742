"""Normal numbers from counters: every draw is a pure function of a seed and of coordinates, and nothing is stored.

The generator is a 32-bit integer hash that absorbs one coordinate after another, then Box-Muller, which makes two
normal numbers of two uniform ones. So the last coordinate counts in groups of 16: the numbers i and i + 8 of a group
are the cosine and the sine of one pair. The mixing constants are the two-round set `16 21f0aaad 15 735a2d97 15` of the
hash-prospector project (C. Wellons, T. Ettinger; avalanche bias 0.107).

This is the format of hardware version 5; before, every coordinate had a pair of its own. Another format must raise that
version again.

Float32 on a CPU is drawn by :mod:`aimc.ops.compiled` where it is there: the same words, and numbers that differ in the
last digit.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from aimc.ops import compiled
from aimc.ops.effects.words import HALF, LANES, MIX_A, MIX_B, SPREAD

MASK = 0xFFFFFFFF
TURN = 2.0 * math.pi * 2.0**-24
"""Of 24 bits, in radian."""
PAIRS_AT_ONCE = 2**15
"""More leave the cache of a CPU."""


def normal(
    seed: int | Tensor, stream: int | Tensor, *coordinates: int | Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal numbers, one per coordinate tuple.

    Args:
        seed: integer in [0, 2^63), or an int64 tensor without dimensions.
        stream: what the draw is for; different streams are independent.
        coordinates: non-negative integers below 2^32, or int64 tensors of them that broadcast together. The last is a
            tensor `[S]` and the only one that varies along the last dimension; ascending numbers are the fastest. Order
            matters to the result.
        dtype: floating dtype; float64 gives the same draws with finer rounding.

    Returns:
        The broadcast shape of the coordinates, on the device of the last. |value| < 5.8, because uniforms have 24 bits.
    """
    device = next(c.device for c in coordinates if isinstance(c, Tensor))
    words = [
        c if isinstance(c, Tensor) else torch.full((), c, dtype=torch.int64, device=device)
        for c in (seed, stream, *coordinates)
    ]
    return _normal(words, dtype)


# One opaque operator: torch.compile must not unfold the hash, whose every step reads the step before twice.
@torch.library.custom_op("aimc::normal", mutates_args=())
def _normal(words: list[Tensor], dtype: torch.dtype) -> Tensor:
    seed, stream, *before, columns = words
    out = torch.zeros(_shape(words), dtype=dtype, device=columns.device)
    Lanes.of(seed, stream, *before).add_normal_(out, 1.0, columns)
    return out


@_normal.register_fake
def _(words: list[Tensor], dtype: torch.dtype) -> Tensor:
    return words[-1].new_empty(_shape(words), dtype=dtype)


def _shape(words: list[Tensor]) -> torch.Size:
    return torch.broadcast_shapes(*(word.shape for word in words))


class Lanes:
    """Hashes of seed, stream and coordinates: what many draws have in common.

    Args:
        state: 32 well-mixed bits of each lane, in int64, `[2, …, 1]`.
    """

    def __init__(self, state: Tensor) -> None:
        self.state = state

    @classmethod
    def of(cls, seed: Tensor, stream: int | Tensor, *coordinates: int | Tensor) -> Lanes:
        """The lanes behind coordinates that broadcast together, the last dimension left for what follows."""
        number = int(seed) if seed.device.type == "cpu" else seed  # elsewhere it would have to be waited for
        words: list[int | Tensor] = [number & MASK, number >> 32, stream, *coordinates]
        known = list(itertools.takewhile(lambda word: isinstance(word, int), words))
        # Filled on the device: nothing is brought there, which no CUDA graph records.
        states = [
            torch.full((1,), functools.reduce(_absorbed, known, lane), dtype=torch.int64, device=seed.device)
            for lane in LANES
        ]
        return cls(torch.stack(states)).absorbing(*words[len(known) :])

    def absorbing(self, *words: int | Tensor) -> Lanes:
        """The lanes behind more coordinates, `[…, 1]`; each is hashed at its size and that of those before it."""
        state = self.state
        for word in words:
            if isinstance(word, Tensor):  # the lanes come first
                state = state.view(2, *[1] * (word.ndim - state.ndim + 1), *state.shape[1:])
            state = _absorbed(state, word)
        return Lanes(state)

    def add_normal_(self, x: Tensor, sigma: float, columns: Tensor) -> None:
        """Add `sigma` times :func:`normal` of the last coordinates `[S]` to `x` `[…, S]`, float32 or float64."""
        radial, angular = (state.expand(*x.shape[:-1], 1) for state in self.state)
        if x.device.type != "cpu":  # it would have to be waited for
            _add_scattered(x, sigma, radial, angular, columns)
            return
        kernels = compiled.kernels_for(x)
        for part in _ascending(columns):
            if kernels is None:
                _add_ascending(x[..., part], sigma, radial, angular, int(columns[part.start]))
            else:
                kernels.add_normal(x[..., part], sigma, radial, angular, int(columns[part.start]))


def _ascending(columns: Tensor) -> Iterator[slice]:
    """Where the numbers `[S]` go up one by one."""
    breaks = [0, *((columns.diff() != 1).nonzero()[:, 0] + 1).tolist(), len(columns)]
    return (slice(start, stop) for start, stop in itertools.pairwise(breaks) if stop > start)


def _add_ascending(x: Tensor, sigma: float, radial: Tensor, angular: Tensor, first: int) -> None:
    """The columns `first`, `first + 1`, …: in whole groups, of which the outer ones are cut."""
    start, stop = first // (2 * HALF), -(-(first + x.shape[-1]) // (2 * HALF))
    pairs = torch.arange(start * HALF, stop * HALF, device=x.device)
    n_rows = radial.numel()
    by_row = radial.reshape(n_rows, 1), angular.reshape(n_rows, 1)
    out = x.new_empty(n_rows, x.shape[-1])
    skipped, at_once = first - 2 * HALF * start, max(PAIRS_AT_ONCE // len(pairs), 1)
    for part in (slice(row, row + at_once) for row in range(0, n_rows, at_once)):
        radius, angle = _polar(by_row[0][part], by_row[1][part], pairs, x.dtype)
        angle *= TURN
        halves = [(wave * radius).unflatten(-1, (-1, HALF)) for wave in (angle.cos(), angle.sin())]
        out[part] = torch.stack(halves, dim=-2).flatten(-3)[:, skipped : skipped + out.shape[1]]
    x.add_(out.view(x.shape), alpha=sigma)


def _add_scattered(x: Tensor, sigma: float, radial: Tensor, angular: Tensor, columns: Tensor) -> None:
    """Any columns, each with its pair for itself: a sine is a cosine a quarter of a turn later."""
    pairs = (columns // (2 * HALF)) * HALF + columns % HALF
    radius, angle = _polar(radial, angular, pairs, x.dtype)
    angle -= (columns // HALF % 2) * float(2**22)
    x.add_(radius * torch.cos(angle * TURN), alpha=sigma)


def _polar(radial: Tensor, angular: Tensor, pairs: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Radius, and angle in steps of 2π·2^-24, of the pairs `[N]` behind the states `[…, 1]` of the two lanes."""
    spread = (pairs * SPREAD).to(torch.int32)  # the low 32 bits; half the bytes of int64, and quicker to multiply
    lengths, angles = (_mix32_(state.to(torch.int32) ^ spread) >> 8 & 0xFFFFFF for state in (radial, angular))
    # 24 bits are exact in float32; the shift by one keeps the logarithm away from zero.
    uniform = lengths.to(dtype).add_(1.0).mul_(2.0**-24)
    return uniform.log_().mul_(-2.0).sqrt_(), angles.to(dtype)


def _mix32_(x: Tensor) -> Tensor:
    """int64's :func:`_mixed` in place, for words of int32, whose products wrap and whose shifts drag the sign along."""
    x ^= x >> 16 & 0xFFFF
    x *= MIX_A
    x ^= x >> 15 & 0x1FFFF
    x *= MIX_B
    x ^= x >> 15 & 0x1FFFF
    return x


def _absorbed(state: Any, word: Any) -> Any:
    """A state behind one more coordinate, plain numbers or int64 tensors."""
    return _mixed(state ^ (word * SPREAD) & MASK)


def _mixed(x: Any) -> Any:
    """A bijection of 32-bit words in which every input bit flips every output bit with probability near one half; in
    int64, where a product with one of the constants, both below 2^31, does not overflow."""
    x = ((x ^ (x >> 16)) * MIX_A) & MASK
    x = ((x ^ (x >> 15)) * MIX_B) & MASK
    return x ^ (x >> 15)
