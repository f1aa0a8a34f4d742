"""Cells to start from: sizes and constants of two technologies, each number with its source. Change any with
`dataclasses.replace`.

Neither is a foundry's model. They are textbook values of the class of process named, sized so that read energy,
retention and curvature are those that N. Leroux et al., Nature Computational Science (2025), published for whole arrays
([L25], see :mod:`aimc.presets`).
"""

from __future__ import annotations

from aimc.circuit.physics.gain_cell import GainCell
from aimc.circuit.physics.transistor import Transistor
from aimc.hardware import presets

VACUUM_F_M = 8.8541878128e-12
"""ε_0 in F/m."""
SUPPLY_V = 0.9
"""V_DD of [L25]."""


def _silicon(polarity: str, width_m: float, length_m: float, mobility_m2_v_s: float) -> Transistor:
    """A 28-nm-class transistor of regular threshold.

    Oxide 1.7 nm of SiO₂ (equivalent, inverted); slope factor, threshold and its drift: usual of the class (C. Enz, E.
    Vittoz, 2006, table 2.2 and its scaling); A_VT = 2 mV·µm and A_β = 1 %·µm: M. Pelgrom, "Analog-to-digital
    conversion", chapter on matching.
    """
    return Transistor(
        width_m=width_m,
        length_m=length_m,
        polarity=polarity,
        threshold_v=0.348,
        slope_factor=1.35,
        mobility_m2_v_s=mobility_m2_v_s,
        oxide_f_m2=3.9 * VACUUM_F_M / 1.7e-9,
        channel_length_modulation_per_v=0.1,
        threshold_drift_v_k=0.7e-3,
        mobility_temperature_exponent=-1.5,
        pelgrom_threshold_v_m=2e-9,
        pelgrom_gain_m=1e-8,
    )


def silicon_cell() -> GainCell:
    """A push-pull gain cell in silicon CMOS.

    Assumptions: read transistors long and of equal strength (electrons move three times as well as holes), which makes
        the current zero at half the
    supply; 6 fF; a thick-oxide write transistor, driven 0.9 V above the supply and shut at −0.3 V; junctions and
    tunnelling as one conductance, chosen for the published retention of 5 ms [L25].
    """
    capacitance_f = 6e-15
    write = Transistor(
        width_m=0.1e-6,
        length_m=0.1e-6,
        threshold_v=0.5,
        slope_factor=1.35,
        mobility_m2_v_s=0.025,
        oxide_f_m2=3.9 * VACUUM_F_M / 2.8e-9,
        threshold_drift_v_k=0.7e-3,
        mobility_temperature_exponent=-1.5,
        pelgrom_threshold_v_m=3e-9,
    )
    return GainCell(
        supply_v=SUPPLY_V,
        capacitance_f=capacitance_f,
        write=write,
        read_n=_silicon("n", 0.08e-6, 0.7e-6, 0.024),
        read_p=_silicon("p", 0.24e-6, 0.7e-6, 0.008),
        read_v=SUPPLY_V,
        pulse_max_s=presets.LONGEST_PULSE_S,
        write_pulse_s=5e-9,
        write_gate_on_v=2 * SUPPLY_V,
        write_gate_off_v=-0.3,
        leak_conductance_s=capacitance_f / presets.CMOS_TAU_S,
        read_line_time_s=0.05e-9,
        line_f=20e-15,
    )


def oxide_cell() -> GainCell:
    """A two-transistor gain cell in indium-gallium-zinc oxide (IGZO), n type only, read against a reference.

    Mobility 10 cm²/(V·s), 8 nm of HfO₂ (relative permittivity 22) and a current that rises a little faster than the
    square of the overdrive: T. Kamiya, K. Nomura, H. Hosono, Science and Technology of Advanced Materials 11 (2010).
        Assumptions: slope factor 1.5, matching as of silicon of
    twice the oxide, 1.2 V of storage range; leakage as one conductance, for the retention that [L25] names for oxides,
    seconds.
    """
    capacitance_f, supply_v = 2e-15, 1.2

    def film(width_m: float, length_m: float, threshold_v: float) -> Transistor:
        return Transistor(
            width_m=width_m,
            length_m=length_m,
            threshold_v=threshold_v,
            slope_factor=1.5,
            mobility_m2_v_s=1e-3,
            oxide_f_m2=22 * VACUUM_F_M / 8e-9,
            power=2.2,
            has_body=False,
            pelgrom_threshold_v_m=4e-9,
            pelgrom_gain_m=2e-8,
        )

    return GainCell(
        supply_v=supply_v,
        capacitance_f=capacitance_f,
        write=film(0.1e-6, 0.1e-6, 0.7),
        read_n=film(0.1e-6, 0.3e-6, 0.2),
        read_v=1.0,
        pulse_max_s=presets.LONGEST_PULSE_S,
        write_pulse_s=20e-9,
        write_gate_on_v=2.5,
        write_gate_off_v=-0.8,
        leak_conductance_s=capacitance_f / presets.IGZO_TAU_S,
        read_line_time_s=0.05e-9,
        line_f=20e-15,
    )
