"""What each deterministic effect costs: perplexity with one switched off at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from torch import Tensor
from transformers import PreTrainedModel

from aimc.evaluate.measurement import Measurement, MeasurementFields, measurement_of
from aimc.evaluate.perplexity import Perplexity, perplexity
from aimc.hardware import Hardware, Noise
from aimc.models.arrays import hardware_of, set_hardware


def ablation(
    model: PreTrainedModel,
    tokens: Tensor,
    measurement: Measurement | None = None,
    **fields: Unpack[MeasurementFields],
) -> dict[str, Perplexity]:
    """Perplexity of a converted model with one deterministic effect switched off at a time, weights unchanged.

    It says what an effect costs a model that was trained with it, which is less than what it costs in training.

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
    wide = max(hardware.array.n_tiles, 1) * hardware.array.rows * 1e3
    of_softmax = ("score_adc", "probability_dac") if hardware.activation == "softmax" else ()
    converters = {name: getattr(hardware, name) for name in ("input_dac", "storage_dac", "readout", *of_softmax)}
    straight = {name: replace(converter, inl=0.0) for name, converter in converters.items()}
    between = {  # the converters that only a digital softmax has
        "score levels": replace(hardware, score_adc=replace(hardware.score_adc, n_levels=None)),
        "probability levels": replace(hardware, probability_dac=replace(hardware.probability_dac, n_levels=None)),
    }
    sometimes = {  # effects that most hardware does not have
        "leak target": replace(hardware, leakage=replace(hardware.leakage, target_v=None)),
        "converter INL": replace(hardware, **straight),
    }
    if hardware.leakage.tau_s is None or hardware.leakage.target_v in (None, hardware.cell.offset_v):
        del sometimes["leak target"]
    if straight == converters:
        del sometimes["converter INL"]
    return {
        "all effects": hardware,
        "input levels": replace(hardware, input_dac=replace(hardware.input_dac, n_levels=None)),
        "storage levels": replace(hardware, storage_dac=replace(hardware.storage_dac, n_levels=None)),
        "readout levels": replace(hardware, readout=replace(hardware.readout, n_levels=None)),
        # Integral nonlinearity spans the range, so without the range it goes too.
        "readout levels and clip": replace(
            hardware, readout=replace(straight["readout"], n_levels=None, v_min=-wide, v_max=wide)
        ),
        # One sub-tile as long as the window: of no Triton kernel's sizes; as long as the sliding window in a layer that
        # has a shorter one.
        "per-tile readout": replace(
            hardware,
            array=replace(hardware.array, rows=hardware.array.window),
            backend="auto" if hardware.backend == "triton" else hardware.backend,
        ),
        "leakage": replace(hardware, leakage=replace(hardware.leakage, tau_s=None)),
        **sometimes,
        **(between if hardware.activation == "softmax" else {}),
    }
