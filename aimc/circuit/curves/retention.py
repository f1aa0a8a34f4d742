"""Retention traces in, a time constant out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares

from aimc.circuit.errors import CircuitError
from aimc.circuit.typing import FloatArray


@dataclass(slots=True, kw_only=True)
class RetentionFit:
    """`V(t) = V_t + (V_0 − V_t)·exp(−(t/τ)^β)`, one τ, β and V_t for all traces, each with its own start V_0."""

    tau_s: float
    """τ in second."""
    target_v: float
    """V_t, what the cells relax to, in volt."""
    stretch: float
    """β; 1 is the exponential that the emulator computes with."""
    rms_v: float
    """Root mean square of what the fit misses, in volt."""
    max_error_v: float
    """The most that it misses, in volt."""
    max_error_lsb: float | None
    """The same in steps between storage levels; None where no level count was given."""
    tau_error_s: float
    """Standard error of τ in second, for independent errors of equal size."""


def fit_retention(
    times_s: ArrayLike,
    traces_v: ArrayLike,
    *,
    target_v: float | None = None,
    stretched: bool = False,
    n_levels: int | None = None,
    span_v: float | None = None,
) -> RetentionFit:
    """Least squares over all traces at once; the starts are part of the fit.

    Args:
        times_s: `[N]`, in second, from 0, rising.
        traces_v: `[N]` or `[M, N]`, in volt.
        target_v: V_t, if it is known; None: fitted.
        stretched: whether β is fitted too; a single trap level or a junction gives 1, a spread of them less.
        n_levels: storage levels, to state the error in steps; None: do not.
        span_v: range that the levels divide, in volt; None: the range of the traces.

    Raises:
        CircuitError: traces that cannot be fitted; the message says which row.
    """
    times, traces = np.asarray(times_s, dtype=np.float64), np.atleast_2d(np.asarray(traces_v, dtype=np.float64))
    _check_traces(times, traces)
    drop = np.abs(traces[:, -1] - traces[:, 0])
    guess_target = float(np.mean(traces[:, -1])) if target_v is None else target_v
    distance = np.abs(traces[:, 0] - guess_target).max()
    guess_tau = times[-1] * max(distance / max(drop.max(), 1e-15), 0.2)
    scale = max(float(np.ptp(traces)), 1e-12)

    def unpack(x: FloatArray) -> tuple[float, float, float, FloatArray]:
        tau, rest = times[-1] * np.exp(x[0]), x[1:]
        beta = float(rest[0]) if stretched else 1.0
        rest = rest[1:] if stretched else rest
        known = target_v is not None
        return float(tau), beta, (target_v if known else float(rest[0])), (rest if known else rest[1:])  # type: ignore[return-value]

    def model(x: FloatArray) -> FloatArray:
        tau, beta, target, starts = unpack(x)
        return target + (starts[:, None] - target) * np.exp(-((times / tau) ** beta))

    x0 = [
        np.log(guess_tau / times[-1]),
        *([1.0] if stretched else []),
        *([] if target_v is not None else [guess_target]),
        *traces[:, 0],
    ]
    best = least_squares(
        lambda x: (model(x) - traces).ravel() / scale, x0, xtol=1e-14, ftol=1e-14, gtol=1e-14, x_scale="jac"
    )
    tau, beta, target, _ = unpack(best.x)
    errors = model(best.x) - traces
    step = None if n_levels is None else (float(np.ptp(traces)) if span_v is None else span_v) / (n_levels - 1)
    largest = float(np.abs(errors).max())
    return RetentionFit(
        tau_s=tau,
        target_v=target,
        stretch=beta,
        rms_v=float(np.sqrt(np.mean(errors**2))),
        max_error_v=largest,
        max_error_lsb=None if step is None else largest / step,
        tau_error_s=tau * _standard_error(best.jac, best.fun),
    )


def _standard_error(jacobian: FloatArray, residuals: FloatArray) -> float:
    """Of the first parameter, from the curvature of the sum of squares."""
    freedom = max(len(residuals) - jacobian.shape[1], 1)
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * float(residuals @ residuals) / freedom
    return float(np.sqrt(max(covariance[0, 0], 0.0)))


def _check_traces(times: FloatArray, traces: FloatArray) -> None:
    if times.ndim != 1 or traces.ndim != 2 or traces.shape[1] != len(times):
        raise CircuitError(
            f"times_s has shape {times.shape} and traces_v {traces.shape}: each trace has one voltage a time; give [N]"
            " and [M, N]"
        )
    if len(times) < 4:
        raise CircuitError(f"{len(times)} times: a time constant and a target need at least 4; measure more")
    falling = np.flatnonzero(np.diff(times) <= 0)
    if times[0] < 0 or falling.size:
        row = int(falling[0]) + 1 if falling.size else 0
        raise CircuitError(
            f"row {row}: time {times[row]:g} s does not follow the one before; sort the rows by time, from the write on"
        )
    bad = np.argwhere(~np.isfinite(traces))
    if bad.size:
        raise CircuitError(f"trace {bad[0][0]}, row {bad[0][1]} is not finite; drop such rows")
    if np.ptp(traces, axis=1).max() == 0:
        raise CircuitError(
            "no trace changes: the cell does not leak in this time; measure longer, or use Leakage(tau_s=None)"
        )
