"""Ranges that physical quantities have on any machine of this kind; what is outside is a slip of a unit or of a key."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from .errors import RunError

_FRACTION, _VOLT, _CHARGE, _LEVELS = (0, 10, ""), (0, 10, " V"), (1e-9, 1e9, " signal units"), (2, 2**24, "")
_ANY = (-1e12, 1e12, "")
"""Of a quantity that is not listed."""
NOISE = {
    "write_v": _VOLT,
    "mismatch_offset_v": _VOLT,
    **dict.fromkeys(("read_qk", "read_av", "mismatch_gain", "column_gain", "column_offset", "tau_spread"), _FRACTION),
}
PLAUSIBLE: dict[str, tuple[float, float, str]] = {
    "hardware.cell.supply_v": (0.01, 100, " V"),
    "hardware.cell.coefficients": (-1e9, 1e9, " signal units per power of a volt"),
    "hardware.cell.surrogate_slope": (1e-9, 1e9, " signal units per volt"),
    "hardware.leakage.tau_s": (1e-9, 1e12, " s"),
    "hardware.leakage.token_time_s": (1e-15, 1e4, " s"),
    "hardware.leakage.step_latency_s": (1e-15, 1e4, " s"),
    "hardware.array.window": (1, 2**24, " tokens"),
    "hardware.array.rows": (1, 2**24, " tokens"),
    "hardware.array.saturation_qk": _CHARGE,
    "hardware.array.saturation_av": _CHARGE,
    **{
        f"hardware.{converter}.n_levels": _LEVELS
        for converter in ("input_dac", "storage_dac", "readout", "score_adc", "probability_dac")
    },
    **{f"{place}.{name}": limits for place in ("hardware.noise", "nonideality") for name, limits in NOISE.items()},
}
"""Least, most and unit, by a field's place in a config. Off is None or 0, which is always allowed."""


def require_plausible(config: Any) -> None:
    """Check the physical quantities of a config, unless its `implausible` is set.

    Raises:
        RunError: one is outside its range; the message begins with its place.
    """
    if config.implausible:
        return
    for part in ("hardware", "nonideality"):
        if hasattr(config, part):
            _walk(getattr(config, part), part)


def _walk(node: Any, place: str) -> None:
    for item in fields(node):
        value, name = getattr(node, item.name), f"{place}.{item.name}"
        if is_dataclass(value):
            _walk(value, name)
            continue
        least, most, unit = PLAUSIBLE.get(name, _ANY)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, (int, float)) and number and not least <= number <= most:
                raise RunError(
                    f"{name}={number:g}: no machine of this kind has that (from {least:g} to {most:g}{unit}); check the"
                    " unit, or set implausible=true where it is meant"
                )
