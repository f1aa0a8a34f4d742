"""Range calibration: put a pretrained model on arrays with digital softmax between them, without any training.

Scalers are chosen so that the queries, keys and values of a few batches fill the converters' ranges, and undone behind
the arrays; then the full scales of the ADC and of the counters are set to the charges that occur.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from aimc.calibrate.observation import Batches, RealTokens, number_of, observing, observing_digital, run_batches
from aimc.hardware import Cell, Converter, Hardware, Noise
from aimc.models.arrays import gain_cell_layers, hardware_of, set_hardware
from aimc.nn.attention import GainCellAttention
from aimc.ops.attention import Details
from aimc.ops.effects.cell import transfer

Batch = Tensor | dict[str, Tensor]
METHODS = ("percentile", "statistics", "search")
SEARCHED_PERCENTILES = (99.0, 99.9, 100.0)
SEARCHED_SHARES = (0.5, 0.7, 1.0)
SAMPLES = 20_000
"""Most values per head and batch that a percentile is taken from."""
MOST_CHARGES = 10**6
"""Most charges per layer and batch, likewise."""


@dataclass(slots=True, kw_only=True)
class LayerRanges:
    """What one layer was calibrated to."""

    layer: int = 0
    """Its number in the model, in which skipped layers count."""
    query: list[float] = field(default_factory=list)
    """Per head, |q| that gives the longest pulse."""
    key: list[float] = field(default_factory=list)
    """Per K/V head, distance from the mean of k that fills the storage range on one side of rest."""
    value: list[float] = field(default_factory=list)
    """Likewise for v."""


@dataclass(slots=True, kw_only=True)
class RangeReport:
    """What the calibration chose."""

    layers: list[LayerRanges] = field(default_factory=list)
    percentile: float = 0.0
    """Percentile of the converters' full scales, and of the ranges unless they were chosen by statistics."""
    range_share: float = 0.0
    """Share of the storage range that is used."""
    score_full_scale: float = 0.0
    """Full scale of the ADC, in units of `array.saturation_qk`."""
    readout_full_scale: float = 0.0
    """Full scale of the counters, in units of `array.saturation_av`."""

    def __str__(self) -> str:
        return (
            f"{len(self.layers)} layers calibrated (percentile {self.percentile:g}, {self.range_share:.0%} of the"
            f" storage range); score ADC to ±{self.score_full_scale:.3g} of array.saturation_qk, counters to"
            f" ±{self.readout_full_scale:.3g} of array.saturation_av"
        )


@dataclass(slots=True, kw_only=True)
class _Samples:
    """Digital q, k and v of one layer, `[H, N]` each, and what its scores are multiplied by."""

    scaling: float = 1.0
    parts: dict[str, list[Tensor]] = field(default_factory=dict)

    def of(self, part: str) -> Tensor:
        return torch.cat(self.parts[part], dim=1)


def calibrate_ranges(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    batches: Batches,
    *,
    method: str = "percentile",
    percentile: float = 99.9,
    n_std: float = 4.0,
    range_share: float = 1.0,
    fill: float | None = None,
) -> RangeReport:
    """Set scalers, score gains and the full scales of ADC and counters of a model with softmax activation, without a
    gradient.

    The hardware's noise is off meanwhile, and padding (by a batch's `attention_mask`) is not looked at. In a
    data-parallel run, give every process the same batches.

    Args:
        model: converted, with `hardware.activation = "softmax"`; its scalers and hardware change in place.
        reference: the digital model it was converted from.
        batches: token batches, re-iterable.
        method: a head's range is the `percentile` of its values' distance from their mean, or by `statistics` `n_std`
            standard deviations. `search` tries percentiles and shares of the range and keeps the pair with the lowest
            loss on the batches.
        percentile: in (0, 100]; 100 clips next to nothing of what these batches hold (large ones are
            sampled). ADC and counters clip ten times less.
        n_std: standard deviations, above 0.
        range_share: share of the storage range, in (0, 1], that keys and values use; less of it meets less of the
            cell's curvature, and fewer levels.
        fill: former name of `range_share`.

    Raises:
        ValueError: a model that is not converted or has another activation, a reference that is not digital or has
            other layers, no batches, or settings out of range.
    """
    if fill is not None:
        warnings.warn("calibrate_ranges(fill=…) is called range_share now", DeprecationWarning, stacklevel=2)
        range_share = fill
    hardware = _check(model, reference, method, percentile, n_std, range_share)
    batches = list(batches)
    samples = _digital_samples(reference, batches)
    _check_same_layers(model, samples)
    set_hardware(model, replace(hardware, noise=Noise()))
    try:
        if method == "search":
            percentile, range_share = _search(model, samples, batches)
            method = "percentile"
        return _calibrate(model, samples, batches, method, percentile, n_std, range_share)
    finally:
        set_hardware(model, replace(hardware_of(model), noise=hardware.noise))


