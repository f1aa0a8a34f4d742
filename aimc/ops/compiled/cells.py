"""Gain cells read by one query in one pass: their charge is made of what they hold where it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np
import torch
from torch import Tensor

from aimc.ops.compiled.threads import in_parts

if TYPE_CHECKING:
    from aimc.ops.decode.cells import Moment

ZERO = np.float32(0.0)


def read_qk(
    state: Tensor, levels: Tensor | None, scale: Tensor, shift: Tensor, moment: Moment, pulses: Tensor
) -> Tensor:
    """See :meth:`aimc.ops.decode.cells.Cells.read_qk`.

    Args:
        state: codes or voltages, `[B, H_kv, W, D]`.
        levels: that codes stand for, `[n]`; None: they stand for a line.
        scale, shift: of voltages in the slots, `[S]`.
        moment: coefficients and mismatch are taken from it.
        pulses: `[B, H_kv, G, D]`.
    """
    out = pulses.new_empty(*pulses.shape[:3], moment.n_slots)
    _in_parts(_read_qk, state, levels, scale, shift, moment, pulses, out)
    return out


def read_av(
    state: Tensor, levels: Tensor | None, scale: Tensor, shift: Tensor, moment: Moment, pulses: Tensor, n_tiles: int
) -> Tensor:
    """See :meth:`aimc.ops.decode.cells.Cells.read_av`; arguments as for :func:`read_qk`, pulses `[B, H_kv, G, S]`."""
    n_batch, n_heads, group, _ = pulses.shape
    out = pulses.new_zeros(n_batch, n_heads, n_tiles, group, state.shape[-1])
    _in_parts(_read_av, state, levels, scale, shift, moment, pulses, out)
    return out


def _in_parts(  # type: ignore[no-untyped-def]
    kernel, state: Tensor, levels: Tensor | None, scale: Tensor, shift: Tensor, moment: Moment, *of_heads: Tensor
) -> None:
    cells, pulses, out = (x.detach().contiguous().flatten(0, 1).numpy() for x in (state, *of_heads))
    line = None if levels is None else levels.numpy(), scale.contiguous().numpy(), shift.contiguous().numpy()
    terms = tuple(np.float32(c) for c in moment.coefficients)
    errors = _errors(moment.gain), _errors(moment.offset_v)

    def read(start: int, stop: int) -> None:
        kernel(cells, *line, terms, *errors, pulses, out, start, stop)

    in_parts(read, len(cells), moment.n_slots * cells.shape[-1])


def _errors(errors: Tensor | None) -> np.ndarray | None:
    return None if errors is None else errors.to(torch.float32).contiguous().numpy()


@numba.njit(inline="always")
def make_charge(cells, levels, scale, shift, terms, gain, offset, charge):  # type: ignore[no-untyped-def]
    """Charge per unit pulse of the cells of one slot; what is None is compiled away."""
    for d in range(len(charge)):
        u = np.float32(cells[d]) * scale + shift if levels is None else levels[cells[d]] * scale
        if offset is not None:
            u += offset[d]
        p = terms[-1]
        for k in range(len(terms) - 1, 0, -1):
            p = p * u + terms[k - 1]
        if gain is not None:
            p += p * gain[d]
        charge[d] = p


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _read_qk(cells, levels, scale, shift, terms, gain, offset, pulses, out, start, stop):  # type: ignore[no-untyped-def]
    charge = np.empty(cells.shape[2], np.float32)
    for i in range(start, stop):
        for s in range(len(scale)):
            of_gain = None if gain is None else gain[i % len(gain), s]
            of_offset = None if offset is None else offset[i % len(offset), s]
            make_charge(cells[i, s], levels, scale[s], shift[s], terms, of_gain, of_offset, charge)
            for g in range(pulses.shape[1]):
                total = ZERO
                for d in range(len(charge)):
                    total += pulses[i, g, d] * charge[d]
                out[i, g, s] = total


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _read_av(cells, levels, scale, shift, terms, gain, offset, pulses, out, start, stop):  # type: ignore[no-untyped-def]
    charge = np.empty(cells.shape[2], np.float32)
    n_rows = len(scale) // out.shape[1]
    for i in range(start, stop):
        for s in range(len(scale)):
            used = False
            for g in range(pulses.shape[1]):
                used |= pulses[i, g, s] != ZERO
            if not used:  # no pulse, no charge
                continue
            of_gain = None if gain is None else gain[i % len(gain), s]
            of_offset = None if offset is None else offset[i % len(offset), s]
            make_charge(cells[i, s], levels, scale[s], shift[s], terms, of_gain, of_offset, charge)
            for g in range(pulses.shape[1]):
                width = pulses[i, g, s]
                for d in range(len(charge)):
                    out[i, s // n_rows, g, d] += width * charge[d]
