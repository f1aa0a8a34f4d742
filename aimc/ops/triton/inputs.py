"""What the Triton kernels are given, and what they give back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from aimc.ops.effects.ageing import Retained
from aimc.ops.triton.operands import Operands
from aimc.ops.triton.plan import Plan

Table = Tensor | None


class Softmax(NamedTuple):
    """What a digital softmax is given, float32."""

    gain: Tensor
    """From `S / S_sat` to logits, `[H]`."""
    query_norm: Table
    """By which logits are multiplied, `[B, H, T]`; None: by one."""
    key_norm: Table
    """By which the deviation of a score from that of resting cells is, `[B, H_kv, T]`."""
    value_norm: Table
    """By which a pulse is, likewise."""
    trained: bool
    """Whether the gain's gradient is wanted."""
    retained: Retained | None
    """What age compensation makes up for; None: it is off."""


class Protected(NamedTuple):
    """The digital memory of protected tokens."""

    pulses: Tensor
    """What multiplies the keys, over S_sat, `[B, H, T, D]` in the dtype of the products."""
    keys: Tensor
    """Of all tokens, in signal units, `[B, H_kv, T, D]`, likewise."""
    values: Tensor
    sink: Table
    """Which are protected for ever, bool `[B, T]`; None: none is."""


class Inputs(NamedTuple):
    """What the kernels compute with, all on one device."""

    plan: Plan
    operands: Operands
    columns: Sequence[Sequence[Table]]
    """Gain and offset of the charge-to-pulse circuits, float32 `[H_kv, W]`, of the counters `[H_kv, J, D]`, and of the
    normaliser columns' counters `[H_kv, J, 1]`; None: none."""
    full_scale_av: Tensor
    """Signal units that fill a counter, float32 `[H]`."""
    full_scale_of_sum: Table
    """Pulses that fill the counter of a normaliser column, float32 `[H]`; None: there is none."""
    threshold: Table
    """θ of the charge-to-pulse circuits, float32 `[H]`; None: none."""
    softmax: Softmax | None
    """None: charge-to-pulse circuits."""
    memory: Protected | None
    """None: no token is protected."""
    key_padding: Table
    """Bool `[B, T]`, True where a token is padding; None: none is."""
    draws: Tensor
    """int64 `[2]`: seed of the read noise, and number of the first sequence."""
    layer: int


class Gradients(NamedTuple):
    """Of what the kernels were given, float32."""

    pulses: Tensor
    """`[B, H, T, D]`."""
    keys: Tensor
    """Of the graded operands, `[P, B, H_kv, T, D]`."""
    values: Tensor
    trained: Table
    """Of what the activation trains, summed over the texts but for its factors, `[B, H, T]`: the threshold, or the
    logits' gain over its query's norm and S_sat; None: nothing."""
    memory: tuple[Tensor, Tensor, Tensor] | None
    """Of what multiplies the memory's keys `[B, H, T, D]`, of its keys and its values `[B, H_kv, T, D]`; None: there is
    none."""