def _calibrate(
    model: PreTrainedModel,
    samples: dict[int, _Samples],
    batches: list[Batch],
    method: str,
    percentile: float,
    n_std: float,
    range_share: float,
) -> RangeReport:
    report = RangeReport(percentile=percentile, range_share=range_share)
    for _, layer in gain_cell_layers(model):
        of_layer = samples[layer.layer]
        ranges = {}
        for part in ("query", "key", "value"):
            x = of_layer.of(part)
            centre = torch.zeros(len(x)) if part == "query" else x.mean(dim=1)
            distance = (x - centre[:, None]).abs()
            reach = distance.quantile(percentile / 100, dim=1) if method == "percentile" else n_std * x.std(dim=1)
            ranges[part] = reach.clamp(min=torch.finfo(torch.float32).eps)
            _set_scaler(layer, part, ranges[part], centre, range_share)
        _undo_scaling(layer, of_layer, layer.machine.cell)
        report.layers.append(LayerRanges(layer=layer.layer, **{part: reach.tolist() for part, reach in ranges.items()}))
    return _calibrate_converters(model, batches, percentile, report)


def _search(model: PreTrainedModel, samples: dict[int, _Samples], batches: list[Batch]) -> tuple[float, float]:
    """Percentile and share of the range of the lowest loss on the batches."""
    losses = {}
    for percentile in SEARCHED_PERCENTILES:
        for share in SEARCHED_SHARES:
            _calibrate(model, samples, batches, "percentile", percentile, 0.0, share)
            losses[percentile, share] = _loss(model, batches)
    return min(losses, key=lambda settings: losses[settings])


def _check_same_layers(model: PreTrainedModel, samples: dict[int, _Samples]) -> None:
    for _, layer in gain_cell_layers(model):
        wanted = (len(layer.query_scaler.scale), len(layer.key_scaler.scale))
        found = None
        if layer.layer in samples:
            parts = samples[layer.layer].parts
            found = (len(parts["query"][0]), len(parts["key"][0]))
        if found != wanted:
            raise ValueError(
                f"layer {layer.layer} has {wanted[0]} query and {wanted[1]} K/V heads, and the reference has"
                f" {found or 'no such layer'}; use the digital model it was converted from"
            )


def _loss(model: PreTrainedModel, batches: list[Batch]) -> float:
    """Mean negative log-likelihood of the batches' next tokens, in nat."""
    losses: list[float] = []
    hook = model.register_forward_hook(
        lambda _, args, kwargs, out: losses.append(_next_token_loss(kwargs, out.logits)), with_kwargs=True
    )
    try:
        run_batches(model, batches)
    finally:
        hook.remove()
    return sum(losses) / len(losses)


def _next_token_loss(inputs: dict[str, Tensor], logits: Tensor) -> float:
    targets = inputs["input_ids"][:, 1:]
    mask = inputs.get("attention_mask")
    if mask is not None:
        targets = targets.masked_fill(mask[:, 1:] == 0, -100)
    return float(cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=-100))


def _check(
    model: PreTrainedModel, reference: PreTrainedModel, method: str, percentile: float, n_std: float, range_share: float
) -> Hardware:
    hardware = hardware_of(model)
    if hardware.activation != "softmax":
        raise ValueError(
            f"hardware.activation={hardware.activation!r}: ranges are calibrated for the softmax activation, which"
            " needs no training; for the hard sigmoid use aimc.initialise_scalers and train"
        )
    if next(gain_cell_layers(reference), None) is not None:
        raise ValueError("the reference runs on arrays itself; pass the digital model that this one was converted from")
    for name, ok, rule in (
        ("method", method in METHODS, f"use one of {', '.join(METHODS)}"),
        ("percentile", 0 < percentile <= 100, "must be above 0 and at most 100; 99.9 is usual"),
        ("n_std", 0 < n_std < math.inf, "must be a finite number above 0; 4 is usual"),
        ("range_share", 0 < range_share <= 1, "must be above 0 and at most 1"),
    ):
        if not ok:
            raise ValueError(f"{name}={locals()[name]}: {rule}")
    return hardware


