"""A gain cell: write transistor, storage capacitor, and a read stage that turns the stored voltage into a signed
current.

Sources: [S14] W. Sansen, analog design basics (kT/C, integrated noise); [P89] and [EV06] as in
:mod:`aimc.circuit.physics.transistor`. The push-pull read stage, the pulsed read lines and the virtual ground of the
bit line follow N. Leroux et al., Nature Computational Science (2025); transistor sizes were not published.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import nnls

from aimc.circuit.physics.transistor import BOLTZMANN, REFERENCE_K, Transistor
from aimc.circuit.typing import FloatArray
from aimc.hardware.checks import check_fields, require, require_positive


@dataclass(slots=True, kw_only=True)
class GainCell:
    """One gain cell, its bias and its timing.

    The bit line is a virtual ground. With `read_p` the stage is push-pull: the n transistor stands between the bit line
        and a line
    `read_v/2` below it, the p transistor between the bit line and a line `read_v/2` above it, both gates at the stored
    voltage; their currents cancel near half the supply. Without `read_p` the n transistor stands between ground and
    `read_v`, and the current that it has at the rest voltage is subtracted; that reference is shared by many columns,
    so its own noise, mismatch and energy are not counted. Between pulses `read_v` is zero and nothing flows.
    """

    supply_v: float
    """V_DD in volt: voltages from 0 to V_DD are stored."""
    capacitance_f: float
    """C, all capacitance of the storage node in farad, the gates of the read stage included."""
    write: Transistor
    """Between the write bit line and the storage node."""
    read_n: Transistor
    """Of the read stage; its gate is the storage node."""
    read_p: Transistor | None = None
    """The complementary one; None: n type only, with a reference."""
    read_v: float
    """Height of the read pulse in volt."""
    pulse_max_s: float
    """T_max, longest read pulse in second."""
    write_pulse_s: float
    """How long a write lasts in second."""
    write_gate_on_v: float
    """Gate of the write transistor while it writes, in volt: above V_DD + V_T for an n type to pass V_DD."""
    write_gate_off_v: float = 0.0
    """Gate of the write transistor while the cell holds, in volt; below 0 to shut it at a stored 0 V."""
    hold_v: float | None = None
    """Write bit line while the cell holds, in volt; None: the rest voltage."""
    leak_conductance_s: float = 0.0
    """Junction and gate-tunnelling leakage of the storage node as one conductance in siemens; 0: the write transistor
    alone leaks."""
    leak_target_v: float | None = None
    """Voltage that this conductance pulls to; None: the rest voltage."""
    read_line_time_s: float = 0.0
    """RC of the read line in second: a pulse loses about that much at its rising edge, and a short one more; 0: ideal
    edges."""
    line_f: float = 0.0
    """Capacitance of the whole write bit line of a feature in farad, which every write swings; costs energy; 0:
    none."""
    temperature_k: float = REFERENCE_K
    """Temperature in kelvin."""

    def __post_init__(self) -> None:
        check_fields(self)
        units = {"supply_v": "volts", "read_v": "volts", "pulse_max_s": "seconds", "write_pulse_s": "seconds"}
        for name, unit in (units | {"capacitance_f": "farads", "temperature_k": "kelvins"}).items():
            require_positive(name, getattr(self, name), unit)
        for name in ("leak_conductance_s", "read_line_time_s", "line_f"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "it is not negative", "0 switches it off")
        require(
            self.read_n.polarity == "n",
            "read_n.polarity",
            self.read_n.polarity,
            "it pulls the bit line down",
            "use an n type",
        )
        if self.read_p is not None:
            require(
                self.read_p.polarity == "p",
                "read_p.polarity",
                self.read_p.polarity,
                "it pulls the bit line up",
                "use a p type, or None",
            )
        gates_f = self.read_n.gate_f + (0.0 if self.read_p is None else self.read_p.gate_f)
        require(
            self.capacitance_f >= gates_f,
            "capacitance_f",
            self.capacitance_f,
            f"the gates of the read stage alone have {gates_f:.3g} F",
            "make the capacitor larger or the read transistors smaller",
        )

    @property
    def rest_v(self) -> float:
        """V_o, half the supply, in volt."""
        return self.supply_v / 2

    def branch_currents(self, stored_v: ArrayLike, read_v: ArrayLike | None = None) -> tuple[FloatArray, FloatArray]:
        """What the two branches of the read stage carry, in ampere, not negative for a positive pulse.

        Args:
            stored_v: stored voltages in volt; broadcast with `read_v`.
            read_v: heights of the pulse in volt; None: the cell's own.

        Returns:
            Current of the n transistor, and of the p transistor or the reference.
        """
        height = np.asarray(self.read_v if read_v is None else read_v, dtype=np.float64)
        sink, *source = (transistor.current(**bias) for transistor, bias in self._branches(stored_v, height))
        if source:
            return sink, -source[0]
        (transistor, bias), *_ = self._branches(self.rest_v, height)
        return sink, transistor.current(**bias)

    def _branches(self, stored_v: ArrayLike, height: ArrayLike) -> list[tuple[Transistor, dict[str, Any]]]:
        """The transistors of the read stage, each with its bias under a pulse of so many volt."""
        stored, pulse = np.asarray(stored_v, dtype=np.float64), np.asarray(height, dtype=np.float64)
        common = {"gate_v": stored, "temperature_k": self.temperature_k}
        if self.read_p is None:
            return [(self.read_n, common | {"source_v": 0.0, "drain_v": pulse})]
        common["drain_v"] = self.rest_v
        low, high = self.rest_v - pulse / 2, self.rest_v + pulse / 2
        return [
            (self.read_n, common | {"source_v": low}),
            (self.read_p, common | {"source_v": high, "body_v": self.supply_v}),
        ]

    def read_current(self, stored_v: ArrayLike, read_v: ArrayLike | None = None) -> FloatArray:
        """Signed current of the cell in ampere, positive above rest; arguments as for :meth:`branch_currents`."""
        sink, source = self.branch_currents(stored_v, read_v)
        return sink - source

    def effective_width(self, width_s: ArrayLike) -> FloatArray:
        """How long a pulse of `width_s` second acts: `t − τ_line·(1 − exp(−t/τ_line))`, its rising edge being a line of
        one time constant.

        The tail after the pulse is not integrated: the charge is taken when the pulse ends.
        """
        width = np.asarray(width_s, dtype=np.float64)
        if self.read_line_time_s == 0:
            return width
        return width + self.read_line_time_s * np.expm1(-width / self.read_line_time_s)

    def read_charge(self, stored_v: ArrayLike, width_s: ArrayLike | None = None) -> FloatArray:
        """Signed charge in coulomb that a pulse of `width_s` second takes from the bit line; None: the longest
        pulse."""
        return self.read_current(stored_v) * self.effective_width(self.pulse_max_s if width_s is None else width_s)

    def transconductance(self, stored_v: ArrayLike) -> FloatArray:
        """∂(read current)/∂(stored voltage) in siemens."""
        of_n, of_p = self.branch_conductances(stored_v)
        return of_n + of_p

    def branch_conductances(self, stored_v: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """The transconductances of the two branches in siemens; 0 of a reference."""
        of_n, *of_p = (transistor.conductances(**bias)[0] for transistor, bias in self._branches(stored_v, self.read_v))
        return of_n, of_p[0] if of_p else np.zeros_like(of_n)

    def read_energy(self, stored_v: ArrayLike, width_s: ArrayLike | None = None) -> FloatArray:
        """Energy of one read of one cell in joule: the supply delivers the larger branch current (push-pull), or the
        cell's own at `read_v`."""
        sink, source = self.branch_currents(stored_v)
        power = self.read_v * sink if self.read_p is None else self.supply_v * np.maximum(sink, source)
        return power * np.asarray(self.pulse_max_s if width_s is None else width_s, dtype=np.float64)

    def mean_read_energy(self, mean_pulse: float = 0.5) -> float:
        """Energy of a read in joule, over evenly spread stored voltages and pulses whose mean is `mean_pulse` of the
        longest."""
        return mean_pulse * float(np.mean(self.read_energy(self.stored_grid())))

    def write_energy(self) -> float:
        """Mean energy of one write in joule: `(C + C_line)·V_DD²/6` for independent, evenly spread old and new
        voltages, of which half rise by V_DD/3 on average, and `C_gate·ΔV²` for the gate of the write transistor."""
        swing = self.write_gate_on_v - self.write_gate_off_v
        return (self.capacitance_f + self.line_f) * self.supply_v**2 / 6 + self.write.gate_f * swing**2

    def read_noise_charge(self, stored_v: ArrayLike, width_s: float | None = None) -> FloatArray:
        """Standard deviation in coulomb of the charge of one read, from the noise of its channels: `√(S·t/2)` of a
        white density S [S14]."""
        density = sum(transistor.noise_density(**bias) for transistor, bias in self._branches(stored_v, self.read_v))
        return np.sqrt(density * (self.pulse_max_s if width_s is None else width_s) / 2)

    def mean_read_noise(self) -> float:
        """Root mean square of :meth:`read_noise_charge` in coulomb, over evenly spread stored voltages, for the longest
        pulse."""
        return float(np.sqrt(np.mean(self.read_noise_charge(self.stored_grid()) ** 2)))

    def write_noise(self) -> float:
        """√(kT/C) in volt: what is left on the capacitor when the write transistor opens [S14]."""
        return math.sqrt(BOLTZMANN * self.temperature_k / self.capacitance_f)

    def current_spread(self, stored_v: ArrayLike) -> FloatArray:
        """Standard deviation of the read current from cell to cell in ampere: thresholds and current factors of the
        branches [P89]."""
        sink, source = self.branch_currents(stored_v)
        of_n, of_p = self.branch_conductances(stored_v)
        variance = (of_n * self.read_n.threshold_spread_v) ** 2 + (sink * self.read_n.gain_spread) ** 2
        if self.read_p is not None:
            variance = variance + (of_p * self.read_p.threshold_spread_v) ** 2 + (source * self.read_p.gain_spread) ** 2
        return np.sqrt(variance)

    def mismatch(self) -> tuple[float, float]:
        """Relative spread of the charge, and spread of the rest voltage in volt, that come nearest to
        :meth:`current_spread` over the whole range.

        The emulator's cell has one gain error g and one offset δ, so its current varies by `g²·I² + δ²·(∂I/∂V)²`; g²
        and δ² are the non-negative least-squares fit of that to the circuit's variance. Two numbers cannot tell
        branches that match differently apart: in the silicon cell of :mod:`aimc.circuit.physics.technology` they are
        off by a quarter of the largest spread at worst.
        """
        stored = self.stored_grid()
        parts = np.stack([self.read_current(stored) ** 2, self.transconductance(stored) ** 2], axis=1)
        scale = parts.max(axis=0)
        variance = self.current_spread(stored) ** 2
        unit = float(variance.max()) or 1.0
        (gain, offset), _ = nnls(parts / scale, variance / unit)
        return math.sqrt(gain * unit / scale[0]), math.sqrt(offset * unit / scale[1])

    def stored_grid(self, n_points: int = 91) -> FloatArray:
        """Evenly spaced stored voltages from 0 to V_DD in volt, `[n_points]`."""
        return np.linspace(0.0, self.supply_v, n_points)
