"""How a cell is written, and how it forgets: the storage node as an ordinary differential equation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp

from aimc.circuit.curves.retention import RetentionFit, fit_retention
from aimc.circuit.errors import CircuitError
from aimc.circuit.physics.gain_cell import GainCell
from aimc.circuit.physics.transistor import thermal_voltage
from aimc.circuit.typing import FloatArray
from aimc.hardware.checks import require_positive

RETENTION_POINTS = 121
"""Times at which a simulated retention trace is sampled."""


def write_current(cell: GainCell, stored_v: ArrayLike, bit_line_v: float) -> FloatArray:
    """Current into the storage node in ampere while the write transistor is on."""
    return cell.write.current(cell.write_gate_on_v, stored_v, bit_line_v, **_conditions(cell))


def _conditions(cell: GainCell) -> dict[str, float]:
    """Body and temperature of the write transistor."""
    return {"body_v": 0.0 if cell.write.polarity == "n" else cell.supply_v, "temperature_k": cell.temperature_k}


def write_time_constant(cell: GainCell, target_v: float) -> float:
    """C/g in second at the end of a write to `target_v`, where the last of the error decays as an exponential."""
    _, conductance = cell.write.conductances(cell.write_gate_on_v, target_v, target_v, **_conditions(cell))
    return math.inf if conductance <= 0 else float(cell.capacitance_f / conductance)


def settling_error(cell: GainCell) -> float:
    """What the worse of the two longest ways, 0 to V_DD and back, still lacks when the write pulse ends, in volt."""
    return max(_left_after(cell, 0.0, cell.supply_v), _left_after(cell, cell.supply_v, 0.0))


def _left_after(cell: GainCell, start_v: float, target_v: float) -> float:
    def slope(_: float, v: FloatArray) -> FloatArray:
        return write_current(cell, v, target_v) / cell.capacitance_f

    solution = solve_ivp(slope, (0.0, cell.write_pulse_s), [start_v], method="LSODA", rtol=1e-8, atol=1e-9)
    return abs(float(solution.y[0, -1]) - target_v)


def leakage_current(cell: GainCell, stored_v: ArrayLike) -> FloatArray:
    """Current out of the storage node in ampere while the cell holds: the shut write transistor and the lumped
    conductance."""
    return channel_leakage(cell, stored_v) + ohmic_leakage(cell, stored_v)


def channel_leakage(cell: GainCell, stored_v: ArrayLike) -> FloatArray:
    """The part of the write transistor, in ampere."""
    hold = cell.rest_v if cell.hold_v is None else cell.hold_v
    return cell.write.current(cell.write_gate_off_v, hold, stored_v, **_conditions(cell))


def ohmic_leakage(cell: GainCell, stored_v: ArrayLike) -> FloatArray:
    """The part of junctions and gate tunnelling, in ampere."""
    target = cell.rest_v if cell.leak_target_v is None else cell.leak_target_v
    return cell.leak_conductance_s * (np.asarray(stored_v, dtype=np.float64) - target)


@dataclass(slots=True, kw_only=True)
class Retention:
    """How a cell forgets."""

    times_s: FloatArray
    """`[N]`, in second."""
    traces_v: FloatArray
    """`[M, N]`, stored voltages from M start voltages, in volt."""
    fit: RetentionFit
    """The one exponential that stands for all of them in the emulator: time constant, target, and what it misses."""


def retention(cell: GainCell, duration_s: float, *, n_starts: int = 9) -> Retention:
    """Let cells leak from evenly spaced voltages, and fit the emulator's exponential to them.

    Args:
        cell: the cell.
        duration_s: how long, in second: the time that a token stays in the window, for a fit that is good where it
            matters.
        n_starts: start voltages from 0 to V_DD.

    Raises:
        ConfigError: a time that is not positive.
        CircuitError: a cell that does not leak at all (its τ is infinite: use `Leakage(tau_s=None)`).
    """
    require_positive("duration_s", duration_s, "seconds")
    starts = np.linspace(0.0, cell.supply_v, n_starts)
    if np.abs(leakage_current(cell, starts)).max() * duration_s / cell.capacitance_f < 1e-12:
        raise CircuitError(
            f"duration_s={duration_s:g}: no voltage changes by a picovolt in that time, so no time constant can be"
            " fitted; give a longer time"
        )

    def slope(_: float, v: FloatArray) -> FloatArray:
        return -leakage_current(cell, v) / cell.capacitance_f

    times = np.linspace(0.0, duration_s, RETENTION_POINTS)
    traces = solve_ivp(slope, (0.0, duration_s), starts, method="LSODA", t_eval=times, rtol=1e-9, atol=1e-12).y
    fit = fit_retention(times, traces)
    if (
        not 0 <= fit.target_v <= cell.supply_v
    ):  # a straight line wants a far target; the emulator's lies within the supply
        fit = fit_retention(times, traces, target_v=min(max(fit.target_v, 0.0), cell.supply_v))
    return Retention(times_s=times, traces_v=traces, fit=fit)


def tau_spread(cell: GainCell) -> float:
    """Standard deviation of ln τ from cell to cell: the write transistor's threshold moves its leakage as
    exp(−V_T/(n·U_T)).

    Weighted by the share of the channel in the leakage at the two ends of the range; the conductance is taken to be the
    same in all cells.
    """
    ends = np.array([0.0, cell.supply_v])
    channel, ohmic = (float(np.abs(part(cell, ends)).sum()) for part in (channel_leakage, ohmic_leakage))
    if channel + ohmic == 0:
        return 0.0
    of_channel = cell.write.threshold_spread_v / (cell.write.slope_factor * thermal_voltage(cell.temperature_k))
    return of_channel * channel / (channel + ohmic)
