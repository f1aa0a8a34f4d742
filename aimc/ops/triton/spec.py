"""What a Triton kernel is compiled for, and what it is given.

No `from __future__ import annotations` here: Triton reads the annotations.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

BITS = 32
"""Of a word of :class:`Kept`."""


def n_words(head_size: int) -> int:
    """Words that hold a bit of each feature."""
    return -(-head_size // BITS)


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
class Softmax:
    """What stands between the arrays where it is a digital softmax (:func:`aimc.ops.effects.activation.
    digital_softmax`)."""

    score_adc: Counter
    probability_dac: Counter
    corrects: bool
    """Whether digital logic makes up for age, or for what keys and values were divided by."""
    n_shares: int
    """Coefficients of what a cell retains (:class:`aimc.ops.effects.ageing.Retained`); 0: age is not made up for."""
    least_share: float
    """What is lost beyond it is not brought back."""
    shortest: float
    """Largest share below which pulses are not lengthened further."""
    rest: float
    """Charge of a resting cell per unit pulse, in signal units."""
    keeps_scores: bool
    """Whether scores count from no charge at all, or else from that of resting cells."""
    keeps_outputs: bool
    """Likewise for outputs."""


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
    """Highest power of the decay, or order in time, with an operand; 0 without leakage."""
    spreads: bool
    """Whether cells leak apart, so that operands are by order in time and not by power of the decay, see
    :mod:`aimc.ops.triton.spread`."""
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
    softmax: Softmax | None
    """None: the charge-to-pulse circuit."""
    protects: bool
    """Whether some tokens are in a digital memory."""
    read_noise_qk: bool
    read_noise_av: bool
    operand_dtype: Any
    """Dtype of the factors of a matrix product; products accumulate in float32."""
    dot_dtype: Any
    """Dtype in which `tl.dot` is given them: the same, except in the interpreter, which cannot multiply bfloat16."""
    precision: str
    """How `tl.dot` multiplies float32."""
    fast: bool
    """Whether what two-byte operands round away is left out: noise is drawn by the GPU's own logarithm and cosine, and
    codes are multiplied by a reciprocal."""
    reloads: bool
    """Whether a block of keys that stays the same over a loop is read at every step: its operands would not fit in
    shared memory."""

    @property
    def window(self) -> int:
        """W."""
        return self.rows * self.tiles

    @property
    def words(self) -> int:
        """:func:`n_words`."""
        return n_words(self.head_size)

    @property
    def corrects(self) -> bool:
        """Whether digital logic makes up for age, or for what keys and values were divided by."""
        return self.softmax is not None and self.softmax.corrects

    @property
    def keeps_outputs(self) -> bool:
        """Whether pulses that a resting cell should have met, or should not, are made up for."""
        return self.softmax is not None and self.softmax.corrects and self.softmax.keeps_outputs


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
    orders: int = 0
    """In time, of cells that leak apart, see :mod:`aimc.ops.triton.spread`; 0: all leak alike."""
    linear_gradient: bool = False
    """`cell.gradient == "linear"`."""
    write_noise: bool = False
    fast: bool = False
    """As in :class:`Spec`."""


class Source(NamedTuple):
    """What the model gives to one kind of converter, `[B, H, T, D]` with any distances but that of the features."""

    x: Any
    of_batch: int
    of_head: int
    of_token: int
    n_batch: int
    n_heads: int
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
    rates: Any
    """λ of each cell per token time, float32 `[H_kv, W, D]`; None: all leak alike."""
    half_length: float
    """h of :mod:`aimc.ops.triton.spread`, in token times."""
    write_noise_v: float
    surrogate_slope: float
    draws: Any
    layer: int


class Levels(NamedTuple):
    """Real numbers that vary without another compilation."""

    decay_per_token: float
    half_length: float
    """h of :mod:`aimc.ops.triton.spread`, in token times."""
    saturation_av: float
    read_noise_qk: float
    read_noise_av: float
    least_sum: float
    """By what is divided at least: of a softmax in shares, of a normaliser column in full scales of its counter,"""
    least_pulses: float
    """and in pulses."""


class Columns(NamedTuple):
    """Readout errors of the columns of one array by K/V head and place, or None."""

    gain: Any
    offset: Any


class OfHeads(NamedTuple):
    """Numbers of the query heads, float32 `[H]`."""

    full_scale_av: Any
    """Signal units that fill a sub-tile's counter."""
    full_scale_of_sum: Any
    """Pulses that fill the normaliser column's, or None."""
    threshold: Any
    """θ of the charge-to-pulse circuits in full scales, or None."""


class OfSoftmax(NamedTuple):
    """What the softmax is given, and what it has found of each query; None: there is none."""

    gain: Any
    """From `S / S_sat` to logits, float32 `[H]`."""
    query_norm: Any
    """By which logits are multiplied, `[B, H, T]`, or None."""
    key_norm: Any
    """By which the deviation of a score is, `[B, H_kv, T]`, or None."""
    value_norm: Any
    """By which a pulse is, likewise."""
    shares: Any
    """Coefficients of what a cell retains, from the first power on, or None."""
    resting: Any
    """`S / S_sat` of a column of resting cells, `[B, H, T]`; None: nothing is made up for."""
    largest: Any
    """Largest logit, `[B, H, T]`; zero where a query sees nothing."""
    total: Any
    """Sum of all shares."""
    longest: Any
    """What pulses are relative to; None: to one."""


class Memory(NamedTuple):
    """The digital memory: tokens that are protected take no part in the arrays' reads."""

    pulses: Any
    """What multiplies the keys, over S_sat, `[B, H, T, D]`, or None: there is no memory."""
    stored_keys: Any
    """Of all tokens, in signal units, `[B, H_kv, T, D]`."""
    stored_values: Any
    """Likewise (a kernel's tuple has `values` of its own)."""
    sink: Any
    """Which tokens are protected for ever, uint8 `[B, T]`; None: none is."""
    sink_end: Any
    """One behind the last of them, int32 `[B]`."""
    n_recent: int
    """The newest so many tokens are protected, the reading one included."""


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
    of_softmax: OfSoftmax
    memory: Memory
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
    """Sub-tiles in :class:`Kept`."""
    n_places: int
    """Blocks in :class:`Pairs`."""
    levels: Levels


class Kept(NamedTuple):
    """Which counters were inside their range, so that a gradient passes: by sub-tile, that of the query's own first;
    see :class:`aimc.ops.triton.residuals.Residuals`."""

    counts: Any
    """A bit per feature, int32 `[B, H, T, n_kept, words]`."""
    sums: Any
    """Of the normaliser columns, uint8 `[B, H, T, n_kept]`, or None."""


class Pairs(NamedTuple):
    """Of every query with the keys of the blocks that it sees, its own first, in the dtype of the products,
    `[B, H, n_places, T, R]`."""

    phi: Any
    """Pulses."""
    d_relative: Any
    """Gradient of the charge of the first array before its columns, in full scales and times A_sat."""
