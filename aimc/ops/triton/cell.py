"""What one block of gain cells does, in Triton: operands, the three contractions, the counter and the counter-based
noise.

Every function is the twin of an eager one (named in its docstring) on a block held in registers. The three contractions
are all that forward and backward need, because the gradient of one array is a charge of the same cells read along the
other side:

| wanted | weights | contraction |
|---|---|---|
| S, first array; gradient of φ | q; gradient of A | `charge_at_keys` |
| A, second array; gradient of q | φ; gradient of S | `charge_at_features` |
| gradients of the stored K and V | gradient of S with q; φ with gradient of A | `stored_gradient` |

No `from __future__ import annotations` here: Triton reads the annotations.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import triton
import triton.language as tl

from aimc.ops.effects.noise import Stream
from aimc.ops.effects.words import HALF, LANES, MIX_A, MIX_B, SPREAD

_MIX_A, _MIX_B, _SPREAD = tl.constexpr(MIX_A), tl.constexpr(MIX_B), tl.constexpr(SPREAD)
_LANE_RADIAL, _LANE_ANGULAR = tl.constexpr(LANES[0]), tl.constexpr(LANES[1])
_READ = tl.constexpr(int(Stream.READ))
_HALF = tl.constexpr(HALF)


@dataclass(frozen=True)
class Spec:
    """What a kernel is compiled for: sizes, the cell's polynomial, the counter, and which effects are on."""

    rows: int
    """R, keys per block = tokens per sub-tile."""
    tiles: int
    """J = W / R."""
    block: int
    """Query rows per program; divides R."""
    head_size: int
    """D."""
    padded_size: int
    """The power of two that holds D."""
    taylor: tuple[tuple[float, ...], ...]
    """Row j, column i: `c_i·C(i,j)`, what `u^j·δ^(i−j)` is multiplied with."""
    present: tuple[bool, ...]
    """Whether operand j exists: absent powers cost no product."""
    leaky: bool
    """Whether every power decays at its own rate; otherwise the polynomial is one product."""
    linear_gradient: bool
    """`cell.gradient == "linear"`."""
    steps: float
    """Readout: codes per unit; 0: clip only."""
    zero: float
    """Readout: value of code 0."""
    v_min: float
    v_max: float
    inl_curvature: float
    """Readout: curvature of the integral nonlinearity (aimc.ops.effects.converters.inl_curvature)."""
    clip_levels: bool
    """Whether levels are held inside the range after rounding."""
    read_noise_qk: bool
    read_noise_av: bool
    operand_dtype: Any
    """Dtype that the factors of a matrix product are rounded to; products accumulate in float32."""
    dot_dtype: Any
    """Dtype in which `tl.dot` is given them: the same, except in the interpreter, which cannot multiply bfloat16."""
    precision: str
    """How `tl.dot` multiplies float32."""

    @property
    def window(self) -> int:
        return self.rows * self.tiles

    @property
    def powers(self) -> int:
        return len(self.taylor)


class Levels(NamedTuple):
    """Real numbers that vary without another compilation."""

    decay_per_token: float
    saturation_qk: float
    saturation_av: float
    read_noise_qk: float
    read_noise_av: float
    surrogate_slope: float


class Cells(NamedTuple):
    """The cells of one array: stored voltage about the leak target `[B, H_kv, T, D]`, errors by slot `[H_kv, W, D]` or
    None."""

    u: Any
    gain: Any
    offset_v: Any


class Columns(NamedTuple):
    """Readout errors of one array: `[H_kv, W]` (first) or `[H_kv, J, D]` (second), or None."""

    gain: Any
    offset: Any


class Machine(NamedTuple):
    """All that a kernel reads besides queries and gradients."""

    key_cells: Cells
    value_cells: Cells
    columns_qk: Columns
    columns_av: Columns
    padding: Any
    """`[B, T]`, or None."""
    seed: Any
    """int64, one number on the device."""
    layer: int
    n_tokens: int
    n_heads: int
    n_kv_heads: int
    levels: Levels


# --- The cell
# --------------------------------------------------------------------------------------------------------------


@triton.jit
def _coefficient(j: tl.constexpr, x, SPEC: tl.constexpr):
    """`Σ_{i>=j} c_i·C(i,j)·x^(i−j)` (aimc.ops.effects.cell._shifted_coefficient): the cell's polynomial for j = 0, its
    slope for j = 1."""
    if x is None or j == SPEC.powers - 1:
        NUMBER: tl.constexpr = SPEC.taylor[j][j]
        return NUMBER
    else:
        value = x * SPEC.taylor[j][SPEC.powers - 1] + SPEC.taylor[j][SPEC.powers - 2]
        for k in tl.static_range(SPEC.powers - 2 - j):
            value = value * x + SPEC.taylor[j][SPEC.powers - 3 - k]
        return value


