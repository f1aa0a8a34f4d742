"""What the kernels of the arrays are given, and the way back from their gradients: launches of
:mod:`aimc.ops.triton.writes`."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from aimc.hardware import Converter, Hardware
from aimc.ops.effects.activation import SHORTEST
from aimc.ops.effects.ageing import LEAST, Retained
from aimc.ops.effects.cell import powers_with_gradient
from aimc.ops.effects.converters import inl_curvature
from aimc.ops.effects.noise import ArrayId
from aimc.ops.heads import Heads
from aimc.ops.scaling import Affine
from aimc.ops.triton.spread import half_length, orders_needed

if TYPE_CHECKING:
    from aimc.ops.triton.spec import Counter, Softmax, Source, Stack, WriteSpec, Written

TOKENS = 32
"""Per program of what is computed position by position."""


class Powers(NamedTuple):
    """What the cells of one array are to the kernels."""

    present: tuple[int, ...]
    """Powers of the decay whose operand differs from cell to cell, rising; without leakage all in one, as power 0;
    where cells leak apart, orders in time (:mod:`aimc.ops.triton.spread`)."""
    constant: float
    """The operand of power 0 that all cells share; 0: none."""
    graded: tuple[int, ...]
    """Powers for which the kernels give a gradient."""


class Given:
    """Keys or values `[B, H_kv, T, D]`, or queries, in front of their scaler and converter."""

    def __init__(self, x: Tensor, affine: Affine | None, converter: Converter) -> None:
        self.x = x if x.stride(-1) == 1 else x.contiguous()
        self.affine = None if affine is None else Affine(*(a.detach().float().contiguous() for a in affine))
        self.converter = converter

    @property
    def n_blocks(self) -> int:
        """Of tokens, a program each."""
        return -(-self.x.shape[2] // TOKENS)

    def source(self) -> Source:
        """For a kernel."""
        from aimc.ops.triton.spec import Source

        (of_batch, of_head, of_token, _), (n_batch, n_heads, n_tokens, _) = self.x.stride(), self.x.shape
        scale, offset = self.affine or (None, None)
        return Source(self.x, of_batch, of_head, of_token, n_batch, n_heads, n_tokens, scale, offset)

    def spec(self, **of_cells: object) -> WriteSpec:
        """What a kernel is compiled for; :class:`Cells` add theirs."""
        size = self.x.shape[3]
        return _write_spec(
            block=TOKENS, head_size=size, padded_size=padded(size), dac=counter(self.converter), **of_cells
        )

    def gradient(self) -> Tensor:
        """Room for the gradient of x, `[B, T, H, D]` in its dtype."""
        batch, heads, tokens, size = self.x.shape
        return torch.empty(batch, tokens, heads, size, dtype=self.x.dtype, device=self.x.device)


class Cells:
    """The cells of one array, and what is written to them."""

    def __init__(self, array: ArrayId, given: Given, heads: Heads, draws: Tensor, dtype: torch.dtype) -> None:
        self.array, self.given, self.heads, self.draws = array, given, heads, draws
        self.orders = orders_needed(heads.hardware, heads.n_tokens, dtype) or 0
        coefficients = heads.all_coefficients(array)
        self.differ = any(isinstance(c, Tensor) for c in coefficients)
        self.powers = self._powers(coefficients)
        table = heads.coefficient_table(array) if self.differ else None
        self.table = numbers(tuple(coefficients), heads.device) if table is None else table  # type: ignore[arg-type]

    def _powers(self, coefficients: list[Tensor | float]) -> Powers:
        if not self.heads.decay_per_token:
            return Powers((0,), 0.0, (0,))
        if self.orders:
            return Powers(tuple(range(self.orders)), 0.0, tuple(range(self.orders)))
        cell, (zeroth, *higher) = self.heads.cell, coefficients
        present = tuple(j for j, c in enumerate(higher, 1) if isinstance(c, Tensor) or c != 0.0)
        graded = tuple(j for j in powers_with_gradient(cell) if j in present or cell.gradient == "linear")
        return Powers((0, *present), 0.0, graded) if isinstance(zeroth, Tensor) else Powers(present, zeroth, graded)

    def spec(self, powers: tuple[int, ...]) -> WriteSpec:
        """What a kernel is compiled for whose stack has these powers."""
        hardware = self.heads.hardware
        return self.given.spec(
            rest_v=self.heads.cell.offset_v,
            array=int(self.array),
            rows=hardware.array.rows,
            window=hardware.array.window,
            powers=len(self.heads.cell.coefficients),
            stack=stack(powers),
            leaky=bool(self.heads.decay_per_token),
            differ=self.differ,
            orders=self.orders,
            linear_gradient=self.heads.cell.gradient == "linear",
            write_noise=hardware.noise.write_v > 0,
        )

    def written(self) -> Written:
        """For a kernel."""
        from aimc.ops.triton.spec import Written

        heads = self.heads
        return Written(
            self.table,
            self.table.stride(0),
            heads.decay_per_token,
            heads.all_leak_rates(self.array),
            half_length(heads.hardware, heads.n_tokens),
            heads.hardware.noise.write_v,
            heads.cell.surrogate_slope,
            self.draws,
            heads.layer,
        )


class Operands(NamedTuple):
    """What the kernels of the arrays multiply, in the dtype of their products."""

    pulses: Tensor
    """Pulse widths over the full scale of the first array, `[B, H, T, D]`."""
    keys: Tensor
    """What the powers of the queries' decay multiply, `[P, B, H_kv, T, D]`: powers from the first present one to the
    last, those between that are absent left unwritten."""
    values: Tensor


def operands_of(query: Given, full_scale: Tensor, keys: Cells, values: Cells, dtype: torch.dtype) -> Operands:
    """Of one call; `full_scale` is that of the first array of each head, `[H]`."""
    from aimc.ops.triton.writes import write_kernel

    device, arrays = query.x.device, (keys, values)
    pulses = torch.empty(query.x.shape, dtype=dtype, device=device)
    stacks = [torch.empty(span(of.powers.present), *of.given.x.shape, dtype=dtype, device=device) for of in arrays]
    if pulses.numel():
        written = [(of.given.source(), of.written(), stack) for of, stack in zip(arrays, stacks, strict=True)]
        specs = [of.spec(of.powers.present) for of in arrays]
        write_kernel[_grid(query, keys)](
            query.source(), full_scale, pulses, *written[0], *written[1], query.spec(), *specs
        )
    return Operands(pulses, *stacks)


def gradients_of_given(
    grads: tuple[Tensor, Tensor, Tensor], query: Given, full_scale: Tensor, keys: Cells, values: Cells
) -> list[tuple[Tensor, Tensor]]:
    """From the gradients of the pulses and of the graded operands of both arrays, laid out as :class:`Operands`, to
    those of query, key and value, `[B, H, T, D]`, and of their scalers, `[2, H]`."""
    from aimc.ops.triton.writes import gradient_at_converters

    all_given = query, keys.given, values.given
    rooms, grid = [given.gradient() for given in all_given], _grid(query, keys)
    n_blocks, n_heads, n_batch = grid
    room = torch.zeros if any(given.affine is None for given in all_given) else torch.empty
    sums = room(2, n_batch, n_heads, n_blocks, dtype=torch.float32, device=query.x.device)
    if query.x.numel():
        how = full_scale, keys.written(), values.written()
        each = [(of.source(), *rest) for of, *rest in zip(all_given, how, grads, rooms, strict=True)]
        specs = [of.spec(of.powers.graded) for of in (keys, values)]
        gradient_at_converters[grid](*itertools.chain(*each), sums, query.spec(), *specs)
    of_scalers = sums.sum(dim=(1, 3)).split([given.x.shape[1] for given in all_given], dim=1)
    return [(d_x.transpose(1, 2), of) for d_x, of in zip(rooms, of_scalers, strict=True)]


def _grid(query: Given, keys: Cells) -> tuple[int, int, int]:
    """A program per block of tokens, head of query, key or value, and sequence."""
    batch, heads, _, _ = query.x.shape
    return query.n_blocks, heads + 2 * keys.given.x.shape[1], batch


@functools.lru_cache(maxsize=64)
def numbers(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Few numbers on a device, float32, which nobody may change: brought there once, because bringing is waited for."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def span(powers: tuple[int, ...]) -> int:
    """Matrices of a stack that begins with the first of the rising powers and ends with the last."""
    return powers[-1] - powers[0] + 1


@functools.cache
def stack(powers: tuple[int, ...]) -> Stack:
    """For a kernel."""
    from aimc.ops.triton.spec import Stack

    return Stack(first=powers[0], length=span(powers), bits=sum(1 << j for j in powers))


def padded(head_size: int) -> int:
    """The power of two that holds D, and no less than the smallest tensor-core product."""
    return max(16, 1 << (head_size - 1).bit_length())


def counter(converter: Converter) -> Counter:
    """A converter in numbers."""
    at = converter.n_levels, converter.v_min, converter.v_max
    return _counter(*at, converter.coding, inl_curvature(converter))


# Triton looks a kernel up by what it is compiled for, which goes fastest if that is the same object.
@functools.lru_cache(maxsize=256)
def _counter(n: int | None, v_min: float, v_max: float, coding: str, curvature: float) -> Counter:
    from aimc.ops.triton.spec import Counter

    if n is None:
        steps, zero = 0.0, 0.0
    elif coding == "sign_magnitude":
        steps, zero = (n // 2 - 1) / v_max, 0.0
    else:
        steps, zero = (n - 1) / (v_max - v_min), v_min if coding == "unsigned" else 0.0
    return Counter(v_min, v_max, steps, zero, curvature, clips=coding != "rounded")


@functools.lru_cache(maxsize=256)
def _write_spec(**of: Any) -> WriteSpec:
    from aimc.ops.triton.spec import WriteSpec

    return WriteSpec(**of)


def softmax_of(hardware: Hardware, kept: Retained | None, rest: float) -> Softmax:
    """The digital softmax in numbers: with what is made up for of a cell's age, about the charge of a resting one."""
    from aimc.ops.triton.spec import Softmax

    features = hardware.features
    return Softmax(
        score_adc=counter(hardware.score_adc),
        probability_dac=counter(hardware.probability_dac),
        corrects=kept is not None or features.normalises,
        n_shares=0 if kept is None else len(kept.shares),
        least_share=LEAST,
        shortest=SHORTEST,
        rest=rest,
        keeps_scores=not features.normalise_keys,
        keeps_outputs=not features.normalise_values,
    )
