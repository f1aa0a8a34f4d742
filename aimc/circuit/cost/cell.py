"""What a transistor-level cell says of the cost model's unit numbers."""

from __future__ import annotations

from dataclasses import replace

from aimc.circuit.cost.parameters import CostParameters
from aimc.circuit.hardware import MEAN_PULSE
from aimc.circuit.physics.gain_cell import GainCell
from aimc.hardware.checks import require_positive

LAYOUT_FACTOR = 5.0
"""Area of a laid-out cell ÷ area of its channels: contacts, spacing, wells; assumed."""
CAPACITOR_F_M2 = 5e-3
"""Capacitance per area of a metal-oxide-metal capacitor above the cell, 5 fF/µm²; assumed."""


def to_cost(
    cell: GainCell,
    parameters: CostParameters | None = None,
    *,
    mean_pulse: float = MEAN_PULSE,
    mean_phi: float = MEAN_PULSE,
    layout_factor: float = LAYOUT_FACTOR,
    capacitor_f_m2: float = CAPACITOR_F_M2,
) -> CostParameters:
    """Unit numbers of a circuit: read and write energy, area and pulse of its cells; everything else stays.

    The read energies are then the cells' alone. That of the charge-to-pulse circuits behind them is
    `pulse_generator_energy_j`, which stays what it is in `parameters` (0 by default, because the published arrays
    include it): give it where it is known.

    Args:
        cell: the circuit.
        parameters: the other numbers; None: the defaults.
        mean_pulse: mean pulse into the first array, as a fraction of the longest.
        mean_phi: mean pulse into the second.
        layout_factor: area of a laid-out cell ÷ area of its channels.
        capacitor_f_m2: of the capacitor, which lies above the transistors; the larger of the two areas counts.

    Raises:
        ConfigError: one of them is not a positive, finite number.
    """
    for name, value, unit in (
        ("mean_pulse", mean_pulse, "longest pulses"),
        ("mean_phi", mean_phi, "longest pulses"),
        ("layout_factor", layout_factor, "channel areas"),
        ("capacitor_f_m2", capacitor_f_m2, "F/m²"),
    ):
        require_positive(name, value, unit)
    known = parameters or CostParameters()
    channels = sum(t.area_m2 for t in (cell.write, cell.read_n, cell.read_p) if t is not None)
    return replace(
        known,
        read_energy_qk_j=cell.mean_read_energy(mean_pulse),
        read_energy_av_j=cell.mean_read_energy(mean_phi),
        read_pulse_s=cell.pulse_max_s,
        pulse_max_s=cell.pulse_max_s,
        write_energy_j=cell.write_energy(),
        write_latency_s=max(known.write_latency_s, cell.write_pulse_s),
        cell_area_m2=max(layout_factor * channels, cell.capacitance_f / capacitor_f_m2),
    )