@triton.jit
def _with_gain(x, gain):
    if gain is None:
        return x
    else:
        return x * (1.0 + gain)


@triton.jit
def _shifted(u, offset_v):
    if offset_v is None:
        return u
    else:
        return u + offset_v


@triton.jit
def _operand(j: tl.constexpr, cells, SPEC: tl.constexpr):
    """What the decay's power j multiplies (aimc.ops.effects.cell.cell_operands): `[S, D]`."""
    u, gain, offset_v = cells
    operand = _coefficient(j, offset_v, SPEC)
    for _ in tl.static_range(j):
        operand = operand * u
    return _with_gain(operand, gain)


@triton.jit
def _operand_slope(j: tl.constexpr, cells, SPEC: tl.constexpr):
    """Derivative of `_operand` by u, for j >= 1."""
    u, gain, offset_v = cells
    slope = _coefficient(j, offset_v, SPEC) * (1.0 * j)
    for _ in tl.static_range(j - 1):
        slope = slope * u
    return _with_gain(slope, gain)


@triton.jit
def _dot(a, b, SPEC: tl.constexpr):
    a, b = a.to(SPEC.operand_dtype), b.to(SPEC.operand_dtype)
    return tl.dot(a.to(SPEC.dot_dtype), b.to(SPEC.dot_dtype), input_precision=SPEC.precision, out_dtype=tl.float32)


@triton.jit
def _row_sum(x):
    """`[N, 1]`. Not `tl.sum`: Triton's own jit functions run interpreted only if nothing has imported Triton before."""
    return tl.reduce(x, 1, tl.standard._sum_combine)[:, None]


# --- The three contractions
# ------------------------------------------------------------------------------------------------


@triton.jit
def charge_at_keys(x, cells, decay, SPEC: tl.constexpr):
    """`Σ_d x_td·p(u_sd·r_ts)` (aimc.ops.effects.array.charge_qk): `[T, S]` from weights `[T, D]`, by Horner's rule in
    the decay."""
    u, gain, offset_v = cells
    POWERS: tl.constexpr = SPEC.powers
    if SPEC.leaky:
        charge = tl.full(decay.shape, 0.0, tl.float32)
        for k in tl.static_range(POWERS):
            if k > 0:
                charge = charge * decay
            if SPEC.present[SPEC.powers - 1 - k]:
                if k == SPEC.powers - 1 and gain is None and offset_v is None:
                    charge += SPEC.taylor[0][0] * _row_sum(x)  # one number for all cells
                else:
                    charge += _dot(x, tl.trans(_operand(SPEC.powers - 1 - k, cells, SPEC)), SPEC)
    else:
        charge = _dot(x, tl.trans(_with_gain(_coefficient(0, _shifted(u, offset_v), SPEC), gain)), SPEC)
    return charge


@triton.jit
def charge_at_features(x, cells, decay, SPEC: tl.constexpr):
    """`Σ_s x_ts·p(u_sd·r_ts)` (aimc.ops.effects.array.charge_av): `[T, D]` from weights `[T, S]`."""
    u, gain, offset_v = cells
    POWERS: tl.constexpr = SPEC.powers
    if SPEC.leaky:
        charge = tl.full((SPEC.block, SPEC.padded_size), 0.0, tl.float32)
        for j in tl.static_range(POWERS):
            if j > 0:
                x = x * decay
            if SPEC.present[j]:
                if j == 0 and gain is None and offset_v is None:
                    charge += SPEC.taylor[0][0] * _row_sum(x)
                else:
                    charge += _dot(x, _operand(j, cells, SPEC), SPEC)
    else:
        charge = _dot(x, _with_gain(_coefficient(0, _shifted(u, offset_v), SPEC), gain), SPEC)
    return charge


@triton.jit
def stored_gradient(weights, x, cells, decay, slope, SPEC: tl.constexpr):
    """Gradient of `Σ_ts w_ts·Σ_d x_td·p(u_sd·r_ts)` by the stored voltage u: `[S, D]` from `[T, S]` and `[T, D]`.

    With the surrogate gradient it is that of `slope·u·r` alone, which knows no mismatch.
    """
    u, gain, offset_v = cells
    POWERS: tl.constexpr = SPEC.powers
    if SPEC.linear_gradient:
        if SPEC.leaky:
            weights = weights * decay
        gradient = _dot(tl.trans(weights), x, SPEC) * slope
    elif SPEC.leaky:
        gradient = tl.full(u.shape, 0.0, tl.float32)
        for j in tl.static_range(1, POWERS):
            weights = weights * decay
            if SPEC.present[j]:
                gradient += _dot(tl.trans(weights), x, SPEC) * _operand_slope(j, cells, SPEC)
    else:
        gradient = _dot(tl.trans(weights), x, SPEC) * _with_gain(_coefficient(1, _shifted(u, offset_v), SPEC), gain)
    return gradient


