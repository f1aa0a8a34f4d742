"""From a circuit, or from a fitted curve, to the hardware that the emulator runs."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from aimc.circuit.budget import check_cell
from aimc.circuit.curves.retention import RetentionFit
from aimc.circuit.curves.transfer import POOR_LSB, TransferFit, fit_transfer, poor_fit
from aimc.circuit.errors import CircuitError, CircuitWarning
from aimc.circuit.physics.gain_cell import GainCell
from aimc.circuit.physics.storage import retention, tau_spread
from aimc.circuit.physics.transistor import BOLTZMANN
from aimc.hardware import Cell, Hardware, Leakage, Noise, presets
from aimc.hardware.checks import require_positive

MEAN_PULSE = 0.5
"""Mean pulse as a fraction of the longest, where a model's own is not known: noise and energy of a read grow with
it."""
HEAD_SIZE = 64
"""Cells on a bit line of the first array, where a model's own head size is not given: that of GPT-2."""

FAR = 0.05
"""Share of the supply by which a fitted leak target may lie beyond it or ground, for noise."""
AT_REST = 1e-3
"""Part of the supply within which a cell counts as leaking to its rest: a fit's own uncertainty."""

_UNITS = {"s": "seconds", "v": "volts", "c": "coulombs"}


class FullScales(NamedTuple):
    """Charges at which the circuits behind the two arrays are full, in coulomb."""

    qk_c: float
    """Of the charge-to-pulse circuit."""
    av_c: float
    """Of a sub-tile's counter."""


def to_hardware(
    source: GainCell | TransferFit,
    hardware: Hardware | None = None,
    *,
    degree: int = 3,
    full_scales: FullScales | None = None,
    head_size: int = HEAD_SIZE,
    mean_pulse: float = MEAN_PULSE,
    phi_pulse_s: float | None = None,
    supply_v: float | None = None,
    held: RetentionFit | None = None,
) -> Hardware:
    """Hardware whose cell is a circuit or a fitted curve; everything else is that of `hardware`.

    From a circuit come: transfer coefficients, storage range, τ and what the cells leak to, write noise, read noise of
        both arrays, gain
    and offset mismatch, spread of τ, and the nonlinearity of short pulses. Charges become signal units so that the
    straight line through the cell reaches what that of `hardware.cell` reaches at the end of its range, as if the
    circuits behind the arrays were sized anew; with `full_scales` they are what they are, and a stronger cell fills
    them sooner.

    Args:
        source: a circuit; or a fitted curve, from which comes the cell alone.
        hardware: sizes, levels, token time and column errors; None: :func:`aimc.presets.gain_cell_cmos`.
        degree: of the polynomial that stands for the circuit.
        full_scales: of the circuits behind the arrays, in the units of the charge; None: sized like those of
            `hardware`.
        head_size: cells on one bit line of the first array, which add up their noise.
        mean_pulse: mean pulse as a fraction of the longest, for the noise of a read.
        phi_pulse_s: longest pulse into the second array, in second; None: that of the first.
        supply_v: of a fitted curve, in volt; None: its largest stored voltage.
        held: of a fitted curve, how it forgets; None: `hardware.leakage` as it is.

    Raises:
        CircuitError: a cell that cannot be read; a fitted curve that does not reach the range that is stored.
        ConfigError: values that the emulator refuses, or an argument that is not a positive, finite number.

    Warns:
        CircuitWarning: what will hurt the model: retention shorter than the window, a write or a pulse too short to
            settle, a poor fit.
    """
    given = {"head_size": head_size, "mean_pulse": mean_pulse, "phi_pulse_s": phi_pulse_s, "supply_v": supply_v}
    given |= {} if full_scales is None else {f"full_scales.{k}": v for k, v in full_scales._asdict().items()}
    for name, value in given.items():
        if value is not None:
            require_positive(name, value, _UNITS.get(name.rpartition("_")[2], "1"))
    base = presets.gain_cell_cmos() if hardware is None else Hardware.from_dict(hardware.to_dict())
    if isinstance(source, TransferFit):
        return _of_curve(source, base, full_scales, supply_v, held)
    if supply_v is not None or held is not None:
        raise CircuitError(
            "supply_v and held belong to a fitted curve; a circuit has its own: use dataclasses.replace on it"
        )
    return _of_circuit(source, base, degree, full_scales, head_size, mean_pulse, phi_pulse_s)


