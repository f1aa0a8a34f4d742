"""The plan of a call: all of it but its tensors. What its kernels are compiled for and how they are launched is found
once for all calls that differ in the numbers of their tensors alone.

A GPU waits for what Python does between two launches. Triton looks at every argument of a launch, tuples of up to fifty
with ours, to find the kernel that was compiled for such; here it does so at the first launch. Afterwards the kernel is
known, as all that it is compiled for is: dtypes, the integers among the arguments (whether they are 1 or a multiple of
16), which of the tensors there are, and that each begins where :mod:`aimc.ops.triton.alignment` has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aimc.ops.call import Call
from aimc.ops.effects.cell import cell_coefficients
from aimc.ops.effects.noise import ArrayId
from aimc.ops.heads import Heads
from aimc.ops.triton.alignment import ALIGNED
from aimc.ops.triton.check import check_triton, interpreted
from aimc.ops.triton.launches import LARGE, SPARE_BYTES, launches_for, shared_bytes
from aimc.ops.triton.residuals import n_kept
from aimc.ops.triton.spec import Levels, Spec, WriteSpec
from aimc.ops.triton.spread import half_length, orders_needed
from aimc.ops.triton.translation import Powers, counter, padded, softmax_of, stack, storage_converter

TOKENS = 32
"""Per program of what is computed position by position."""
LEAST_TOTAL = torch.finfo(torch.float32).tiny
"""Of all shares of a query, by which is divided."""
MOST_PAIR_BYTES = 2**30
"""Of what the kernels of a backward pass leave to each other, for as long as it takes; they compute more again."""
MOST = 1024
"""Plans that are kept: a new one takes a millisecond, and a first launch of each kernel, which stays compiled."""


class CellKind(NamedTuple):
    """The cells of one array, but for their tables."""

    powers: Powers
    differ: bool
    """Whether each has coefficients of its own."""
    present: WriteSpec
    """What the kernel that writes them is compiled for."""
    graded: WriteSpec
    """And that of the way back."""


class Plan:
    """All of a call that does not depend on the numbers in its tensors.

    Args:
        call: one of those that it is for.

    Raises:
        ValueError: for what :func:`aimc.ops.triton.check.check_triton` names.
    """

    def __init__(self, call: Call) -> None:
        heads, hardware, dtype = call.heads, call.heads.hardware, call.query.dtype
        reason = check_triton(call.query.shape, dtype, heads.device, hardware)
        if reason is not None:
            raise ValueError(reason)
        self.hardware, self.dtype, self.device = hardware, dtype, heads.device
        self.n_batch, self.n_heads, self.n_tokens, self.head_size = call.query.shape
        self.n_kv_heads = heads.n_kv_heads
        self.half_length = half_length(hardware, self.n_tokens)
        self.fast = dtype != torch.float32 and not interpreted()
        self.pulses = self._write_spec(dac=counter(hardware.input_dac))
        self.cells = {array: self._cells(heads, array) for array in ArrayId}
        n_blocks = -(-self.n_tokens // TOKENS)
        self.grid = n_blocks, self.n_heads + 2 * self.n_kv_heads, self.n_batch
        """A program per block of tokens, head of query, key or value, and sequence."""
        self.levels = Levels(
            decay_per_token=hardware.leakage.decay_per_token,
            half_length=self.half_length,
            saturation_av=hardware.array.saturation_av,
            read_noise_qk=hardware.noise.read_qk,
            read_noise_av=hardware.noise.read_av,
            least_sum=LEAST_TOTAL if hardware.has_softmax else hardware.normaliser.least_share,
            least_pulses=hardware.normaliser.least,
        )
        self.n_kept = n_kept(self.n_tokens, hardware)
        rows = hardware.array.rows
        self.n_places = min(hardware.array.n_tiles + 1, -(-self.n_tokens // rows))
        """Blocks that a query sees, with what is left of the one being overwritten."""
        self.pair_shape = self.n_batch, self.n_heads, self.n_places, self.n_tokens, rows
        self.keeps_pairs = 2 * math.prod(self.pair_shape) * dtype.itemsize <= MOST_PAIR_BYTES
        self._softmax = (
            softmax_of(hardware, heads.retained, heads.cell.coefficients[0]) if hardware.has_softmax else None
        )
        self._specs: dict[str, tuple[Spec, dict[str, int]]] = {}
        self._compiled: dict[tuple[object, object], Any] = {}

    @classmethod
    def of(cls, call: Call, given: Sequence[Tensor]) -> Plan:
        """The plan of a call; `given` are query, key and value as its kernels have them."""
        heads = call.heads
        key = (
            id(heads.hardware),  # which no other has while its plan is kept: it holds it
            heads.layer == 1,
            heads.layer % ALIGNED == 0,
            heads.device,
            *[(x.dtype, x.shape, x.stride()) for x in given],
            *[x is None for x in call.scaling],
            call.key_padding is None,
        )
        found = _plans.get(key)
        if found is None:
            if len(_plans) >= MOST:
                _plans.clear()
            found = _plans[key] = cls(call)
        return found

    def launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, variant: object = None, **how: int) -> None:
        """`kernel[grid](*args, **how)`; `variant` tells apart launches of a kernel with constants or dtypes that differ
        between calls of one plan."""
        known = self._compiled.get((kernel.__name__, variant))
        if known is not None:
            known[grid](*args)
            return
        compiled = kernel[grid](*args, **how)
        if compiled is not None:  # by Triton's interpreter nothing is compiled
            self._compiled[kernel.__name__, variant] = compiled

    def spec(self, kernel: str) -> tuple[Spec, dict[str, int]]:
        """What a kernel of the arrays is compiled for, and how it is launched."""
        if kernel not in self._specs:
            self._specs[kernel] = self._spec(kernel)
        return self._specs[kernel]

    def _spec(self, kernel: str) -> tuple[Spec, dict[str, int]]:
        import triton.language as tl

        hardware, dtype = self.hardware, self.dtype
        array, normaliser = hardware.array, hardware.normaliser
        keys, values = (kind.powers for kind in self.cells.values())
        of_tl = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]
        is_noisy = bool(hardware.noise.read_qk or hardware.noise.read_av)
        is_large = array.rows * padded(self.head_size) > LARGE
        how = launches_for(dtype, is_noisy=is_noisy, has_softmax=hardware.has_softmax, is_large=is_large)[kernel]
        spec = Spec(
            rows=array.rows,
            tiles=array.n_tiles,
            block=min(array.rows, how.block),
            head_size=self.head_size,
            padded_size=padded(self.head_size),
            spreads=hardware.leaks_apart,
            highest=max(0, *keys.present, *values.present, *keys.graded, *values.graded),
            keys=stack(keys.present),
            values=stack(values.present),
            key_constant=keys.constant,
            value_constant=values.constant,
            key_gradients=stack(keys.graded),
            value_gradients=stack(values.graded),
            readout=counter(hardware.readout),
            normaliser=counter(normaliser.counter) if normaliser.is_on else None,
            softmax=self._softmax,
            protects=hardware.protection.is_on,
            read_noise_qk=hardware.noise.read_qk > 0,
            read_noise_av=hardware.noise.read_av > 0,
            operand_dtype=of_tl,
            dot_dtype=tl.float32 if dtype == torch.bfloat16 and interpreted() else of_tl,
            fast=self.fast,
            reloads=dtype == torch.float32,
            precision="tf32x3",  # three products of tensor cores, whose float32 has 10 bits, come close to its 23
        )
        n_operands = len(keys.present) + len(values.present)
        pipelined = how.stages * n_operands * spec.rows * spec.padded_size * dtype.itemsize
        has_room = pipelined + SPARE_BYTES <= shared_bytes(self.device)
        return spec, {"num_warps": how.warps, "num_stages": how.stages if has_room else 1}

    def _write_spec(self, **of: Any) -> WriteSpec:
        return WriteSpec(
            block=TOKENS, head_size=self.head_size, padded_size=padded(self.head_size), fast=self.fast, **of
        )

    def _cells(self, heads: Heads, array: ArrayId) -> CellKind:
        hardware = self.hardware
        orders = orders_needed(hardware, self.n_tokens, self.dtype) or 0
        noise, cell = hardware.noise, torch.zeros(1)  # of one cell: which coefficients are tables is all that counts
        errors = (cell if sigma else None for sigma in (noise.mismatch_gain, noise.mismatch_offset_v))
        coefficients = cell_coefficients(heads.cell, *errors)
        powers = Powers.of(heads, coefficients, orders)
        differ = any(isinstance(c, Tensor) for c in coefficients)
        of_both: dict[str, Any] = {
            "dac": counter(storage_converter(hardware)),
            "rest_v": heads.cell.offset_v,
            "array": int(array),
            "rows": hardware.array.rows,
            "window": hardware.array.window,
            "powers": len(heads.cell.coefficients),
            "leaky": bool(heads.decay_per_token),
            "differ": differ,
            "orders": orders,
            "linear_gradient": heads.cell.gradient == "linear",
            "write_noise": hardware.noise.write_v > 0,
        }
        present, graded = (self._write_spec(stack=stack(x), **of_both) for x in (powers.present, powers.graded))
        return CellKind(powers, differ, present, graded)


_plans: dict[tuple[object, ...], Plan] = {}
"""Of this process, by all that they depend on."""


def forget() -> None:
    """Of all plans that were made, as where kernels are to be launched in another way."""
    _plans.clear()
