"""A transistor from its measured current-voltage curves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares

from aimc.circuit.errors import CircuitError
from aimc.circuit.physics.transistor import REFERENCE_K, Transistor
from aimc.circuit.typing import FloatArray

BOUNDS = {
    "threshold_v": (-5.0, 5.0),
    "slope_factor": (1.0, 20.0),
    "specific_current_a": (1e-15, 1e-2),
    "power": (1.0, 6.0),
    "channel_length_modulation_per_v": (0.0, 2.0),
}
"""Parameters that curves determine, and how far they may go."""


@dataclass(slots=True, kw_only=True)
class Extraction:
    """A transistor, and how well it follows the data."""

    transistor: Transistor
    """With the fitted parameters; everything else is that of the start."""
    residuals: FloatArray
    """ln(model / data), one a point."""

    @property
    def rms_decades(self) -> float:
        """Root mean square of log10(model / data)."""
        return float(np.sqrt(np.mean(self.residuals**2)) / np.log(10))


def fit_transistor(
    gate_v: ArrayLike,
    drain_v: ArrayLike,
    current_a: ArrayLike,
    *,
    start: Transistor,
    free: tuple[str, ...] = ("threshold_v", "slope_factor", "specific_current_a", "power"),
    temperature_k: float = REFERENCE_K,
) -> Extraction:
    """Least squares of the logarithm of the current, so that weak inversion counts as much as strong. The source is at
    0 V.

    Args:
        gate_v: gate-source voltages in volt, `[N]`, as for an n type.
        drain_v: drain-source voltages in volt, `[N]`, positive.
        current_a: drain currents in ampere, `[N]`, positive; points at the noise floor of the instrument should be left
            out.
        start: width, length, and a first guess of everything else.
        free: which of :data:`BOUNDS` are fitted.
        temperature_k: of the measurement, in kelvin.

    Raises:
        CircuitError: points that cannot be fitted, the message says which row; or parameters that are not among the
            ones that can.
    """
    gate, drain, current = (np.asarray(x, dtype=np.float64) for x in (gate_v, drain_v, current_a))
    _check(gate, drain, current, free)
    begin = replace(start, specific_current_a=start.specific_current() / (start.width_m / start.length_m))
    sign = 1.0 if start.polarity == "n" else -1.0  # a p type conducts at voltages below its source
    log = np.array([name == "specific_current_a" for name in free])
    low, high = (np.array([BOUNDS[name][i] for name in free]) for i in (0, 1))

    def as_variable(x: FloatArray) -> FloatArray:
        return np.where(log, np.log(np.maximum(x, 1e-300)), x)

    def transistor(x: FloatArray) -> Transistor:
        values = np.where(log, np.exp(np.where(log, x, 0.0)), x)
        found: dict[str, Any] = {name: float(v) for name, v in zip(free, np.clip(values, low, high), strict=True)}
        return replace(begin, **found)

    def misses(x: FloatArray) -> FloatArray:
        model = transistor(x).current(sign * gate, 0.0, sign * drain, temperature_k=temperature_k)
        return np.log(np.maximum(np.abs(model), 1e-30) / current)

    first = np.clip([getattr(begin, name) for name in free], low, high)
    bounds = (as_variable(low), as_variable(high))
    inner = np.clip(as_variable(first), bounds[0] + 1e-9, bounds[1] - 1e-9)
    best = least_squares(misses, inner, bounds=bounds, x_scale=np.maximum(np.abs(inner), 0.1), loss="soft_l1")
    return Extraction(transistor=transistor(best.x), residuals=misses(best.x))


def _check(gate: FloatArray, drain: FloatArray, current: FloatArray, free: tuple[str, ...]) -> None:
    unknown = [name for name in free if name not in BOUNDS]
    if unknown:
        raise CircuitError(
            f"free={free}: {', '.join(unknown)} cannot be told from such curves; choose among {', '.join(BOUNDS)}"
        )
    if not (gate.ndim == 1 and gate.shape == drain.shape == current.shape):
        raise CircuitError(
            f"gate_v {gate.shape}, drain_v {drain.shape}, current_a {current.shape}: one of each a point; give lists of"
            " equal length"
        )
    if len(gate) <= len(free):
        raise CircuitError(
            f"{len(gate)} points for {len(free)} parameters: they are not determined; measure more, or fit fewer"
        )
    bad = np.flatnonzero(
        ~(np.isfinite(gate) & np.isfinite(drain) & np.isfinite(current)) | (current <= 0) | (drain <= 0)
    )
    if bad.size:
        row = int(bad[0])
        raise CircuitError(
            f"row {row}: V_G = {gate[row]:g} V, V_D = {drain[row]:g} V, I = {current[row]:g} A; a logarithm needs a"
            " positive, finite current at a positive drain voltage; drop such rows, or change the sign of all"
        )
