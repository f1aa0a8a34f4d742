"""What each deterministic effect costs: perplexity with one switched off at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from torch import Tensor
from transformers import PreTrainedModel

from aimc.evaluate.converters import OF_NORMALISER, converter_at, with_converter, without_levels
from aimc.evaluate.measurement import Measurement, MeasurementFields, measurement_of
from aimc.evaluate.perplexity import Perplexity, perplexity
from aimc.hardware import Converter, Hardware, Noise, Protection
from aimc.models.arrays import hardware_of, set_hardware

LEVELS = {
    "input_dac": "input levels",
    "storage_dac": "storage levels",
    "readout": "readout levels",
    OF_NORMALISER: "normaliser levels",
    "score_adc": "score levels",
    "probability_dac": "probability levels",
}
"""Converter to the row in which it has no levels."""
BETWEEN = ("score_adc", "probability_dac")
"""Those of a softmax, whose rows come last."""


def ablation(
    model: PreTrainedModel,
    tokens: Tensor,
    measurement: Measurement | None = None,
    **fields: Unpack[MeasurementFields],
) -> dict[str, Perplexity]:
    """Perplexity of a converted model with one deterministic effect switched off at a time, weights unchanged.

    It says what an effect costs a model that was trained with it, which is less than what it costs in training. The
    rows `age compensation` and `protection`, where the hardware has them, say what is bought by these.

    Args:
        model: converted.
        tokens: int64 `[N]`.
        measurement: as for :func:`aimc.perplexity`; the gain cells are without noise, so several chips matter only on
            static tiles.
        fields: of the measurement, in place of its own.

    Returns:
        Rows by name: `all effects`, then each effect that is off.
    """
    measurement = measurement_of(measurement, fields)
    original = hardware_of(model)
    rows = {}
    try:
        for name, hardware in _without_each(original).items():
            set_hardware(model, hardware)
            rows[name] = perplexity(model, tokens, measurement, nonideality=Noise())
    finally:
        set_hardware(model, original)
    return rows


def _without_each(hardware: Hardware) -> dict[str, Hardware]:
    """The hardware, and copies in which one effect is off."""
    leakage, pruned = hardware.leakage, hardware.activation == "pruned_softmax"
    used = _converters(hardware)
    straight = {name: replace(converter, inl=0.0) for name, converter in used.items()}
    rows = {"all effects": hardware}
    for name, row in LEVELS.items():
        if name in used and name not in BETWEEN:
            rows[row] = with_converter(hardware, name, without_levels(used[name]))
    if not pruned:  # it reads no second array
        rows |= _without_tiles(hardware, straight["readout"])
    rows["leakage"] = replace(hardware, leakage=replace(leakage, tau_s=None))
    # Effects that most hardware does not have
    if leakage.tau_s is not None and leakage.target_v not in (None, hardware.cell.offset_v):
        rows["leak target"] = replace(hardware, leakage=replace(leakage, target_v=None))
    if straight != used:
        unbent = hardware
        for name, converter in straight.items():
            unbent = with_converter(unbent, name, converter)
        rows["converter INL"] = unbent
    # Features, levels at equal charge and full scales per head are not among them: scalers, gains and ranges are
    # calibrated for them, so that without them a row would show a badly calibrated model, not what they buy.
    if leakage.tau_s is not None and leakage.compensate:
        rows["age compensation"] = replace(hardware, leakage=replace(leakage, compensate=False))
    if hardware.protection.is_on:
        rows["protection"] = replace(hardware, protection=Protection())
    return rows | {
        LEVELS[name]: with_converter(hardware, name, without_levels(used[name])) for name in BETWEEN if name in used
    }


def _converters(hardware: Hardware) -> dict[str, Converter]:
    """Those that the activation uses."""
    names = ["input_dac", "storage_dac"]
    if hardware.activation == "pruned_softmax":
        compares_alone = hardware.pruning.select == "threshold" and hardware.pruning.recompute == "scores"
        names += [] if compares_alone else ["score_adc"]
    else:
        names += ["readout", *([OF_NORMALISER] if hardware.normaliser.is_on else [])]
        names += BETWEEN if hardware.activation == "softmax" else []
    return {name: converter_at(hardware, name) for name in names}


def _without_tiles(hardware: Hardware, straight_readout: Converter) -> dict[str, Hardware]:
    """Rows of what sub-tiles and their counters do."""
    wide = max(hardware.array.n_tiles, 1) * hardware.array.rows * 1e3
    return {
        # Integral nonlinearity spans the range, so without the range it goes too.
        "readout levels and clip": replace(
            hardware, readout=replace(without_levels(straight_readout), v_min=-wide, v_max=wide)
        ),
        # One sub-tile as long as the window: of no Triton kernel's sizes; as long as the sliding window in a layer that
        # has a shorter one.
        "per-tile readout": replace(
            hardware,
            array=replace(hardware.array, rows=hardware.array.window),
            backend="auto" if hardware.backend == "triton" else hardware.backend,
        ),
    }
