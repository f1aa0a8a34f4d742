"""A whole span in one compiled call, where there is one for what the hardware has: the published machine in float32 on
a CPU. Everything else goes run by run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aimc.hardware import Hardware
from aimc.ops import compiled
from aimc.ops.blocked.runs import Span
from aimc.ops.blocked.stored import Stored
from aimc.ops.call import Call
from aimc.ops.effects.converters import even_levels
from aimc.ops.effects.noise import ArrayId

HAS = ("cell", "leakage", "array", "input_dac", "storage_dac", "readout", "noise", "noise_gradient", "backend")
"""What of the hardware may be as it likes; all else has to be off, and so has what is not here yet."""
UNUSED = ("score_adc", "probability_dac", "pruning")
"""What the hard sigmoid does not have."""
SCALED_BY = ("query", "key", "value", "full_scale_qk", "full_scale_av")
"""What of :class:`aimc.ops.scaling.Scaling` there may be."""


OFF = Hardware()
_PLAIN = [f.name for f in fields(Hardware) if f.name not in HAS + UNUSED]


def fitting_kernels(call: Call) -> Any:
    """The compiled functions if they can compute this call; None: they cannot, or are not there."""
    heads, hardware = call.heads, call.heads.hardware
    fits = (
        all(getattr(hardware, name) == getattr(OFF, name) for name in _PLAIN)
        and all(x is None for name, x in call.scaling._asdict().items() if name not in SCALED_BY)
        and even_levels(hardware.readout) is not None
        and not heads.leaks_apart
        and not heads.corrects
    )
    return compiled.kernels_for(torch.empty(0, dtype=heads.dtype, device=heads.device)) if fits else None


def one_thread_each(call: Call) -> AbstractContextManager[None]:
    """While it lasts, BLAS does not split what is computed side by side already."""
    kernels = fitting_kernels(call)
    return nullcontext() if kernels is None else kernels.on_one_thread()


class Whole:
    """The arrays of a call as all queries of a span read them.

    Args:
        kernels: see :func:`fitting_kernels`.
        call: its tokens.
        span: the queries.
        stored: keys and values, as the arrays hold them.
        pulses: over S_sat, `[B, H, T', D]`.
    """

    def __init__(self, kernels: Any, call: Call, span: Span, stored: tuple[Stored, Stored], pulses: Tensor) -> None:
        self.kernels, self.heads, self.pulses = kernels, call.heads, pulses.contiguous()
        self.keys, self.values = stored
        full_scale, sizes = call.scaling.full_scale_av, self.heads.hardware.array
        ones = pulses.new_ones(self.heads.n_heads)
        full_scale = ones if full_scale is None else full_scale.detach().to(ones)
        self.full_scale = full_scale[:, None, None]  # A_sat of a head over the hardware's
        padding = None if call.key_padding is None else call.key_padding[:, span.first : span.behind]
        queries = torch.arange(span.start, span.stop)
        levels = even_levels(self.heads.hardware.readout)
        assert levels is not None  # `fitting_kernels`
        *numbers, clips = levels
        noise, lanes = self.heads.hardware.noise, [self._lanes(array, queries) for array in ArrayId]
        self.given = (
            _numbers(self.pulses),
            kernels.Line(span.start, span.first, sizes.rows, sizes.window),
            self._arrays(queries, padding),
            kernels.Counter(*(np.float32(x) for x in numbers), clips),
            kernels.ReadNoise(np.float32(noise.read_qk), lanes[0], np.float32(noise.read_av), lanes[1]),
        )

    def _arrays(self, queries: Tensor, padding: Tensor | None) -> Any:
        heads, keys, values = self.heads, self.keys, self.values
        one = self.pulses.new_ones(len(queries), 1)
        of_keys, of_values = (one if x is None else x for x in (keys.row_factors(queries), values.row_factors(queries)))
        offsets = values.column_offset
        assert keys.matrix is not None and values.matrix is not None  # all cells leak alike
        return self.kernels.Arrays(
            keys=_numbers(keys.matrix),
            key_weights=_numbers(of_keys),
            n_constant=int(keys.has_constant_column),
            values=_numbers(values.matrix),
            value_weights=_numbers(of_values / self.full_scale),
            constants=_numbers(values.constant / self.full_scale.flatten()),
            offsets=_numbers(one.new_empty(heads.n_kv_heads, 0, heads.head_size) if offsets is None else offsets),
            padding=np.zeros((heads.n_batch, 0), bool) if padding is None else _numbers(padding),
        )

    def _lanes(self, array: ArrayId, queries: Tensor) -> np.ndarray:
        heads, lanes = self.heads, self.heads.read_lanes(array, queries)
        if lanes is None:
            return np.zeros((2, 0, 0), np.uint32)
        state = lanes.state.expand(2, heads.n_batch, heads.n_heads, len(queries), 1)
        return state.reshape(2, -1, len(queries)).numpy().astype(np.uint32)

    def read(self) -> Tensor:
        """Digital sums in units of `array.saturation_av`, `[B, H, T', D]`."""
        out = torch.empty_like(self.pulses)
        self.kernels.read(*self.given, out.numpy())
        return out.mul_(self.full_scale)

    def back(self, upstream: Tensor) -> Tensor:
        """From the gradient of :meth:`read` to that of the pulses; those of keys and values are gathered there."""
        out = torch.empty_like(self.pulses)
        pulses, *others = self.given
        terms = [(x.gathered_terms().numpy(), x.differentiated_columns.start or 0) for x in (self.keys, self.values)]
        gathered = self.kernels.Gathered(*terms[0], *terms[1])
        self.kernels.read_back(pulses, _numbers(upstream * self.full_scale), *others, gathered, out.numpy())
        return out


def _numbers(x: Tensor) -> np.ndarray:
    return x.contiguous().numpy()
