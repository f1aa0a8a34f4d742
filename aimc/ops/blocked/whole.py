"""A whole span in one compiled call, in float32 on a CPU, where there is one for what the hardware has: all but
pruning, protection, cells that leak apart, converters whose levels are not even, and corrections. These go run by
run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aimc.hardware import Converter, Hardware
from aimc.ops import compiled
from aimc.ops.blocked.activation import Activation
from aimc.ops.blocked.runs import Span
from aimc.ops.blocked.stored import Stored
from aimc.ops.call import Call
from aimc.ops.effects.activation import logit_gain
from aimc.ops.effects.converters import even_levels
from aimc.ops.effects.noise import ArrayId
from aimc.ops.effects.normaliser import least_divisor

HAS_NOT = ("protection",)
"""What of the hardware has to be off."""
OFF = Hardware()
N_KEPT = 6
"""Tensors that a span may keep."""
QUERIES, QUERIES_OF_ALL = 256, 128
"""Taken at a time; and where the charges of all the sub-tiles that they see have to be in the cache."""


def fitting_kernels(call: Call) -> Any:
    """The compiled functions if they can compute this call; None: they cannot, or are not there."""
    return kernels_of(call.heads.hardware, call.heads.dtype, call.heads.device)


def kernels_of(hardware: Hardware, dtype: torch.dtype, device: torch.device) -> Any:
    """:func:`fitting_kernels` of calls that are computed in a dtype on a device."""
    converters = [hardware.readout]
    converters += [hardware.score_adc, hardware.probability_dac] if hardware.has_softmax else []
    converters += [hardware.normaliser.counter] if hardware.normaliser.is_on else []
    leaks = bool(hardware.leakage.decay_per_token)
    fits = (
        hardware.activation != "pruned_softmax"
        and all(getattr(hardware, name) == getattr(OFF, name) for name in HAS_NOT)
        and all(even_levels(converter) is not None for converter in converters)
        and not (leaks and (hardware.noise.tau_spread or hardware.leakage.compensate))
        and not hardware.features.normalises
    )
    return compiled.kernels_for(torch.empty(0, dtype=dtype, device=device)) if fits else None


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
        self.kernels, self.call, self.heads, self.pulses = kernels, call, call.heads, pulses.contiguous()
        self.keys, self.values = stored
        full_scale = call.scaling.full_scale_av
        ones = pulses.new_ones(self.heads.n_heads)
        full_scale = ones if full_scale is None else full_scale.detach().to(ones)
        self.full_scale = full_scale[:, None, None]  # A_sat of a head over the hardware's
        self.span, queries = span, torch.arange(span.start, span.stop)
        noise, lanes = self.heads.hardware.noise, [self._lanes(array, queries) for array in ArrayId]
        line = _line(kernels, call, span)
        self.given = (
            _numbers(self.pulses),
            line,
            self._arrays(queries, line.queries),
            self._counter(self.heads.hardware.readout),
            kernels.ReadNoise(np.float32(noise.read_qk), lanes[0], np.float32(noise.read_av), lanes[1]),
            self._between(),
        )

    def _arrays(self, queries: Tensor, length: int) -> Any:
        heads, keys, values, padding = self.heads, self.keys, self.values, self.call.key_padding
        of_keys, key_folds = _terms(keys, queries, length)
        of_values, value_folds = _terms(values, queries, length)
        offsets = values.column_offset
        assert keys.matrix is not None and values.matrix is not None  # all cells leak alike
        empty = self.pulses.new_empty
        padded = None if padding is None else padding[:, self.span.first : self.span.behind]
        return self.kernels.Arrays(
            keys=_numbers(keys.matrix),
            key_folds=_numbers(key_folds),
            key_weights=_numbers(of_keys),
            n_constant=int(keys.has_constant_column),
            values=_numbers(values.matrix),
            value_folds=_numbers(value_folds),
            value_weights=_numbers(of_values / self.full_scale),
            constants=_numbers(values.constant / self.full_scale.flatten()),
            offsets=_numbers(empty(heads.n_kv_heads, 0, heads.head_size) if offsets is None else offsets),
            padding=np.zeros((heads.n_batch, 0), bool) if padded is None else _numbers(padded),
        )

    def _between(self) -> Any:
        heads, hardware, scaling = self.heads, self.heads.hardware, self.call.scaling
        normaliser, threshold = hardware.normaliser, scaling.pulse_threshold
        thresholds = self.pulses.new_zeros(heads.n_heads)
        if threshold is not None:
            thresholds.copy_(threshold.detach())  # no parameter's own memory for numpy, see `compiled/conversion.py`
        gains = self.pulses.new_empty(0, 0)
        if hardware.has_softmax:
            scaling = scaling.of_tokens(slice(self.span.start, self.span.stop))
            gain = torch.as_tensor(logit_gain(heads, scaling), dtype=heads.dtype).detach()
            gains = gain.expand(heads.n_batch, heads.n_heads, self.pulses.shape[2], 1).flatten(0, 1)[..., 0]
        tiles = self.values.tiles
        errors = heads.column_tables_of_sum(tiles) if normaliser.is_on else (None, None)
        zeros = self.pulses.new_zeros(heads.n_kv_heads, len(tiles))
        of_sum = [zeros if error is None else error[..., 0] for error in errors]
        full_scales = torch.as_tensor(heads.full_scale_of_sum(scaling), dtype=heads.dtype).flatten()
        full_scales = full_scales.expand(heads.n_heads)
        leasts = least_divisor(normaliser, full_scales)
        if hardware.has_softmax:
            leasts = torch.full_like(full_scales, torch.finfo(heads.dtype).tiny)
        return self.kernels.Between(
            thresholds=_numbers(thresholds),
            softmax=hardware.has_softmax,
            gains=_numbers(gains),
            score=self._counter(hardware.score_adc if hardware.has_softmax else OFF.score_adc),
            pulse=self._counter(hardware.probability_dac if hardware.has_softmax else OFF.probability_dac),
            normalised=normaliser.is_on,
            sum_counter=self._counter(normaliser.counter if normaliser.is_on else OFF.readout),
            sum_full_scales=_numbers(full_scales),
            sum_gains=_numbers(1.0 + of_sum[0]),
            sum_offsets=_numbers(of_sum[1]),
            leasts=_numbers(leasts),
        )

    def _counter(self, converter: Converter) -> Any:
        levels = even_levels(converter)
        assert levels is not None  # `fitting_kernels`
        return self.kernels.counter_of(*levels)

    def _lanes(self, array: ArrayId, queries: Tensor) -> np.ndarray:
        heads, lanes = self.heads, self.heads.read_lanes(array, queries)
        if lanes is None:
            return np.zeros((2, 0, 0), np.uint32)
        state = lanes.state.expand(2, heads.n_batch, heads.n_heads, len(queries), 1)
        return state.reshape(2, -1, len(queries)).numpy().astype(np.uint32, order="C")

    def read(self, kept: list[Tensor] | None = None) -> Tensor:
        """Digital sums over what divides them, in units of `array.saturation_av`, `[B, H, T', D]`; `kept`:
        :func:`room` to be filled."""
        out = torch.empty_like(self.pulses)
        self.kernels.read(*self.given, out.numpy(), self._kept(kept))
        return out.mul_(self.full_scale)

    def _kept(self, kept: list[Tensor] | None) -> Any:
        return (
            None
            if kept is None
            else self.kernels.Kept(*(x.view(len(x) * x.shape[1], *x.shape[2:]).numpy() for x in kept))
        )

    def back(self, upstream: Tensor, activation: Activation, kept: list[Tensor] | None = None) -> Tensor:
        """From the gradient of :meth:`read`, and what it may have kept, to that of the pulses; those of keys and values
        are gathered there, those of threshold and score gain in `activation`."""
        heads, scaling = self.heads, self.call.scaling
        out = torch.empty_like(self.pulses)
        pulses, *others = self.given
        terms = [(x.gathered_terms().numpy(), x.differentiated_columns.start or 0) for x in (self.keys, self.values)]
        of_thresholds = out.new_zeros(heads.n_heads)
        of_gains = out.new_zeros(heads.n_batch, heads.n_heads, out.shape[2] if heads.hardware.has_softmax else 0)
        of_between = of_thresholds.numpy(), of_gains.flatten(0, 1).numpy()
        gathered = self.kernels.Gathered(*terms[0], *terms[1], *of_between)
        self.kernels.read_back(
            pulses, _numbers(upstream * self.full_scale), *others, gathered, out.numpy(), self._kept(kept)
        )
        if activation.of_threshold is not None:
            activation.of_threshold += of_thresholds
        if activation.of_score_gain is not None:
            norm = scaling.query_norm
            of_gains = of_gains if norm is None else of_gains * norm[..., self.span.start : self.span.stop]
            full_scale = torch.as_tensor(heads.full_scale_qk(scaling), dtype=out.dtype).flatten()
            activation.of_score_gain += of_gains.sum(dim=(0, 2)) * full_scale
        return out


def room(kernels: Any, call: Call, span: Span) -> list[Tensor]:
    """For what the way back over a span need not compute again, :data:`N_KEPT` tensors `[B, H, …]`."""
    heads, line = call.heads, _line(kernels, call, span)
    shapes = kernels.kept_shapes(line, span.stop - span.start, heads.head_size, heads.hardware.has_softmax)
    return [call.query.new_empty(heads.n_batch, heads.n_heads, *shape, dtype=heads.dtype) for shape in shapes]


def _line(kernels: Any, call: Call, span: Span) -> Any:
    hardware = call.heads.hardware
    is_divided = hardware.has_softmax or hardware.normaliser.is_on
    sizes, length = hardware.array, QUERIES_OF_ALL if is_divided else QUERIES
    return kernels.Line(span.start, span.first, sizes.rows, sizes.window, length)


def _terms(stored: Stored, queries: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """What each term counts for the queries, `[T', K]`, and how terms are made of those that are stored, `[N, K, n]`;
    N = 0: they are these."""
    if (folds := stored.folds(queries, length)) is not None:
        return folds
    weights, dtype = stored.row_factors(queries), stored.heads.dtype
    return torch.ones(len(queries), 1, dtype=dtype) if weights is None else weights, torch.empty(0, 0, 0, dtype=dtype)


def _numbers(x: Tensor) -> np.ndarray:
    return x.contiguous().numpy()
