"""What calibration sets in a layer on arrays, from ranges in the model's own units: scalers, gains, lines, full
scales."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aimc.hardware import Converter, Hardware
from aimc.nn.attention import GainCellAttention
from aimc.nn.scaler import AffineScaler
from aimc.ops.effects.cell import transfer
from aimc.ops.effects.converters import storage_dac
from aimc.ops.effects.levels import from_equal_charge, line_of

SAMPLES = 100_000
"""Most values per head that a line is fitted to."""


@dataclass(slots=True, kw_only=True)
class Ranges:
    """What fills each converter of a layer, per head, in the model's own units."""

    query: Tensor
    """|q| that gives the longest pulse, `[H]`."""
    key: Tensor
    """Distance from the middle of k that fills the storage range on one side of rest, `[H_kv]`."""
    value: Tensor
    """Likewise of v, `[H_kv]`."""
    score: Tensor
    """|logit| that fills the score ADC, `[H]`."""
    readout: Tensor
    """|Σ pulse·v| of a sub-tile that fills its counter, `[H]`."""


@dataclass(slots=True, kw_only=True)
class Stored:
    """Keys or values on their way into the cells: where they lie, and the line that stands for their cells."""

    centre: Tensor
    """Middle of their values, `[H_kv]`."""
    sample: Tensor
    """Some of them, `[H_kv, N]`."""


def sampled(x: Tensor, real: Tensor | None, *, about_zero: bool) -> Stored:
    """Of keys or values `[B, H_kv, T, D]` behind the freedoms of features.

    Args:
        x: keys or values.
        real: bool `[B, T]`, which tokens are not padding; None: all are.
        about_zero: the middle is zero: what is divided by a number of its own counts from there.
    """
    of_heads = x.transpose(0, 1)  # [H_kv, B, T, D]
    of_heads = of_heads.flatten(1, 2) if real is None else of_heads[:, real]
    step = -(-of_heads.shape[1] * of_heads.shape[2] // SAMPLES)
    sample = of_heads[:, ::step].flatten(1).float()
    centre = of_heads.float().mean(dim=(1, 2))
    return Stored(centre=torch.zeros_like(centre) if about_zero else centre, sample=sample)


def apply(layer: GainCellAttention, ranges: Ranges, keys: Stored, values: Stored, scaling: float) -> None:
    """Set a layer so that these ranges fill its converters, and digital scores and outputs come back behind them.

    Args:
        layer: with a softmax; changed in place.
        ranges: what fills what.
        keys, values: of the text.
        scaling: what the digital model's scores are multiplied by.
    """
    hardware = layer.machine
    array, dac = hardware.array, hardware.input_dac
    group = len(layer.query_scaler.scale) // len(layer.key_scaler.scale)
    query_scale = min(dac.v_max, -dac.v_min) / ranges.query
    _set(layer.query_scaler, query_scale, torch.zeros_like(query_scale))
    key_slope, _ = _store(layer, "key", ranges.key, keys)
    value_slope, value_charge = _store(layer, "value", ranges.value, values)
    key_slope, value_slope, value_charge = (x.repeat_interleave(group) for x in (key_slope, value_slope, value_charge))
    with torch.no_grad():
        assert layer.score_gain is not None  # a softmax has it
        layer.score_gain.copy_(scaling / (query_scale * key_slope))
        from_rest = hardware.features.normalise_values  # then outputs count from the charge of resting cells
        offset = torch.zeros_like(value_slope) if from_rest else -value_charge / value_slope
        _set(layer.output_scaler, array.saturation_av / value_slope, offset)
        if layer.score_full_scale is not None and layer.readout_full_scale is not None:
            top = hardware.score_adc.v_max, hardware.readout.v_max
            score, readout = ranges.score / layer.score_gain, ranges.readout * value_slope
            if array.full_scales == "layer":  # one reference for all heads: the largest that any of them needs
                score, readout = (x.max().expand_as(x) for x in (score, readout))
            layer.score_full_scale.copy_(score / (array.saturation_qk * top[0]))
            layer.readout_full_scale.copy_(readout / (array.saturation_av * top[1]))


def full_scales_needed(layer: GainCellAttention, ranges: Ranges) -> tuple[float, float]:
    """Full scales of score ADC and counters in units of `array.saturation_qk` and `saturation_av`, for all heads of a
    layer that was set to these ranges."""
    assert layer.score_gain is not None  # a softmax has it
    array = layer.machine.array
    score = ranges.score / layer.score_gain.detach() / array.saturation_qk
    readout = ranges.readout / layer.output_scaler.scale.detach()
    return float(score.max()), float(readout.max())


def without_full_scales(hardware: Hardware) -> Hardware:
    """ADC and counters that neither clip nor round."""
    wide = Converter(v_min=-1e6, v_max=1e6, coding="sign_magnitude")
    return replace(hardware, score_adc=wide, readout=wide)


def with_full_scales(hardware: Hardware, score: float, readout: float) -> Hardware:
    """One reference for all layers: of the score ADC in units of `array.saturation_qk`, of the counters in those of
    `array.saturation_av`."""
    return replace(
        hardware,
        score_adc=replace(hardware.score_adc, v_min=-score, v_max=score),
        readout=replace(hardware.readout, v_min=-readout, v_max=readout),
    )


def _store(layer: GainCellAttention, part: str, reach: Tensor, stored: Stored) -> tuple[Tensor, Tensor]:
    """Set the scaler of keys or values and the line of the digital memory; returns slope and offset of the cells'
    charge over the model's own numbers, `[H_kv]`."""
    hardware, scaler = layer.machine, layer.scaler(part)
    dac, rest = hardware.storage_dac, hardware.cell.offset_v
    is_line = dac.spacing == "equal_charge"
    if is_line:  # the number that leaves a cell at rest
        rest = float(from_equal_charge(torch.tensor(rest, dtype=torch.float64), dac, hardware.cell))
    scale = min(dac.v_max - rest, rest - dac.v_min) / reach
    _set(scaler, scale, rest - scale * stored.centre)
    rest_v = hardware.cell.offset_v
    if is_line:
        offset, slope = line_of(hardware)
        slopes, charges = slope * scale, offset + slope * (scaler.offset.detach() - rest_v)
    else:
        slopes, charges = _fitted(layer, scaler, stored)
    memory = layer.memory_key if part == "key" else layer.memory_value
    assert memory is not None  # a softmax has it
    _set(memory, slopes / scale, charges + slopes * (rest_v - scaler.offset.detach()) / scale)
    return slopes, charges


def _fitted(layer: GainCellAttention, scaler: AffineScaler, stored: Stored) -> tuple[Tensor, Tensor]:
    """The straight line that is nearest to what the cells do to the model's own numbers."""
    x, hardware = stored.sample, layer.machine
    numbers = x * scaler.scale.detach()[:, None] + scaler.offset.detach()[:, None]
    charge = transfer(storage_dac(numbers, hardware) - hardware.cell.offset_v, hardware.cell)
    mean_x, mean_charge = x.mean(dim=1, keepdim=True), charge.mean(dim=1, keepdim=True)
    power = (x - mean_x).square().sum(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    slope = ((x - mean_x) * (charge - mean_charge)).sum(dim=1) / power
    return slope, (mean_charge - slope[:, None] * mean_x)[:, 0]


def _set(scaler: AffineScaler, scale: Tensor, offset: Tensor) -> None:
    with torch.no_grad():
        scaler.scale.copy_(scale)
        scaler.offset.copy_(offset)
