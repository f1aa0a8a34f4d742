"""A transistor in all regions of inversion, in a few parameters: the compact model under every circuit of this package.

Sources:
    [EKV] C. Enz, F. Krummenacher, E. Vittoz, "An analytical MOS transistor model valid in all regions of operation and
    dedicated to low-voltage and low-current applications", Analog Integrated Circuits and Signal Processing 8 (1995):
    currents, eq. 1 to 4 here.
    [EV06] C. Enz, E. Vittoz, "Charge-based MOS transistor modeling" (Wiley, 2006), chapter 6: thermal noise.
    [P89] M. Pelgrom, A. Duinmaijer, A. Welbers, "Matching properties of MOS transistors", IEEE JSSC 24 (1989):
    mismatch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from aimc.circuit.typing import FloatArray
from aimc.hardware.checks import check_fields, require, require_choice, require_positive

BOLTZMANN = 1.380649e-23
"""k in J/K, exact since the SI of 2019."""
ELEMENTARY_CHARGE = 1.602176634e-19
"""e in C, exact since the SI of 2019."""
REFERENCE_K = 300.0
"""Temperature at which a transistor's parameters are given, in kelvin."""
POLARITIES = ("n", "p")


def thermal_voltage(temperature_k: float) -> float:
    """U_T = kT/e in volt: 25.85 mV at 300 K."""
    return BOLTZMANN * temperature_k / ELEMENTARY_CHARGE


