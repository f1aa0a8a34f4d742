"""What the kernels of the arrays are given, and the way back from their gradients: launches of
:mod:`aimc.ops.triton.writes`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

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

if TYPE_CHECKING:
    from aimc.ops.triton.spec import Counter, Softmax, Source, Stack, WriteSpec, Written

TOKENS = 32
"""Per program of what is computed position by position."""


class Powers(NamedTuple):
    """What the cells of one array are to the kernels."""

    present: tuple[int, ...]
    """Powers of the decay whose operand differs from cell to cell, rising; without leakage all in one, as power 0."""
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
    def grid(self) -> tuple[int, int, int]:
        """A program per block of tokens, head and sequence."""
        batch, heads, tokens, _ = self.x.shape
        return -(-tokens // TOKENS), heads, batch

    def source(self) -> Source:
        """For a kernel."""
        from aimc.ops.triton.spec import Source

        (of_batch, of_head, of_token, _), n_tokens = self.x.stride(), self.x.shape[2]
        scale, offset = self.affine or (None, None)
        return Source(self.x, of_batch, of_head, of_token, n_tokens, scale, offset)

    def sizes(self) -> dict[str, object]:
        """Those of a :class:`aimc.ops.triton.spec.WriteSpec`."""
        size = self.x.shape[3]
        return {"block": TOKENS, "head_size": size, "padded_size": padded(size), "dac": counter(self.converter)}

    def gradients(self) -> tuple[Tensor, Tensor | None]:
        """Room for the gradient of x, `[B, T, H, D]` in its dtype, and for what adds up to the scaler's, `[2, B, H,
        blocks]`; None: there is no scaler."""
        batch, heads, tokens, size = self.x.shape
        d_x = torch.empty(batch, tokens, heads, size, dtype=self.x.dtype, device=self.x.device)
        sums = torch.empty(2, batch, heads, self.grid[0], dtype=torch.float32, device=self.x.device)
        return d_x, None if self.affine is None else sums

    def of_scaler(self, sums: Tensor | None) -> Tensor:
        """`[2, H]`; zero without a scaler."""
        if sums is None:
            return torch.zeros(2, self.x.shape[1], dtype=torch.float32, device=self.x.device)
        return sums.sum(dim=(1, 3))


class Cells:
    """The cells of one array, and what is written to them."""

    def __init__(self, array: ArrayId, given: Given, heads: Heads, draws: Tensor) -> None:
        self.array, self.given, self.heads, self.draws = array, given, heads, draws
        slots = torch.arange(heads.hardware.array.window, device=heads.device)
        coefficients = heads.coefficients(array, slots)
        self.differ = any(isinstance(c, Tensor) for c in coefficients)
        self.powers = self._powers(coefficients)
        if self.differ:  # some powers may be alike in all cells
            like = next(c for c in coefficients if isinstance(c, Tensor))
            coefficients = [c if isinstance(c, Tensor) else torch.full_like(like, c) for c in coefficients]
            self.table = torch.stack([c.float() for c in coefficients])  # type: ignore[union-attr]
        else:
            self.table = numbers(tuple(coefficients), heads.device)  # type: ignore[arg-type]

    def _powers(self, coefficients: list[Tensor | float]) -> Powers:
        if not self.heads.decay_per_token:
            return Powers((0,), 0.0, (0,))
        cell, (zeroth, *higher) = self.heads.cell, coefficients
        present = tuple(j for j, c in enumerate(higher, 1) if isinstance(c, Tensor) or c != 0.0)
        graded = tuple(j for j in powers_with_gradient(cell) if j in present or cell.gradient == "linear")
        return Powers((0, *present), 0.0, graded) if isinstance(zeroth, Tensor) else Powers(present, zeroth, graded)

    def spec(self, powers: tuple[int, ...]) -> WriteSpec:
        """What a kernel is compiled for whose stack has these powers."""
        from aimc.ops.triton.spec import WriteSpec

        hardware = self.heads.hardware
        return WriteSpec(
            **self.given.sizes(),  # type: ignore[arg-type]
            rest_v=self.heads.cell.offset_v,
            array=int(self.array),
            rows=hardware.array.rows,
            window=hardware.array.window,
            powers=len(self.heads.cell.coefficients),
            stack=stack(powers),
            leaky=bool(self.heads.decay_per_token),
            differ=self.differ,
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
            heads.hardware.noise.write_v,
            heads.cell.surrogate_slope,
            self.draws,
            heads.layer,
        )


def pulses_of(given: Given, full_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Pulse widths over the full scale of the first array of each head `[H]`, `[B, H, T, D]`."""
    from aimc.ops.triton.spec import WriteSpec
    from aimc.ops.triton.writes import pulses_kernel

    pulses = torch.empty(given.x.shape, dtype=dtype, device=given.x.device)
    if pulses.numel():
        pulses_kernel[given.grid](given.source(), full_scale, pulses, WriteSpec(**given.sizes()))  # type: ignore[arg-type]
    return pulses


def pulse_gradient(grad: Tensor, given: Given, full_scale: Tensor) -> tuple[Tensor, Tensor]:
    """From the gradient of :func:`pulses_of` to that of the queries, `[B, H, T, D]`, and of their scaler, `[2, H]`."""
    from aimc.ops.triton.spec import WriteSpec
    from aimc.ops.triton.writes import pulse_gradient_at_dac

    d_x, sums = given.gradients()
    if d_x.numel():
        spec = WriteSpec(**given.sizes())  # type: ignore[arg-type]
        pulse_gradient_at_dac[given.grid](given.source(), full_scale, grad, d_x, sums, spec)
    return d_x.transpose(1, 2), given.of_scaler(sums)


def operands_of(cells: Cells, dtype: torch.dtype) -> Tensor:
    """What the powers of the queries' decay multiply, `[P, B, H_kv, T, D]`: powers from the first present one to the
    last, those between that are absent left unwritten."""
    from aimc.ops.triton.writes import write_kernel

    given, powers = cells.given, cells.powers.present
    operands = torch.empty(span(powers), *given.x.shape, dtype=dtype, device=given.x.device)
    if operands.numel():
        write_kernel[given.grid](given.source(), cells.written(), operands, cells.spec(powers))
    return operands


def stored_gradient(grads: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
    """From the gradients of the graded operands, laid out likewise, to that of keys or values, `[B, H_kv, T, D]`, and
    of their scaler, `[2, H_kv]`."""
    from aimc.ops.triton.writes import stored_gradient_at_dac

    given = cells.given
    d_x, sums = given.gradients()
    if d_x.numel():
        spec = cells.spec(cells.powers.graded)
        stored_gradient_at_dac[given.grid](given.source(), cells.written(), grads, d_x, sums, spec)
    return d_x.transpose(1, 2), given.of_scaler(sums)


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
    from aimc.ops.triton.spec import Counter

    n, v_min, v_max = converter.n_levels, converter.v_min, converter.v_max
    if n is None:
        steps, zero = 0.0, 0.0
    elif converter.coding == "sign_magnitude":
        steps, zero = (n // 2 - 1) / v_max, 0.0
    else:
        steps, zero = (n - 1) / (v_max - v_min), v_min if converter.coding == "unsigned" else 0.0
    curvature = inl_curvature(converter)
    return Counter(v_min, v_max, steps, zero, curvature, clips=converter.coding != "rounded")


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