# --- The counter
# -----------------------------------------------------------------------------------------------------------


@triton.jit
def _round_half_even(x):
    """Nearest integer, halves to even, by comparisons: the interpreter has no libdevice, and no compiler may reorder
    this."""
    lower = tl.floor(x)
    rest = x - lower
    odd = tl.floor(lower * 0.5) * 2.0 != lower
    return lower + tl.where((rest > 0.5) | ((rest == 0.5) & odd), 1.0, 0.0)


@triton.jit
def quantize_counts(x, SPEC: tl.constexpr):
    """aimc.ops.effects.converters.adc with the readout's converter."""
    x = tl.minimum(tl.maximum(x, SPEC.v_min), SPEC.v_max)
    if SPEC.inl_curvature != 0:
        x += SPEC.inl_curvature * (x - SPEC.v_min) * (SPEC.v_max - x)
    if SPEC.steps > 0:
        code = _round_half_even((x - SPEC.zero) * SPEC.steps)
        x = tl.div_rn(code, tl.full(code.shape, SPEC.steps, tl.float32)) + SPEC.zero
        if SPEC.clip_levels:
            x = tl.minimum(tl.maximum(x, SPEC.v_min), SPEC.v_max)
    return x


# --- Noise
# -----------------------------------------------------------------------------------------------------------------


@triton.jit
def _absorb(state, word):
    """One coordinate into the hash of aimc.ops.effects.random, in uint32 where products wrap by themselves."""
    x = state ^ (tl.to_tensor(word).to(tl.uint32) * _SPREAD)
    x = (x ^ (x >> 16)) * _MIX_A
    x = (x ^ (x >> 15)) * _MIX_B
    return x ^ (x >> 15)


@triton.jit
def noise_state(lane: tl.constexpr, seed_ptr, layer, array: tl.constexpr):
    """The lane after the coordinates that all read noise of an array begins with."""
    seed = tl.load(seed_ptr)
    state = _absorb(tl.full((), lane, tl.uint32), seed & 0xFFFFFFFF)
    state = _absorb(_absorb(state, seed >> 32), _READ)
    return _absorb(_absorb(state, layer), array)


@triton.jit
def _normal(radial, angular, number):
    """Box-Muller behind two lanes that have absorbed all but the last coordinate, `number`
    (aimc.ops.effects.random._add_scattered). The maximum guards a fast logarithm that comes out above zero."""
    pair = (number // (2 * _HALF)) * _HALF + number % _HALF
    uniform = ((_absorb(radial, pair) >> 8) + 1).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
    radius = tl.sqrt(tl.maximum(-2.0 * tl.log(uniform), 0.0))
    turn = (_absorb(angular, pair) >> 8).to(tl.float32) - (number // _HALF % 2).to(tl.float32) * 4194304.0  # 2^22
    return radius * tl.cos(turn * 3.7450703188170945e-07)  # 2π·2^-24


@triton.jit
def read_noise_qk(machine, batch, head, t, s):
    """Unit read noise of the first array, `[T, S]` (aimc.ops.effects.noise.at_read)."""
    radial = noise_state(_LANE_RADIAL, machine.seed, machine.layer, 0)
    angular = noise_state(_LANE_ANGULAR, machine.seed, machine.layer, 0)
    radial = _absorb(_absorb(_absorb(radial, batch), head), t[:, None])
    angular = _absorb(_absorb(_absorb(angular, batch), head), t[:, None])
    return _normal(radial, angular, s[None, :])


@triton.jit
def read_noise_av(machine, tile, batch, head, t, d):
    """Unit read noise of one sub-tile of the second array, `[T, D]` (aimc.ops.effects.noise.at_read)."""
    radial = noise_state(_LANE_RADIAL, machine.seed, machine.layer, 1)
    angular = noise_state(_LANE_ANGULAR, machine.seed, machine.layer, 1)
    radial = _absorb(_absorb(_absorb(_absorb(radial, batch), head), t[:, None]), tile)
    angular = _absorb(_absorb(_absorb(_absorb(angular, batch), head), t[:, None]), tile)
    return _normal(radial, angular, d[None, :])
