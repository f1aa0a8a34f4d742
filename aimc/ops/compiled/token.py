"""One token in one compiled call: its key and value are written to a slot, and its query reads the cells of both
arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from aimc.ops.compiled.cells import make_charge
from aimc.ops.compiled.levels import counted
from aimc.ops.compiled.operands import Counter
from aimc.ops.compiled.threads import in_parts

ZERO, ONE = np.float32(0.0), np.float32(1.0)


class Circuits(NamedTuple):
    """What stands in front of, between and behind the arrays; float32."""

    input_dac: Counter
    storage_dac: Counter
    is_code: bool
    """Whether a cell's number is the code of its level, or its voltage about the leak target."""
    line: tuple[float, float]
    """Of a code: the voltage between two levels, and the lowest about the leak target; of a voltage 1 and 0."""
    target_v: float
    """That the cells leak to."""
    decay_per_token: float
    """λ; 0: they do not leak."""
    terms: tuple[Any, ...]
    """Coefficients of the cell about it."""
    readout: Counter
    n_rows: int
    """R, slots of a sub-tile."""
    saturation_av: float
    """A_sat, in signal units."""
    is_normalised: bool
    """Whether there is a normaliser column."""
    sum_counter: Counter
    """Its counter."""
    least_share: float
    """What the digital sum is divided by at least, in full scales of that,"""
    least: float
    """and in pulses."""


class Scalers(NamedTuple):
    """Of each head, float32: `[H]` or, of keys and values, `[H_kv]`."""

    query: tuple[np.ndarray, np.ndarray]
    """Scale and offset."""
    key: tuple[np.ndarray, np.ndarray]
    value: tuple[np.ndarray, np.ndarray]
    full_scale_qk: np.ndarray
    """S_sat, in signal units."""
    full_scale_av: np.ndarray
    """A_sat, likewise."""
    full_scale_of_sum: np.ndarray
    """Pulses that fill the counter of the normaliser column."""
    thresholds: np.ndarray
    """Of the charge-to-pulse circuits, in full scales."""


class Held(NamedTuple):
    """The arrays of a layer, and the errors of its chip; None: there are none."""

    keys: np.ndarray
    """Numbers of the cells, `[B·H_kv, W, D]`; changed."""
    values: np.ndarray
    hidden: np.ndarray
    """Slots that hold padding or nothing, `[B, W]`."""
    ages: np.ndarray
    """Of what stands in the slots in use, in token times, `[S]`."""
    key_gain: np.ndarray | None
    """Mismatch of the cells' gain, `[H_kv, W, D]`."""
    key_offset: np.ndarray | None
    """Of their offset, in volt."""
    value_gain: np.ndarray | None
    value_offset: np.ndarray | None
    qk_gain: np.ndarray | None
    """Of the charge-to-pulse circuits, `[H_kv, W]`."""
    qk_offset: np.ndarray | None
    """In full scales."""
    av_gain: np.ndarray | None
    """Of the counters, `[H_kv, J, D]`."""
    av_offset: np.ndarray | None
    sum_gain: np.ndarray | None
    """Of the normaliser's, `[H_kv, J, 1]`."""
    sum_offset: np.ndarray | None


def read_token(
    slot: int,
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    scalers: Scalers,
    circuits: Circuits,
    held: Held,
    out: np.ndarray,
) -> None:
    """Store a token in a slot, and read all slots in use.

    Args:
        slot: where it is written.
        query: before its scaler, float32 `[B·H, D]`.
        key, value: likewise, `[B·H_kv, D]`.
        scalers, circuits, held: see there.
        out: what the head gives, in units of `saturation_av`, `[B·H, D]`.
    """
    given = query, key, value, slot, scalers, circuits, out, *held
    in_parts(lambda start, stop: _read(start, stop, *given), len(key), len(held.ages) * key.shape[1])


@numba.njit(error_model="numpy", cache=True)
def _store(numbers, scale, offset, dac, is_code, target_v, cells):  # type: ignore[no-untyped-def]
    for d in range(len(cells)):
        level = counted(scale * numbers[d] + offset, dac)
        cells[d] = np.rint((level - dac.zero) * dac.steps) if is_code else level - target_v


@numba.njit(error_model="numpy", cache=True)
def _put_pulses(numbers, scale, offset, dac, full_scale, pulses):  # type: ignore[no-untyped-def]
    for d in range(len(pulses)):
        pulses[d] = counted(scale * numbers[d] + offset, dac) / full_scale


