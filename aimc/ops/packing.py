"""Hardware as a flat list of numbers: a registered operator takes plain values only, and a compiler guards on each of
them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from aimc.hardware import CODINGS, GRADIENTS, Array, Cell, Converter, Hardware, Leakage, Noise

_NONE = -1.0
"""Stands for None, where no true value is negative."""
_CONVERTERS = ("input_dac", "storage_dac", "readout")
_NOISE = tuple(f.name for f in fields(Noise))


def pack(hardware: Hardware) -> list[float]:
    """Everything that the fused engines compute with: they have the hard sigmoid alone and no protection, so neither is
    packed."""
    cell, leakage, array = hardware.cell, hardware.leakage, hardware.array
    numbers = [float(array.window), float(array.rows), array.saturation_qk, array.saturation_av]
    numbers += [_NONE if leakage.tau_s is None else leakage.tau_s]
    numbers += [_NONE if leakage.token_time_s is None else leakage.token_time_s, leakage.step_latency_s]
    numbers += [_NONE if leakage.target_v is None else leakage.target_v]
    for name in _CONVERTERS:
        converter = getattr(hardware, name)
        levels = _NONE if converter.n_levels is None else float(converter.n_levels)
        numbers += [levels, converter.v_min, converter.v_max, float(CODINGS.index(converter.coding)), converter.inl]
    numbers += [getattr(hardware.noise, name) for name in _NOISE]
    return [
        *numbers,
        cell.supply_v,
        cell.offset_v,
        float(GRADIENTS.index(cell.gradient)),
        cell.surrogate_slope,
        *cell.coefficients,
    ]


def unpack(numbers: Sequence[float]) -> Hardware:
    """The inverse of :func:`pack`."""
    values = iter(numbers)
    window, rows, saturation_qk, saturation_av, tau_s, token_time_s, step_latency_s, target_v = (
        next(values) for _ in range(8)
    )
    converters = {name: _converter(*(next(values) for _ in range(5))) for name in _CONVERTERS}
    noise = Noise(**{name: next(values) for name in _NOISE})
    supply_v, offset_v, gradient, slope = (next(values) for _ in range(4))
    cell = Cell(
        supply_v=supply_v,
        offset_v=offset_v,
        coefficients=list(values),
        gradient=GRADIENTS[int(gradient)],
        surrogate_slope=slope,
    )
    array = Array(window=int(window), rows=int(rows), saturation_qk=saturation_qk, saturation_av=saturation_av)
    times = {"tau_s": _known(tau_s), "token_time_s": _known(token_time_s), "step_latency_s": step_latency_s}
    leakage = Leakage(**times, target_v=_known(target_v))  # type: ignore[arg-type]
    return Hardware(cell=cell, leakage=leakage, array=array, noise=noise, **converters)  # type: ignore[arg-type]


def _known(number: float) -> float | None:
    return None if number == _NONE else number


def _converter(n_levels: float, v_min: float, v_max: float, coding: float, inl: float) -> Converter:
    levels = None if n_levels == _NONE else int(n_levels)
    return Converter(n_levels=levels, v_min=v_min, v_max=v_max, coding=CODINGS[int(coding)], inl=inl)