def _of_curve(
    fit: TransferFit, base: Hardware, full_scales: FullScales | None, supply_v: float | None, held: RetentionFit | None
) -> Hardware:
    supply = fit.stored_range_v[1] if supply_v is None else supply_v
    floor = max(fit.stored_range_v[0], 0.0)
    low, high = (_same_place(v, base, floor, supply) for v in (base.storage_dac.v_min, base.storage_dac.v_max))
    cell = fit.to_cell(supply, lowest_v=low)
    new = _with_cell(base, cell, _signal_unit(fit, base, full_scales, floor, supply), full_scales, low, high)
    if held is not None:
        if held.stretch != 1.0:
            raise CircuitError(
                f"stretch={held.stretch:.3f}: the emulator computes with plain exponentials; fit the retention with"
                " stretched=False"
            )
        slack = FAR * supply
        if not -slack <= held.target_v <= supply + slack:
            raise CircuitError(
                f"held.target_v={held.target_v:.3g} V lies outside of 0 to {supply:.3g} V, which no cell leaks to, and"
                " another target has another retention: traces that are nearly straight do not tell it; fit them with"
                " fit_retention(…, target_v=…)"
            )
        new.leakage = replace(new.leakage, tau_s=held.tau_s, target_v=float(np.clip(held.target_v, 0.0, supply)))
    step = float(np.ptp(fit(np.array([low, high])))) / ((base.storage_dac.n_levels or 2) - 1)
    if fit.max_error > POOR_LSB * step:
        warnings.warn(
            poor_fit(fit.max_error / step, f"a polynomial of degree {len(fit.coefficients) - 1}"),
            CircuitWarning,
            stacklevel=3,
        )
    return new


def _of_circuit(
    cell: GainCell,
    base: Hardware,
    degree: int,
    full_scales: FullScales | None,
    head_size: int,
    mean_pulse: float,
    phi_pulse_s: float | None,
) -> Hardware:
    fit = fit_cell(cell, degree=degree, n_levels=base.storage_dac.n_levels)
    phi_pulse_s = phi_pulse_s or cell.pulse_max_s
    if full_scales is not None:  # the emulator counts φ in pulses of the first array's length
        full_scales = full_scales._replace(av_c=full_scales.av_c * cell.pulse_max_s / phi_pulse_s)
    unit_c = _signal_unit(fit, base, full_scales, 0.0, cell.supply_v)
    low, high = (_same_place(v, base, 0.0, cell.supply_v) for v in (base.storage_dac.v_min, base.storage_dac.v_max))
    new = _with_cell(base, fit.to_cell(cell.supply_v), unit_c, full_scales, low, high)
    held = _held(cell, base)
    new.leakage = _leakage(cell, base, held)
    new.noise = _noise(cell, new, unit_c, head_size, mean_pulse, phi_pulse_s)
    if base.input_dac.v_min >= 0:  # of a signed pulse each polarity is bent for itself, and the converter's inl is not
        new.input_dac = replace(new.input_dac, inl=pulse_nonlinearity(cell))
    for finding in check_cell(cell, new, held):
        warnings.warn(finding, CircuitWarning, stacklevel=3)
    return new


def fit_cell(cell: GainCell, *, degree: int = 3, n_levels: int | None = None) -> TransferFit:
    """The polynomial of a circuit's charge, in coulomb for the longest pulse, over its whole range of stored voltages.

    Raises:
        CircuitError: the charge does not rise with the stored voltage, so it cannot be read back.
    """
    stored = cell.stored_grid()
    charge = cell.read_charge(stored)
    if (np.diff(charge) <= 0).any():
        at = stored[int(np.argmin(np.diff(charge)))]
        raise CircuitError(
            f"the charge does not rise with the stored voltage at {at:.2f} V: what is stored there cannot be read;"
            " check sizes and biases"
        )
    return fit_transfer(stored, charge, offset_v=cell.rest_v, degree=degree, n_levels=n_levels)


def signal_unit(cell: GainCell, hardware: Hardware, *, degree: int = 3) -> float:
    """Coulombs per signal unit that :func:`to_hardware` chooses for a circuit whose readout is sized anew."""
    return _signal_unit(fit_cell(cell, degree=degree), hardware, None, 0.0, cell.supply_v)


def _signal_unit(
    fit: TransferFit, base: Hardware, full_scales: FullScales | None, low_v: float, high_v: float
) -> float:
    """Units of the fit's charge per signal unit, where voltages from `low_v` to `high_v` can be stored."""
    slope, old_slope = (
        _slope(c.coefficients, c.offset_v, low, high)
        for c, low, high in ((fit, low_v, high_v), (base.cell, 0.0, base.cell.supply_v))
    )
    if slope <= 0:
        raise CircuitError(
            "the charge falls as the stored voltage rises: the arrays would compute with the sign of every key and"
            " value turned; if the simulator counts currents into a source as negative, read the sweep with sign=-1"
        )
    if full_scales is not None:
        return full_scales.qk_c / base.array.saturation_qk
    return slope * (high_v - low_v) / (old_slope * base.cell.supply_v)


def _slope(coefficients: list[float], offset_v: float, low_v: float, high_v: float) -> float:
    """Of the straight line through rest that is nearest to the polynomial."""
    u = np.linspace(low_v, high_v, 101) - offset_v
    return float(u @ np.polynomial.polynomial.polyval(u, coefficients) / (u @ u))