def _digital_samples(reference: PreTrainedModel, batches: Batches) -> dict[int, _Samples]:
    """Of every layer, by its number."""
    seen: dict[int, _Samples] = {}
    real = RealTokens()

    def observe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, output: Tensor, scaling: float) -> None:
        of_layer = seen.setdefault(number_of(module), _Samples(scaling=scaling))
        for part, x in (("query", query), ("key", key), ("value", value)):
            of_heads = real.of(x.detach(), 2).transpose(0, 1).flatten(1).float().cpu()  # [H, B·T·D]
            step = -(-of_heads.shape[1] // SAMPLES)
            while math.gcd(step, x.shape[-1]) > 1:  # it has to come by every feature
                step += 1
            of_layer.parts.setdefault(part, []).append(of_heads[:, ::step])

    with observing_digital(reference, observe):
        run_batches(reference, batches, real)
    if not seen:
        raise ValueError(
            "no batch was given, so there is nothing to calibrate on; pass at least one batch of token ids [B, T]"
        )
    return seen


def _set_scaler(layer: GainCellAttention, part: str, reach: Tensor, centre: Tensor, range_share: float) -> None:
    """A head's reach to the converter's; a shift of all keys is the same for every score of a query, so the softmax
    does not see it."""
    hardware, scaler = layer.machine, layer.scaler(part)
    if part == "query":
        high, rest = min(hardware.input_dac.v_max, -hardware.input_dac.v_min), 0.0
    else:
        rest = hardware.cell.offset_v
        high = range_share * min(hardware.storage_dac.v_max - rest, rest - hardware.storage_dac.v_min)
    with torch.no_grad():
        scaler.scale.copy_(high / reach)
        scaler.offset.copy_(rest - high / reach * centre)


def _undo_scaling(layer: GainCellAttention, samples: _Samples, cell: Cell) -> None:
    """Score gains and output scalers that give back the digital scores and outputs, as far as the cells are linear."""
    group = len(layer.query_scaler.scale) // len(layer.key_scaler.scale)
    lines = {part: _line(layer, part, samples, cell) for part in ("key", "value")}
    for part, memory in (("key", layer.memory_key), ("value", layer.memory_value)):
        assert memory is not None  # the softmax activation has it
        scaler, (slope, charge) = layer.scaler(part), lines[part]
        scale, offset = scaler.scale.detach().cpu(), scaler.offset.detach().cpu()
        memory.scale.copy_(slope / scale)  # the same line, of the voltage about rest
        memory.offset.copy_(charge + slope * (cell.offset_v - offset) / scale)
    key_slope, (value_slope, value_charge) = lines["key"][0], lines["value"]
    gains = [
        layer.query_scaler.scale.detach().cpu(),
        *(x.repeat_interleave(group) for x in (key_slope, value_slope, value_charge)),
    ]
    query_scale, key_slope, value_slope, value_charge = gains
    out_scale = layer.machine.array.saturation_av / value_slope
    with torch.no_grad():
        assert layer.score_gain is not None  # the softmax activation has it
        layer.score_gain.copy_(samples.scaling / (query_scale * key_slope))
        layer.output_scaler.scale.copy_(out_scale)
        layer.output_scaler.offset.copy_(-value_charge / value_slope)


def _line(layer: GainCellAttention, part: str, samples: _Samples, cell: Cell) -> tuple[Tensor, Tensor]:
    """The straight line `charge = slope·x + charge_0` that is nearest to what the cells do to the model's own x, per
    K/V head."""
    x, scaler = samples.of(part), layer.scaler(part)
    stored = (x * scaler.scale.detach().cpu()[:, None] + scaler.offset.detach().cpu()[:, None]).clamp(
        layer.machine.storage_dac.v_min, layer.machine.storage_dac.v_max
    )
    charge = transfer(stored - cell.offset_v, cell)
    mean_x, mean_charge = x.mean(dim=1, keepdim=True), charge.mean(dim=1, keepdim=True)
    slope = ((x - mean_x) * (charge - mean_charge)).sum(dim=1) / (x - mean_x).square().sum(dim=1).clamp(
        min=torch.finfo(x.dtype).tiny
    )
    return slope, (mean_charge - slope[:, None] * mean_x)[:, 0]


def _calibrate_converters(
    model: PreTrainedModel, batches: Batches, percentile: float, report: RangeReport
) -> RangeReport:
    """Full scales of the ADC and of the counters, one for all layers: the largest that any layer needs.

    They clip a tenth of what the percentile lets the other converters clip: the largest scores are what the softmax
        listens to.
    """
    hardware, real = hardware_of(model), RealTokens()
    percentile = 100 - (100 - percentile) / 10
    wide = Converter(v_min=-1e6, v_max=1e6, coding="sign_magnitude")
    needed: dict[str, float] = {}

    def observe(number: int, parts: dict[str, Tensor], inside: Details | None) -> None:
        assert inside is not None  # observing(details=True) below
        for name, x in (("score", inside.S / hardware.array.saturation_qk), ("readout", inside.A)):
            size = real.of(x, 2).abs().flatten()
            size = size[size > 0]  # the others were not read
            if len(size):
                step = -(-len(size) // MOST_CHARGES)
                needed[name] = max(needed.get(name, 0.0), float(size[::step].quantile(percentile / 100)))

    set_hardware(model, replace(hardware, score_adc=wide, readout=wide))
    try:
        with observing(model, observe, details=True):
            run_batches(model, batches, real)
    finally:
        set_hardware(model, hardware)
    score, readout = (
        needed.get(name, converter.v_max)
        for name, converter in (("score", hardware.score_adc), ("readout", hardware.readout))
    )
    report.score_full_scale, report.readout_full_scale = score, readout
    set_hardware(
        model,
        replace(
            hardware,
            score_adc=replace(hardware.score_adc, v_min=-score, v_max=score),
            readout=replace(hardware.readout, v_min=-readout, v_max=readout),
        ),
    )
    return report