@numba.njit(error_model="numpy", cache=True)
def _count(charge, full_scale, gain, offset, counter, total):  # type: ignore[no-untyped-def]
    """Add what the counters of a sub-tile read of their charge."""
    for d in range(len(total)):
        x = charge[d] / full_scale
        if gain is not None:
            x = x * (ONE + gain[d])
        if offset is not None:
            x = x + offset[d]
        total[d] += counted(x, counter)


@numba.njit(error_model="numpy", cache=True, nogil=True, fastmath=True)
def _read(  # type: ignore[no-untyped-def]
    start,
    stop,
    query,
    key,
    value,
    slot,
    scalers,
    circuits,
    out,
    keys,
    values,
    hidden,
    ages,
    key_gain,
    key_offset,
    value_gain,
    value_offset,
    qk_gain,
    qk_offset,
    av_gain,
    av_offset,
    sum_gain,
    sum_offset,
):
    n_kv, size, n_slots, n_rows = len(scalers.key[0]), key.shape[1], len(ages), circuits.n_rows
    group, dac, stored = len(scalers.full_scale_qk) // n_kv, circuits.input_dac, circuits.storage_dac
    charge, pulses = np.empty(size, np.float32), np.empty((group, size), np.float32)
    widths, counts = np.empty((group, n_slots), np.float32), np.empty((group, size), np.float32)
    pulse, total = np.empty((group, 1), np.float32), np.empty((group, 1), np.float32)
    # A voltage is `scale·number + shift` now
    decay = np.exp(-circuits.decay_per_token * ages)
    scale, shift = decay * circuits.line[0], decay * circuits.line[1]
    for i in range(start, stop):
        batch, kv, first = i // n_kv, i % n_kv, i % n_kv * group
        read = out[i * group : (i + 1) * group]
        read[:], total[:] = ZERO, ZERO
        for numbers, (a, b), cells in ((key, scalers.key, keys), (value, scalers.value, values)):
            _store(numbers[i], a[kv], b[kv], stored, circuits.is_code, circuits.target_v, cells[i, slot])
        for g in range(group):
            a, b = scalers.query[0][first + g], scalers.query[1][first + g]
            _put_pulses(query[i * group + g], a, b, dac, scalers.full_scale_qk[first + g], pulses[g])
        # First array, charge-to-pulse
        for s in range(n_slots):
            if hidden[batch, s]:
                widths[:, s] = ZERO
                continue
            gain = None if key_gain is None else key_gain[kv, s]
            offset = None if key_offset is None else key_offset[kv, s]
            make_charge(keys[i, s], None, scale[s], shift[s], circuits.terms, gain, offset, charge)
            for g in range(group):
                x = ZERO
                for d in range(size):
                    x += pulses[g, d] * charge[d]
                if qk_gain is not None:
                    x = x * (ONE + qk_gain[kv, s])
                if qk_offset is not None:
                    x = x + qk_offset[kv, s]
                widths[g, s] = min(max(x - scalers.thresholds[first + g], ZERO), ONE)
        # Second array, readout, digital sum
        for tile in range(n_slots // n_rows):
            counts[:], pulse[:] = ZERO, ZERO
            for s in range(tile * n_rows, (tile + 1) * n_rows):
                used = False
                for g in range(group):
                    used |= widths[g, s] != ZERO
                if not used:  # no pulse, no charge
                    continue
                gain = None if value_gain is None else value_gain[kv, s]
                offset = None if value_offset is None else value_offset[kv, s]
                make_charge(values[i, s], None, scale[s], shift[s], circuits.terms, gain, offset, charge)
                for g in range(group):
                    width = widths[g, s]
                    pulse[g, 0] += width
                    for d in range(size):
                        counts[g, d] += width * charge[d]
            gain = None if av_gain is None else av_gain[kv, tile]
            offset = None if av_offset is None else av_offset[kv, tile]
            of_sum = None if sum_gain is None else sum_gain[kv, tile]
            off_sum = None if sum_offset is None else sum_offset[kv, tile]
            for g in range(group):
                _count(counts[g], scalers.full_scale_av[first + g], gain, offset, circuits.readout, read[g])
                if circuits.is_normalised:
                    of_head = scalers.full_scale_of_sum[first + g]
                    _count(pulse[g], of_head, of_sum, off_sum, circuits.sum_counter, total[g])
        for g in range(group):
            factor = scalers.full_scale_av[first + g] / circuits.saturation_av
            if circuits.is_normalised:
                divisor = max(total[g, 0], circuits.least_share) * scalers.full_scale_of_sum[first + g]
                factor = factor / max(divisor, circuits.least)
            read[g] *= factor
