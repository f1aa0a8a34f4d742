"""What each imperfection of a cell comes to, in volts at the storage node and in steps between its levels; and what is
too much."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from aimc.circuit.cost.converters import converter_steps
from aimc.circuit.curves.retention import RetentionFit
from aimc.circuit.errors import CircuitError
from aimc.circuit.physics.gain_cell import GainCell
from aimc.circuit.physics.storage import settling_error
from aimc.hardware import Hardware

SETTLED_LSB = 0.5
"""A write that misses by more puts the voltage nearer to the neighbouring level."""
SETTLED_TIME_CONSTANTS = 3.0
"""A pulse shorter than so many time constants of its line is mostly edge."""
HARMLESS_FADE = 0.5
"""A token that has lost more than this before it leaves the window is half forgotten."""


@dataclass(slots=True, kw_only=True)
class BudgetLine:
    """One imperfection."""

    name: str
    """In words."""
    volt: float
    """Its size at the storage node, in volt: a standard deviation if random, the largest error if not."""
    lsb: float
    """The same in steps between storage levels."""
    is_random: bool
    """Whether it differs from write to write, read to read or cell to cell."""


def noise_budget(cell: GainCell, hardware: Hardware) -> list[BudgetLine]:
    """What limits a cell, largest first.

    Args:
        cell: the circuit.
        hardware: storage levels (without levels the step is the whole range), window, token time and leakage of the
            emulated machine.
    """
    step = _storage_step(hardware)
    reach = cell.supply_v / 2
    gain, offset_v = cell.mismatch()
    slope = float(np.mean(cell.transconductance(cell.stored_grid())))
    of_read = cell.mean_read_noise() / (slope * cell.pulse_max_s)
    lines = {
        "kT/C write noise": (cell.write_noise(), True),
        "write settling error": (settling_error(cell), False),
        "offset mismatch": (offset_v, True),
        "gain mismatch at full range": (gain * reach, True),
        "read noise of one cell": (of_read, True),
        "leakage over the window": (fade(hardware) * _farthest(hardware, cell), False),
    }
    found = [
        BudgetLine(name=name, volt=volt, lsb=volt / step, is_random=random) for name, (volt, random) in lines.items()
    ]
    return sorted(found, key=lambda line: -line.volt)


def _storage_step(hardware: Hardware) -> float:
    """Between two levels of the storage DAC, in volt."""
    dac = hardware.storage_dac
    return (dac.v_max - dac.v_min) / ((dac.n_levels or 2) - 1)


def fade(hardware: Hardware) -> float:
    """How much of a stored voltage is gone when its token leaves the window, from 0 to 1."""
    return -math.expm1(-hardware.leakage.decay_per_token * hardware.array.window)


def _farthest(hardware: Hardware, cell: GainCell) -> float:
    target = cell.rest_v if hardware.leakage.target_v is None else hardware.leakage.target_v
    return max(target, cell.supply_v - target)


def check_cell(cell: GainCell, hardware: Hardware, held: RetentionFit | None = None) -> Iterator[str]:
    """What will hurt a model on this cell, in words.

    Args:
        cell: the circuit.
        hardware: made of it.
        held: how the cell forgets; None: it does not.

    Raises:
        CircuitError: the cell cannot be read at all.
    """
    signal = float(np.ptp(cell.read_charge(np.array([0.0, cell.supply_v]))))
    threshold = max(t.threshold_v for t in (cell.read_n, cell.read_p) if t is not None)
    noise_c = cell.mean_read_noise()
    if signal < noise_c:
        raise CircuitError(
            f"supply_v={cell.supply_v:g}: the whole range of stored voltages changes the charge by {signal:.2g} C, less"
            f" than the noise {noise_c:.2g} C of one read, because the read transistors (threshold {threshold:g} V)"
            " never turn on; raise the supply, or lower their threshold"
        )
    if cell.supply_v < threshold:
        yield (
            f"supply_v={cell.supply_v:g} lies below the threshold {threshold:g} V of the read transistors: they stay in"
            " weak inversion, where the charge is an exponential of the stored voltage; the model sees a strongly"
            " curved cell, and little signal. Raise the supply or lower the threshold"
        )
    if cell.read_p is not None and cell.read_v > cell.supply_v:
        yield (
            f"read_v={cell.read_v:g} is more than supply_v={cell.supply_v:g}: the read lines stand at"
            f" {cell.rest_v - cell.read_v / 2:.2g} and {cell.rest_v + cell.read_v / 2:.2g} V, outside the supply, where"
            " junctions conduct that this model does not have; change both together"
        )
    gone = fade(hardware)
    if gone > HARMLESS_FADE:
        tau, window_s = (
            hardware.leakage.tau_s or math.inf,
            hardware.array.window * hardware.leakage.known_token_time_s(),
        )
        yield (
            f"retention {tau:.2g} s is short against the window of {window_s:.2g} s: a token has lost {gone:.0%} of its"
            " voltage when it leaves, so the model forgets early; use a larger capacitor, less leakage, a shorter"
            " window or a shorter token time"
        )
    step = _storage_step(hardware)
    if held is not None and held.max_error_v > SETTLED_LSB * step:
        yield (
            "the cell does not forget as an exponential: the emulated one misses its voltage by up to"
            f" {held.max_error_v:.2g} V, {held.max_error_v / step:.1f} LSB of storage, because a channel that is not"
            " quite shut leaks a constant current; shut the write transistor harder (write_gate_off_v), or trust the"
            " perplexity only for shorter windows"
        )
    missing = settling_error(cell)
    if missing > SETTLED_LSB * step:
        yield (
            f"write_pulse_s={cell.write_pulse_s:.2g} is too short to settle: a write misses by up to {missing:.2g} V,"
            f" {missing / step:.1f} LSB of storage, so the cell holds the wrong level, an error that the emulated"
            " writes do not have; write longer, drive the gate higher, or widen the write transistor"
        )
    levels = hardware.input_dac.n_levels
    shortest = cell.pulse_max_s / (1 if levels is None else converter_steps(hardware.input_dac, "input_dac"))
    if shortest < SETTLED_TIME_CONSTANTS * cell.read_line_time_s:
        yield (
            f"the shortest pulse, {shortest:.2g} s, is too short to settle on a read line of"
            f" {cell.read_line_time_s:.2g} s: small queries give less charge than they should, and the model misjudges"
            " weak matches; use longer pulses, fewer input levels or a faster line"
        )