@dataclass(slots=True, kw_only=True)
class Transistor:
    """One transistor. Currents are positive from drain to source of an n type, and mirrored for a p type.

    Equations, for an n type (all voltages against the body, or of a film without body against any node):
        1. `I = I_s·(F((V_G − V_T − b·V_S)/(n·U_T)) − F((V_G − V_T − b·V_D)/(n·U_T)))·(1 + λ·|V_DS|)`, b = n with a
        body, 1 without 2. `F(v) = ln(1 + exp(v/α))^α`; α = 2 is the EKV interpolation, other α a power law of the
        overdrive (disordered films) 3. `I_s = 2·n·μ·C_ox·U_T²·W/L` with a body, n times that without
        4. `V_T(T) = V_T − k_T·(T − 300 K)`, `μ(T) = μ·(T/300 K)^m`
    """

    width_m: float
    """W, channel width in metre."""
    length_m: float
    """L, channel length in metre."""
    polarity: str = "n"
    """`n` or `p`."""
    threshold_v: float = 0.4
    """V_T in volt, as a positive number for an enhancement transistor of either polarity."""
    slope_factor: float = 1.3
    """n, at least 1: the weak-inversion slope is n·U_T·ln 10 volt per decade."""
    mobility_m2_v_s: float = 0.03
    """μ in m²/(V·s)."""
    oxide_f_m2: float = 0.02
    """C_ox, gate capacitance per area in F/m²."""
    specific_current_a: float | None = None
    """I_s of a transistor with W = L at 300 K, in ampere; None: from mobility and oxide, equation 3."""
    power: float = 2.0
    """α, exponent of the current in the overdrive in strong inversion: 2 for a crystal, more for a disordered film."""
    has_body: bool = True
    """Whether a body terminal exists, so that source and drain count n times more than the gate; False for a thin
    film."""
    channel_length_modulation_per_v: float = 0.0
    """λ in 1/volt; 0: none."""
    threshold_drift_v_k: float = 0.0
    """k_T in volt/kelvin: by how much the threshold falls per kelvin; 0: it does not."""
    mobility_temperature_exponent: float = 0.0
    """m; −1.5 for phonon scattering in silicon, 0: mobility does not change with temperature."""
    pelgrom_threshold_v_m: float = 0.0
    """A_VT in volt·metre: thresholds of two neighbours differ with standard deviation `A_VT/√(W·L)` each [P89]; 0: they
    match."""
    pelgrom_gain_m: float = 0.0
    """A_β in metre: relative spread of the current factor, `A_β/√(W·L)` [P89]; 0: they match."""

    def __post_init__(self) -> None:
        check_fields(self)
        require_choice("polarity", self.polarity, POLARITIES)
        for name, unit in (
            ("width_m", "metres"),
            ("length_m", "metres"),
            ("mobility_m2_v_s", "m²/(V·s)"),
            ("oxide_f_m2", "F/m²"),
        ):
            require_positive(name, getattr(self, name), unit)
        if self.specific_current_a is not None:
            require_positive("specific_current_a", self.specific_current_a, "amperes")
        require(
            self.slope_factor >= 1,
            "slope_factor",
            self.slope_factor,
            "no gate moves the channel by more than itself",
            "use 1 to 2",
        )
        require(
            self.power >= 1,
            "power",
            self.power,
            "the current would not rise with the overdrive as any channel's does",
            "2 is usual",
        )
        for name in ("channel_length_modulation_per_v", "pelgrom_threshold_v_m", "pelgrom_gain_m"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "it is not negative", "0 switches it off")

    @property
    def area_m2(self) -> float:
        """W·L in m²."""
        return self.width_m * self.length_m

    @property
    def gate_f(self) -> float:
        """Capacitance of the gate over its channel in farad."""
        return self.oxide_f_m2 * self.area_m2

    @property
    def threshold_spread_v(self) -> float:
        """Standard deviation of the threshold in volt, Pelgrom's law."""
        return self.pelgrom_threshold_v_m / math.sqrt(self.area_m2)

    @property
    def gain_spread(self) -> float:
        """Relative standard deviation of the current factor, Pelgrom's law."""
        return self.pelgrom_gain_m / math.sqrt(self.area_m2)

    def specific_current(self, temperature_k: float = REFERENCE_K) -> float:
        """I_s in ampere, equation 3, of this width and length."""
        ratio, relative = self.width_m / self.length_m, temperature_k / REFERENCE_K
        mobility_factor = relative**self.mobility_temperature_exponent
        if self.specific_current_a is not None:
            return self.specific_current_a * ratio * relative**2 * mobility_factor
        n = self.slope_factor if self.has_body else self.slope_factor**2
        return (
            2
            * n
            * self.mobility_m2_v_s
            * mobility_factor
            * self.oxide_f_m2
            * thermal_voltage(temperature_k) ** 2
            * ratio
        )

    def current(
        self,
        gate_v: ArrayLike,
        source_v: ArrayLike,
        drain_v: ArrayLike,
        *,
        body_v: float = 0.0,
        temperature_k: float = REFERENCE_K,
    ) -> FloatArray:
        """Drain current in ampere, equation 1.

        Args:
            gate_v: gate voltage in volt; with `source_v` and `drain_v` of shapes that broadcast.
            source_v: source voltage in volt.
            drain_v: drain voltage in volt.
            body_v: body voltage in volt, which thin films do not have.
            temperature_k: temperature in kelvin.

        Returns:
            Positive where it flows from drain to source of an n type (`drain_v > source_v`); a p type is its mirror
            image, so its current is negative where `drain_v < source_v`. Exchanging source and drain changes the sign
            alone.
        """
        sign, gate, source, drain = self._mirrored(gate_v, source_v, drain_v, body_v)
        scale = sign * self.specific_current(temperature_k) * self._modulation(source, drain)
        forward, reverse = (self._drive(gate, v, temperature_k) for v in (source, drain))
        return scale * (_interpolation(forward, self.power) - _interpolation(reverse, self.power))

    def conductances(
        self,
        gate_v: ArrayLike,
        source_v: ArrayLike,
        drain_v: ArrayLike,
        *,
        body_v: float = 0.0,
        temperature_k: float = REFERENCE_K,
    ) -> tuple[FloatArray, FloatArray]:
        """Transconductance ∂I/∂V_G and output conductance ∂I/∂V_D in siemens; arguments as for :meth:`current`."""
        _, gate, source, drain = self._mirrored(gate_v, source_v, drain_v, body_v)
        unit = self.specific_current(temperature_k)
        per_v = 1 / (self.slope_factor * thermal_voltage(temperature_k))
        forward, reverse = (self._drive(gate, v, temperature_k) for v in (source, drain))
        slope_forward, slope_reverse = (_interpolation_slope(v, self.power) for v in (forward, reverse))
        modulation = self._modulation(source, drain)
        channel = _interpolation(forward, self.power) - _interpolation(reverse, self.power)
        of_gate = unit * per_v * modulation * (slope_forward - slope_reverse)
        bend = self.channel_length_modulation_per_v * np.sign(drain - source) * channel
        of_drain = unit * (per_v * self._weight * modulation * slope_reverse + bend)
        return of_gate, of_drain

    def noise_density(
        self,
        gate_v: ArrayLike,
        source_v: ArrayLike,
        drain_v: ArrayLike,
        *,
        body_v: float = 0.0,
        temperature_k: float = REFERENCE_K,
    ) -> FloatArray:
        """White noise of the channel current in A²/Hz (one-sided); arguments as for :meth:`current`.

        `S = 4kT·(b·I_s/(n·U_T))·q`, with the inversion charge `q = (4q_s² + 3q_s + 4q_s·q_d + 3q_d + 4q_d²)/(6(q_s +
        q_d + 1))` of charge densities `q_s, q_d = F'` at the two ends, so that without a drain voltage it is the 4kT·g
        of the channel as a resistor [EV06]. With a body it is the shot noise 2eI in weak inversion and saturation
        (2eI/n in a film, whose n comes from traps), in strong inversion the thermal noise 4kT·(2/3)·g_ms; between them
        there is one noise, not a sum of two. Flicker noise is not part of it.
        """
        _, gate, source, drain = self._mirrored(gate_v, source_v, drain_v, body_v)
        q_s, q_d = (_interpolation_slope(self._drive(gate, v, temperature_k), self.power) for v in (source, drain))
        charge = (4 * q_s**2 + 3 * q_s + 4 * q_s * q_d + 3 * q_d + 4 * q_d**2) / (6 * (q_s + q_d + 1))
        conductance = (
            self._weight / self.slope_factor * self.specific_current(temperature_k) / thermal_voltage(temperature_k)
        )
        return 4 * BOLTZMANN * temperature_k * conductance * charge

    @property
    def _weight(self) -> float:
        """b: how much more than the gate the ends of the channel count."""
        return self.slope_factor if self.has_body else 1.0

    def _mirrored(
        self, gate_v: ArrayLike, source_v: ArrayLike, drain_v: ArrayLike, body_v: float
    ) -> tuple[float, FloatArray, FloatArray, FloatArray]:
        """As an n type sees it, against its body."""
        sign = 1.0 if self.polarity == "n" else -1.0
        body = body_v if self.has_body else 0.0
        gate, source, drain = (sign * (np.asarray(v, dtype=np.float64) - body) for v in (gate_v, source_v, drain_v))
        return sign, gate, source, drain

    def _drive(self, gate: FloatArray, end: FloatArray, temperature_k: float) -> FloatArray:
        threshold = self.threshold_v - self.threshold_drift_v_k * (temperature_k - REFERENCE_K)
        return (gate - threshold - self._weight * end) / (self.slope_factor * thermal_voltage(temperature_k))

    def _modulation(self, source: FloatArray, drain: FloatArray) -> FloatArray:
        return 1 + self.channel_length_modulation_per_v * np.abs(drain - source)


def _interpolation(v: FloatArray, power: float) -> FloatArray:
    """F of equation 2: exp(v) far below zero, (v/α)^α far above."""
    return np.logaddexp(0, v / power) ** power


def _interpolation_slope(v: FloatArray, power: float) -> FloatArray:
    """dF/dv."""
    return np.logaddexp(0, v / power) ** (power - 1) / (1 + np.exp(-np.clip(v / power, -700, 700)))
