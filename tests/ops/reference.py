"""An independent reference: the ring buffer itself, one token, one slot, one cell at a time, in Python floats.

Written from the table in the design, without anything from `aimc.ops`. Quantities that are drawn by chance come in as
arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Draws:
    """Standard-deviation-scaled draws; each may stay at zero. Slots index the cells, absolute tokens the writes and
    reads."""

    gain: dict = field(default_factory=dict)  # array -> [H_kv, W, D]
    offset_v: dict = field(default_factory=dict)  # array -> [H_kv, W, D]
    log_tau: dict = field(
        default_factory=dict
    )  # array -> [H_kv, W, D], logarithm of each cell's τ over the nominal one
    write_v: dict = field(default_factory=dict)  # array -> [B, H_kv, T, D]
    column_gain_qk: np.ndarray | None = None  # [H_kv, W]
    column_offset_qk: np.ndarray | None = None
    column_gain_av: np.ndarray | None = None  # [H_kv, J, D]
    column_offset_av: np.ndarray | None = None
    read_qk: np.ndarray | None = None  # [B, H, T, T]
    read_av: np.ndarray | None = None  # [B, H, T, J, D]


def at(table, *index):
    return 0.0 if table is None else float(table[index])


def bowed(x: float, c) -> float:
    """The converter's characteristic: a parabola over the straight line, zero at both ends, `inl` of the range high in
    the middle."""
    span = c.v_max - c.v_min
    return x + c.inl * span * (1.0 - (2.0 * (x - c.v_min) / span - 1.0) ** 2)


def convert_da(x: float, c) -> float:
    """A DAC: what the nearest code puts out."""
    return bowed(convert(x, c), c)


def convert_ad(x: float, c) -> float:
    """An ADC: the nearest code of what is measured."""
    return convert(bowed(min(max(x, c.v_min), c.v_max), c), c)


def convert(x: float, c) -> float:
    """Clip, then the nearest of the levels written out one by one."""
    x = min(max(x, c.v_min), c.v_max)
    if c.n_levels is None:
        return x
    if c.coding == "unsigned":
        levels = [c.v_min + i * (c.v_max - c.v_min) / (c.n_levels - 1) for i in range(c.n_levels)]
    elif c.coding == "sign_magnitude":
        m = c.n_levels // 2 - 1
        levels = [i * c.v_max / m for i in range(-m, m + 1)]
    else:
        step = (c.v_max - c.v_min) / (c.n_levels - 1)
        return round(x / step) * step
    return min(levels, key=lambda level: abs(level - x))


class Cells:
    """One array of one head: voltages written in slots, each with the time of its writing."""

    def __init__(self, hw, gain, offset_v, log_tau):
        self.hw, self.gain, self.offset_v, self.log_tau = hw, gain, offset_v, log_tau
        self.slots: list[tuple[int, list[float], bool] | None] = [None] * hw.array.window

    def write(self, t, voltages, write_noise, padding):
        stored = [convert_da(float(v), self.hw.storage_dac) + n for v, n in zip(voltages, write_noise, strict=True)]
        self.slots[t % self.hw.array.window] = (t, stored, padding)

    def charge_per_pulse(self, slot, d, now):
        written, stored, _ = self.slots[slot]
        leakage, rest_v, voltage = self.hw.leakage, self.hw.cell.offset_v, stored[d]
        if leakage.tau_s is not None:
            tau = leakage.tau_s * math.exp(at(self.log_tau, slot, d))
            end = rest_v if leakage.target_v is None else leakage.target_v
            voltage = end + (voltage - end) * math.exp(-(now - written) * leakage.token_time_s / tau)
        u = voltage - rest_v + at(self.offset_v, slot, d)
        return (1.0 + at(self.gain, slot, d)) * sum(c * u**i for i, c in enumerate(self.hw.cell.coefficients))


def pulses_of(fills: dict, digital: dict, hw, score_gain: float) -> tuple[dict, dict, float]:
    """Activation of one query: from fill (S / S_sat) by slot, and by token of the digital memory, to pulses and a final
    factor."""
    if hw.activation == "hard_sigmoid":
        return *({key: min(max(x, 0.0), 1.0) for key, x in part.items()} for part in (fills, digital)), 1.0
    scale = score_gain * hw.array.saturation_qk
    analog = {slot: scale * convert_ad(x, hw.score_adc) for slot, x in fills.items()}
    digital = {s: scale * x for s, x in digital.items()}
    largest = max([*analog.values(), *digital.values()])
    shares, exact = ({key: math.exp(x - largest) for key, x in part.items()} for part in (analog, digital))
    total = sum(shares.values()) + sum(exact.values())
    return {slot: convert_da(x, hw.probability_dac) for slot, x in shares.items()}, exact, 1.0 / total


def ideal(voltage: float, hw) -> float:
    """Charge per unit pulse in the digital memory."""
    if hw.activation == "softmax":
        return hw.cell.coefficients[0] + hw.cell.coefficients[1] * (voltage - hw.cell.offset_v)
    u = convert(voltage, hw.storage_dac) - hw.cell.offset_v
    return sum(c * u**i for i, c in enumerate(hw.cell.coefficients))


def ring_buffer_head(q, k, v, hw, draws: Draws, b: int, h: int, h_kv: int, padding, score_gain=1.0) -> np.ndarray:
    """One head of one sequence, `[T, D]`, token by token."""
    T, D = q.shape
    W, R = hw.array.window, hw.array.rows
    arrays = {
        name: Cells(
            hw,
            *(
                None if name not in table else table[name][h_kv]
                for table in (draws.gain, draws.offset_v, draws.log_tau)
            ),
        )
        for name in ("qk", "av")
    }
    out = np.zeros((T, D))
    for t in range(T):
        for name, x in (("qk", k), ("av", v)):
            noise = [at(draws.write_v.get(name), b, h_kv, t, d) for d in range(D)]
            arrays[name].write(t, x[t], noise, bool(padding[t]))
        if padding[t]:
            continue
        pulse = [convert_da(float(q[t, d]), hw.input_dac) for d in range(D)]
        first_real = next(s for s in range(T) if not padding[s])
        kept = [
            s
            for s in range(t + 1)
            if not padding[s] and (s - first_real < hw.protection.n_sink or t - s < hw.protection.n_recent)
        ]
        fills = {}
        for slot in range(W):
            cell = arrays["qk"].slots[slot]
            if cell is None or cell[2] or cell[0] in kept:
                continue
            S = sum(pulse[d] * arrays["qk"].charge_per_pulse(slot, d, t) for d in range(D))
            S = (
                S * (1.0 + at(draws.column_gain_qk, h_kv, slot))
                + at(draws.column_offset_qk, h_kv, slot) * hw.array.saturation_qk
            )
            S += at(draws.read_qk, b, h, t, cell[0]) * hw.array.saturation_qk
            fills[slot] = S / hw.array.saturation_qk
        exact_pulse = q[t] if hw.activation == "softmax" else [convert(float(x), hw.input_dac) for x in q[t]]
        digital = {s: sum(exact_pulse[d] * ideal(k[s, d], hw) for d in range(D)) / hw.array.saturation_qk for s in kept}
        phi, exact, factor = pulses_of(fills, digital, hw, score_gain)
        for j in range(W // R):
            written = [slot for slot in range(j * R, (j + 1) * R) if arrays["av"].slots[slot] is not None]
            for d in range(D) if written else ():
                A = (
                    sum(phi.get(s, 0.0) * arrays["av"].charge_per_pulse(s, d, t) for s in written)
                    / hw.array.saturation_av
                )
                A = A * (1.0 + at(draws.column_gain_av, h_kv, j, d)) + at(draws.column_offset_av, h_kv, j, d)
                out[t, d] += convert_ad(A + at(draws.read_av, b, h, t, j, d), hw.readout)
        for d in range(D):
            out[t, d] += sum(exact[s] * ideal(v[s, d], hw) for s in kept) / hw.array.saturation_av
            out[t, d] *= factor
    return out


def ring_buffer(q, k, v, hw, draws: Draws | None = None, padding=None, score_gain=None) -> np.ndarray:
    """All heads: q `[B, H, T, D]`, k and v `[B, H_kv, T, D]`, padding `[B, T]` (on one side), score_gain `[H]` → `[B,
    H, T, D]`."""
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    B, H, T, _ = q.shape
    group = H // k.shape[1]
    padding = np.zeros((B, T), dtype=bool) if padding is None else np.asarray(padding)
    gains = [1.0] * H if score_gain is None else [float(g) for g in score_gain]
    heads = [
        [
            ring_buffer_head(
                q[b, h],
                k[b, h // group],
                v[b, h // group],
                hw,
                draws or Draws(),
                b,
                h,
                h // group,
                padding[b],
                gains[h],
            )
            for h in range(H)
        ]
        for b in range(B)
    ]
    return np.array(heads)
