"""Noise in the kernels: the counter-based generator of :mod:`aimc.ops.effects.random` in uint32, where products
wrap by themselves.

No `from __future__ import annotations` here: Triton reads the annotations.
"""

import triton
import triton.language as tl

from aimc.ops.effects.noise import Stream
from aimc.ops.effects.words import HALF, LANES, MIX_A, MIX_B, SPREAD

_MIX_A, _MIX_B, _SPREAD = tl.constexpr(MIX_A), tl.constexpr(MIX_B), tl.constexpr(SPREAD)
_LANE_RADIAL, _LANE_ANGULAR = tl.constexpr(LANES[0]), tl.constexpr(LANES[1])
_READ, _WRITE = tl.constexpr(int(Stream.READ)), tl.constexpr(int(Stream.WRITE))
_HALF = tl.constexpr(HALF)


@triton.jit
def _absorb(state, word):
    """One coordinate into the hash."""
    x = state ^ (tl.cast(word, tl.uint32) * _SPREAD)
    x = (x ^ (x >> 16)) * _MIX_A
    x = (x ^ (x >> 15)) * _MIX_B
    return x ^ (x >> 15)


@triton.jit
def _lane(first: tl.constexpr, stream: tl.constexpr, machine, array: tl.constexpr, batch, head, t):
    """The lane after the coordinates that the noise of the tokens `[T]` begins with, `[T, 1]`."""
    seed, number = tl.load(machine.draws), tl.load(machine.draws + 1) + batch
    state = _absorb(tl.full((), first, tl.uint32), seed & 0xFFFFFFFF)
    state = _absorb(_absorb(state, seed >> 32), stream)
    state = _absorb(_absorb(state, machine.layer), array)
    return _absorb(_absorb(_absorb(state, number), head), t[:, None])


@triton.jit
def _normal(radial, angular, first, number, FAST: tl.constexpr):
    """Box-Muller behind two lanes that have absorbed all but the last coordinate, `first + number`, the former a
    multiple of 16: the numbers i and i + 8 of a group of 16 are the cosine and the sine of one pair. The maximum
    guards a fast logarithm that comes out above zero.

    Each number has its pair for itself, as far as is written here: to make both at once and bring them in order takes a
    transposition inside the registers, which Triton 3.6 gets wrong beside a mask of columns. Where one thread holds
    both, the compiler sees that their hash and their radius are one, which it does only where `number` counts from a
    constant: hence `first` apart.
    """
    pair = first // 2 + ((number & (-2 * _HALF)) // 2 + (number & (_HALF - 1)))
    uniform = ((_absorb(radial, pair) >> 8) + 1).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
    radius = _radius(uniform, FAST)
    turn = (_absorb(angular, pair) >> 8).to(tl.int32) - ((number // _HALF) & 1) * 4194304  # a sine: a quarter less
    return radius * _cosine(turn, FAST)


@triton.jit
def _radius(uniform, FAST: tl.constexpr):
    """`sqrt(−2·ln(uniform))`; `FAST`: by the GPU's own logarithm, off by 2e-7, which at a uniform number near one (a
    radius below 0.02, one in 7,000) is more than 1e-5 of the radius."""
    log = 0.6931471805599453 * _of_gpu("lg2.approx.ftz.f32 $0, $1;", uniform) if FAST else tl.log(uniform)
    return tl.sqrt(tl.maximum(-2.0 * log, 0.0))


@triton.jit
def _of_gpu(INSTRUCTION: tl.constexpr, x):
    """One of the GPU's own functions of float32."""
    return tl.inline_asm_elementwise(INSTRUCTION, "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def _cosine(turn, FAST: tl.constexpr):
    """Of an angle in units of 2π·2^-24 between -2^22 and 2^24: of the distance to the nearest whole turn, as the sine
    of what is left of it to a quarter, whose series to the eleventh power is off by 6e-8 at most. `FAST`: the GPU's
    own, off by 5e-7."""
    UNIT: tl.constexpr = 3.7450703188170945e-07  # 2π·2^-24
    if FAST:
        cosine = _of_gpu("cos.approx.ftz.f32 $0, $1;", turn.to(tl.float32) * UNIT)
    else:
        turn = tl.where(turn > 8388608, turn - 16777216, turn)  # -2^23 … 2^23
        x = (4194304 - tl.abs(turn)).to(tl.float32) * UNIT
        y = x * x
        series = -2.50521083854417e-08 * y + 2.75573192239859e-06
        series = series * y - 1.98412698412698e-04
        series = series * y + 8.33333333333333e-03
        series = series * y - 1.66666666666667e-01
        cosine = x + x * y * series
    return cosine


@triton.jit
def write_noise(cells, array: tl.constexpr, batch, head, t, SPEC: tl.constexpr):
    """Unit write noise of the tokens `[T]`, `[T, D]` (aimc.ops.effects.noise.write_noise)."""
    radial = _lane(_LANE_RADIAL, _WRITE, cells, array, batch, head, t)
    angular = _lane(_LANE_ANGULAR, _WRITE, cells, array, batch, head, t)
    return _normal(radial, angular, 0, tl.arange(0, SPEC.padded_size)[None, :], SPEC.fast)


@triton.jit
def read_noise_qk(machine, batch, head, t, block, SPEC: tl.constexpr):
    """Unit read noise of the first array for the keys of a block, `[T, S]` (aimc.ops.effects.noise.at_read)."""
    radial = _lane(_LANE_RADIAL, _READ, machine, 0, batch, head, t)
    angular = _lane(_LANE_ANGULAR, _READ, machine, 0, batch, head, t)
    return _normal(radial, angular, block * SPEC.rows, tl.arange(0, SPEC.rows)[None, :], SPEC.fast)


@triton.jit
def read_noise_av(machine, tile, batch, head, t, SPEC: tl.constexpr):
    """Unit read noise of one sub-tile of the second array, `[T, D]`."""
    radial = _absorb(_lane(_LANE_RADIAL, _READ, machine, 1, batch, head, t), tile)
    angular = _absorb(_lane(_LANE_ANGULAR, _READ, machine, 1, batch, head, t), tile)
    return _normal(radial, angular, 0, tl.arange(0, SPEC.padded_size)[None, :], SPEC.fast)


@triton.jit
def read_noise_of_sum(machine, tile, batch, head, t, SPEC: tl.constexpr):
    """Unit read noise of the normaliser column of one sub-tile, `[T, 1]`: of the column behind the last feature."""
    radial = _absorb(_lane(_LANE_RADIAL, _READ, machine, 1, batch, head, t), tile)
    angular = _absorb(_lane(_LANE_ANGULAR, _READ, machine, 1, batch, head, t), tile)
    return _normal(radial, angular, 0, tl.full((SPEC.block, 1), SPEC.head_size, tl.int32), SPEC.fast)
