"""Hardware as the kernels have it: in numbers that they are compiled for."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from aimc.hardware import Converter, Hardware
from aimc.ops.effects.activation import SHORTEST
from aimc.ops.effects.ageing import LEAST, Retained
from aimc.ops.effects.cell import powers_with_gradient
from aimc.ops.effects.converters import inl_curvature
from aimc.ops.heads import Heads
from aimc.ops.triton.spec import Counter, Softmax, Stack

NO_CONVERTER = Converter(v_min=-1e30, v_max=1e30)
"""In front of what has been converted already."""


class Powers(NamedTuple):
    """What the cells of one array are to the kernels."""

    present: tuple[int, ...]
    """Powers of the decay whose operand differs from cell to cell, rising; without leakage all in one, as power 0;
    where cells leak apart, orders in time (:mod:`aimc.ops.triton.spread`)."""
    constant: float
    """The operand of power 0 that all cells share; 0: none."""
    graded: tuple[int, ...]
    """Powers for which the kernels give a gradient."""

    @classmethod
    def of(cls, heads: Heads, coefficients: list[Tensor | float], orders: int) -> Powers:
        """Those of cells with these coefficients; `orders` are those in time, 0 where all cells leak alike."""
        if not heads.decay_per_token:
            return cls((0,), 0.0, (0,))
        if orders:
            return cls(tuple(range(orders)), 0.0, tuple(range(orders)))
        cell, (zeroth, *higher) = heads.cell, coefficients
        present = tuple(j for j, c in enumerate(higher, 1) if isinstance(c, Tensor) or c != 0.0)
        graded = tuple(j for j in powers_with_gradient(cell) if j in present or cell.gradient == "linear")
        return cls((0, *present), 0.0, graded) if isinstance(zeroth, Tensor) else cls(present, zeroth, graded)


def span(powers: tuple[int, ...]) -> int:
    """Matrices of a stack that begins with the first of the rising powers and ends with the last."""
    return powers[-1] - powers[0] + 1


def stack(powers: tuple[int, ...]) -> Stack:
    """For a kernel."""
    return Stack(first=powers[0], length=span(powers), bits=sum(1 << j for j in powers))


def padded(head_size: int) -> int:
    """The power of two that holds D, and no less than the smallest tensor-core product."""
    return max(16, 1 << (head_size - 1).bit_length())


def counter(converter: Converter) -> Counter:
    """A converter in numbers."""
    n, v_min, v_max, coding = converter.n_levels, converter.v_min, converter.v_max, converter.coding
    if n is None:
        steps, zero = 0.0, 0.0
    elif coding == "sign_magnitude":
        steps, zero = (n // 2 - 1) / v_max, 0.0
    else:
        steps, zero = (n - 1) / (v_max - v_min), v_min if coding == "unsigned" else 0.0
    return Counter(v_min, v_max, steps, zero, inl_curvature(converter), clips=coding != "rounded")


def storage_converter(hardware: Hardware) -> Converter:
    """What the kernels do of storing: nothing where levels lie elsewhere than on a line, which is left to PyTorch."""
    return hardware.storage_dac if hardware.storage_dac.spacing == "uniform" else NO_CONVERTER


def softmax_of(hardware: Hardware, kept: Retained | None, rest: float) -> Softmax:
    """The digital softmax in numbers: with what is made up for of a cell's age, about the charge of a resting one."""
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
