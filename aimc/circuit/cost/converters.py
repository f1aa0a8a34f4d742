"""Steps of converters: what their energy, time and pulses are counted in."""

from __future__ import annotations

import math

from aimc.circuit.cost.parameters import CostParameters
from aimc.hardware import ConfigError, Converter, Hardware


def longest_pulses(hardware: Hardware, parameters: CostParameters) -> tuple[float, float]:
    """Longest pulses into the first and into the second array, in second; the same twice where there is no second.

    Raises:
        ConfigError: a converter has no level count.
    """
    first_s = converter_steps(hardware.input_dac, "input_dac") * parameters.clock_s
    if hardware.activation == "softmax":
        return first_s, converter_steps(hardware.probability_dac, "probability_dac") * parameters.clock_s
    if hardware.activation == "pruned_softmax":
        return first_s, first_s
    return first_s, parameters.pulse_max_s


def converter_steps(converter: Converter, name: str) -> int:
    """Steps of a converter's longest pulse, count or voltage: levels − 1; where a sign is a polarity, those of the
    longer side alone, which sign and magnitude share evenly.

    Args:
        converter: with a level count.
        name: its field in `Hardware`, for the message.

    Raises:
        ConfigError: it has no level count.
    """
    levels = levels_of(converter, name)
    if converter.v_min >= 0:
        return levels - 1
    if converter.coding != "unsigned":
        return max(1, levels // 2 - 1)
    longer = max(-converter.v_min, converter.v_max) / (converter.v_max - converter.v_min)
    return max(1, math.ceil((levels - 1) * longer - 1e-9))


def levels_of(converter: Converter, name: str) -> int:
    """How many, as :func:`converter_steps` asks for them."""
    if converter.n_levels is None:
        raise ConfigError(
            f"hardware.{name}.n_levels=None: an ideal converter has no steps, so its energy and time are not defined; "
            "give it levels, or start from aimc.presets.gain_cell_cmos()"
        )
    return converter.n_levels