def _with_cell(
    base: Hardware, cell: Cell, unit: float, full_scales: FullScales | None, low_v: float, high_v: float
) -> Hardware:
    """The base with a cell whose coefficients are in charge units of the fit, and another storage range."""
    coefficients = [c / unit for c in cell.coefficients]
    slope = _slope(coefficients, cell.offset_v, low_v, high_v)
    array = base.array if full_scales is None else replace(base.array, saturation_av=full_scales.av_c / unit)
    dac = base.storage_dac
    positions = dac.positions
    if positions is not None:  # at the same places of the new range
        stretch = (high_v - low_v) / (dac.v_max - dac.v_min)
        positions = [min(low_v + (v - dac.v_min) * stretch, high_v) for v in positions]
    # range and supply of the storage DAC are checked against each other, so both change at once
    return replace(
        base,
        cell=replace(cell, coefficients=coefficients, gradient=base.cell.gradient, surrogate_slope=slope),
        storage_dac=replace(dac, v_min=low_v, v_max=high_v, positions=positions),
        array=array,
    )


def _same_place(v: float, base: Hardware, low_v: float, high_v: float) -> float:
    """Where a voltage of the old range lies in a new one."""
    return low_v + v / base.cell.supply_v * (high_v - low_v)


def _held(cell: GainCell, base: Hardware) -> RetentionFit | None:
    """How the cell forgets while a token is in the window; None: it holds for ever, measured in windows."""
    try:
        return retention(cell, base.array.window * base.leakage.known_token_time_s()).fit
    except CircuitError:
        return None


def _leakage(cell: GainCell, base: Hardware, held: RetentionFit | None) -> Leakage:
    if held is None:
        return replace(base.leakage, tau_s=None)
    at_rest = abs(held.target_v - cell.rest_v) < AT_REST * cell.supply_v
    return replace(base.leakage, tau_s=held.tau_s, target_v=None if at_rest else held.target_v)


def _noise(
    cell: GainCell, hardware: Hardware, unit_c: float, head_size: int, mean_pulse: float, phi_pulse_s: float
) -> Noise:
    array, (gain, offset_v) = hardware.array, cell.mismatch()
    # φ is as long as its own longest pulse says: noise charge grows with the root of the pulse
    phi = mean_pulse * phi_pulse_s / cell.pulse_max_s
    return replace(
        hardware.noise,
        write_v=cell.write_noise(),
        read_qk=read_noise(cell, array.saturation_qk * unit_c, head_size, mean_pulse),
        read_av=read_noise(cell, array.saturation_av * unit_c * phi_pulse_s / cell.pulse_max_s, array.rows, phi),
        mismatch_gain=gain,
        mismatch_offset_v=offset_v,
        tau_spread=_tau_spread_that_matters(cell, hardware),
    )


def _tau_spread_that_matters(cell: GainCell, hardware: Hardware) -> float:
    """The spread of τ; 0 where it moves no voltage by a tenth of kT/C before its token leaves, because cells that
    differ are slow to emulate."""
    if hardware.leakage.tau_s is None:
        return 0.0
    spread = tau_spread(cell)
    aged = hardware.leakage.decay_per_token * hardware.array.window
    moved_v = spread * min(aged, 1.0) * cell.supply_v  # u·(Δ/τ)·exp(−Δ/τ)·σ is largest at Δ = τ
    return spread if moved_v > 0.1 * cell.write_noise() else 0.0


def read_noise(cell: GainCell, full_scale_c: float, n_cells: int, mean_pulse: float = MEAN_PULSE) -> float:
    """Noise of one read of one column as a fraction of its full scale.

    The channels of `n_cells` cells at evenly spread stored voltages, with variances that add and grow with the pulse;
    and √(kT·C) of the integrator that is full at `full_scale_c` coulomb after half the supply.
    """
    of_cells = n_cells * mean_pulse * cell.mean_read_noise() ** 2
    of_integrator = BOLTZMANN * cell.temperature_k * full_scale_c / (cell.supply_v / 2)
    return math.sqrt(of_cells + of_integrator) / full_scale_c


def pulse_nonlinearity(cell: GainCell) -> float:
    """Largest deviation of a pulse's effect from the straight line through its ends, as a fraction of the longest
    pulse's effect, with its sign.

    The emulator draws it as a parabola; the edge of a read line has its deviation at the short pulses. Its size is
    exact, its place is not.
    """
    widths = np.linspace(0.0, cell.pulse_max_s, 257)
    effect = cell.effective_width(widths) / cell.pulse_max_s
    deviation = effect / effect[-1] - widths / cell.pulse_max_s
    return float(deviation[int(np.argmax(np.abs(deviation)))])
