"""What a Triton kernel is compiled for, and what it is given.

No `from __future__ import annotations` here: Triton reads the annotations.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Counter:
    """A converter of even spacing in numbers (:func:`aimc.ops.effects.converters.adc`)."""

    v_min: float
    v_max: float
    steps: float
    """Codes per unit; 0: clip only."""
    zero: float
    """Value of code 0."""
    inl_curvature: float
    """Curvature of the integral nonlinearity (:func:`aimc.ops.effects.converters.inl_curvature`)."""
    clips: bool
    """Whether levels are held inside the range after rounding."""


@dataclass(frozen=True)
class Stack:
    """Matrices of one array by power of the decay, from the first that is there: a bit per power, because a kernel
    takes numbers better than tuples."""

    first: int
    """Power of the first matrix."""
    length: int
    """Matrices up to the last that is there; those of powers without a bit are neither read nor written."""
    bits: int
    """2^j for each power j that is there: it costs a product."""


@dataclass(frozen=True)
class Spec:
    """What a kernel is compiled for: sizes, the cell's powers, the counters, and which effects are on."""

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
    highest: int
    """Highest power of the decay with an operand; 0 without leakage."""
    keys: Stack
    """Operands that differ from cell to cell."""
    values: Stack
    key_constant: float
    """Operand of power 0 where all cells share it, in signal units; 0: it is absent, or differs from cell to cell."""
    value_constant: float
    key_gradients: Stack
    """Gradients of the operands through which the stored voltage has one."""
    value_gradients: Stack
    readout: Counter
    normaliser: Counter | None
    """Counter of the normaliser column; None: there is none."""
    read_noise_qk: bool
    read_noise_av: bool
    operand_dtype: Any
    """Dtype of the factors of a matrix product; products accumulate in float32."""
    dot_dtype: Any
    """Dtype in which `tl.dot` is given them: the same, except in the interpreter, which cannot multiply bfloat16."""
    precision: str
    """How `tl.dot` multiplies float32."""
    reloads: bool
    """Whether a block of keys that stays the same over a loop is read at every step: its operands would not fit in
    shared memory."""

    @property
    def window(self) -> int:
        """W."""
        return self.rows * self.tiles


@dataclass(frozen=True)
class WriteSpec:
    """What the kernels in front of the arrays are compiled for."""

    block: int
    """Tokens per program."""
    head_size: int
    padded_size: int
    dac: Counter
    """Input or storage DAC."""
    rest_v: float = 0.0
    """What the cells leak to."""
    array: int = 0
    """Number of the array, for its noise."""
    rows: int = 1
    window: int = 1
    powers: int = 0
    """Coefficients of the cell."""
    stack: Stack | None = None
    """Operands, or graded operands, that are made of the voltages."""
    leaky: bool = False
    differ: bool = False
    """Whether cells differ from each other."""
    linear_gradient: bool = False
    """`cell.gradient == "linear"`."""
    write_noise: bool = False


class Source(NamedTuple):
    """What the model gives to one kind of converter, `[B, H, T, D]` with any distances but that of the features."""

    x: Any
    of_batch: int
    of_head: int
    of_token: int
    n_tokens: int
    scale: Any
    """Of the scaler, float32 `[H]`, or None."""
    offset: Any


class Written(NamedTuple):
    """The cells of one array as they are written."""

    coefficients: Any
    """κ_j, float32 `[P, H_kv, W, D]`, or `[P]` where all cells are alike."""
    of_power: int
    """Distance between the powers."""
    decay_per_token: float
    write_noise_v: float
    surrogate_slope: float
    draws: Any
    layer: int


class Levels(NamedTuple):
    """Real numbers that vary without another compilation."""

    decay_per_token: float
    saturation_av: float
    read_noise_qk: float
    read_noise_av: float
    full_scale_of_sum: float
    """Pulses at which the normaliser column's counter is full."""
    least_sum: float
    """Pulses by which is divided at least."""


class Columns(NamedTuple):
    """Readout errors of the columns of one array by K/V head and place, or None."""

    gain: Any
    offset: Any


class OfHeads(NamedTuple):
    """Numbers of the query heads, float32 `[H]`."""

    full_scale_av: Any
    """Signal units that fill a sub-tile's counter."""
    threshold: Any
    """θ of the charge-to-pulse circuits in full scales, or None."""


class Machine(NamedTuple):
    """All that a kernel reads besides pulses and gradients."""

    key_operands: Any
    """Of the first array, about the beginning of their block, `[P, B, H_kv, T, D]`: see
    :mod:`aimc.ops.triton.operands`."""
    value_operands: Any
    columns_qk: Columns
    """`[H_kv, W]`."""
    columns_av: Columns
    """`[H_kv, J, D]`."""
    columns_of_sum: Columns
    """`[H_kv, J]`."""
    of_heads: OfHeads
    padding: Any
    """`[B, T]`, or None."""
    draws: Any
    """int64 `[2]` on the device: seed, and number of the first sequence."""
    layer: int
    n_batch: int
    n_tokens: int
    n_heads: int
    n_kv_heads: int
    n_kept: int
    """Sub-tiles for which `Kept` has room: min(J, ⌈T / R⌉)."""
    levels: Levels


class Kept(NamedTuple):
    """Which counters were inside their range, so that a gradient passes; uint8."""

    counts: Any
    """`[B, H, T, n_kept, D]`."""
    sums: Any
    """Of the normaliser columns, `[B, H, T, n_kept]`, or None."""
