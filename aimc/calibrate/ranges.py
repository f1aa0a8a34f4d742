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
from transformers import PreTrainedModel

from aimc.calibrate.layerwise import calibrate_by_output
from aimc.calibrate.observation import (
    Batches,
    RealTokens,
    number_of,
    observing,
    observing_digital,
    require_same_heads,
    run_batches,
)
from aimc.calibrate.range_report import LayerRanges, RangeReport
from aimc.calibrate.settings import Ranges, Stored, apply, with_full_scales, without_full_scales
from aimc.calibrate.text import next_token_loss
from aimc.hardware import Hardware, Noise
from aimc.models.arrays import gain_cell_layers, hardware_of, set_hardware
from aimc.ops.attention import Details

Batch = Tensor | dict[str, Tensor]
METHODS = ("output_error", "percentile", "statistics", "search")
SEARCHED_PERCENTILES = (99.0, 99.9, 100.0)
SEARCHED_SHARES = (0.5, 0.7, 1.0)
SAMPLES = 20_000
"""Most values per head and batch that a percentile is taken from."""
MOST_CHARGES = 10**6
"""Most charges per layer and batch, likewise."""


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
    method: str | None = None,
    percentile: float | None = None,
    n_std: float | None = None,
    range_share: float | None = None,
    nonideality: Noise | None = None,
    progress: bool = False,
    fill: float | None = None,
) -> RangeReport:
    """Set scalers, score gains, the full scales of ADC and counters, centres of features and comparator levels of a
    model with a softmax, without a gradient.

    The hardware's noise is off meanwhile, unless `nonideality` is given, and padding (by a batch's `attention_mask`) is
    not looked at. In a data-parallel run, give every process the same batches.

    Args:
        model: converted, with `hardware.activation` a softmax, all or pruned; its scalers and hardware change in place.
        reference: the digital model it was converted from.
        batches: token batches, re-iterable.
        method: `output_error` searches, head by head and layer after layer, the ranges with the least error of the
            attention output; a few thousand tokens in rows as long as the model will read are enough, and all are held
            at once. For one reference a chip (`array.full_scales = "global"`) there are older ways: the `percentile` of
            a head's values' distance from their mean; `statistics`, `n_std` standard deviations; `search` tries
            percentiles and shares of the range and keeps the pair with the lowest loss on the batches. None: the first,
            or the one that another argument belongs to.
        percentile: in (0, 100], 99.9 unless given; 100 clips next to nothing of what these batches hold (large ones are
            sampled). ADC and counters clip ten times less.
        n_std: standard deviations, above 0; 4 unless given.
        range_share: share of the storage range, in (0, 1], all of it unless given, that keys and values use; less of it
            meets less of the cell's curvature, and fewer levels.
        nonideality: noise under which ranges are searched (`output_error`), of the model's chip and the same at every
            trial: narrower full scales are better then, for noise is a fraction of them. None: none.
        progress: show a bar on a terminal (`output_error`).
        fill: former name of `range_share`.

    Raises:
        ValueError: a model that is not converted or has another activation, a reference that is not digital or has
            other layers, no batches, or settings out of range.
    """
    if fill is not None:
        warnings.warn("calibrate_ranges(fill=…) is called range_share now", DeprecationWarning, stacklevel=2)
        range_share = fill
    method = _method(method, percentile, n_std, range_share)
    percentile, n_std = 99.9 if percentile is None else percentile, 4.0 if n_std is None else n_std
    range_share = 1.0 if range_share is None else range_share
    hardware = _check(model, reference, method, percentile, n_std, range_share)
    batches = list(batches)
    if nonideality is not None and method != "output_error":
        raise ValueError(
            f"nonideality: method={method!r} looks at values, not at errors, so noise would change nothing"
        )
    if method == "output_error":
        set_hardware(model, replace(hardware, noise=nonideality or Noise()))
        try:
            return calibrate_by_output(model, reference, batches, progress)
        finally:
            set_hardware(model, replace(hardware_of(model), noise=hardware.noise))
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
    report = RangeReport(method=method, percentile=percentile, range_share=range_share)
    for _, layer in gain_cell_layers(model):
        of_layer = samples[layer.layer]
        parts = {part: of_layer.of(part) for part in ("query", "key", "value")}
        stored = {part: Stored(centre=parts[part].mean(dim=1), sample=parts[part]) for part in ("key", "value")}
        reaches = {}
        for part, x in parts.items():
            distance = x if part == "query" else x - stored[part].centre[:, None]
            reach = distance.abs().quantile(percentile / 100, dim=1) if method == "percentile" else n_std * x.std(dim=1)
            reaches[part] = reach.clamp(min=torch.finfo(torch.float32).eps)
        unused = torch.ones_like(reaches["query"])  # one reference serves all heads, and is set below
        ranges = Ranges(
            query=reaches["query"],
            key=reaches["key"] / range_share,
            value=reaches["value"] / range_share,
            score=unused,
            readout=unused,
        )
        apply(layer, ranges, stored["key"], stored["value"], of_layer.scaling)
        report.layers.append(LayerRanges(layer=layer.layer, **{part: x.tolist() for part, x in reaches.items()}))
    return _calibrate_converters(model, batches, percentile, report)


def _search(model: PreTrainedModel, samples: dict[int, _Samples], batches: list[Batch]) -> tuple[float, float]:
    """Percentile and share of the range of the lowest loss on the batches."""
    losses = {}
    for percentile in SEARCHED_PERCENTILES:
        for share in SEARCHED_SHARES:
            _calibrate(model, samples, batches, "percentile", percentile, 0.0, share)
            losses[percentile, share] = next_token_loss(model, batches)
    return min(losses, key=lambda settings: losses[settings])


def _check_same_layers(model: PreTrainedModel, samples: dict[int, _Samples]) -> None:
    for _, layer in gain_cell_layers(model):
        parts = samples[layer.layer].parts if layer.layer in samples else None
        require_same_heads(layer, None if parts is None else (len(parts["query"][0]), len(parts["key"][0])))


def _method(method: str | None, percentile: float | None, n_std: float | None, range_share: float | None) -> str:
    """The method that is asked for, by its name or by what belongs to it.

    Raises:
        ValueError: the method has no use for what is given.
    """
    given = [
        name
        for name, value in (("percentile", percentile), ("n_std", n_std), ("range_share", range_share))
        if value is not None
    ]
    if method is None:
        method = "output_error" if not given else "percentile" if n_std is None else "statistics"
    if method == "output_error" and given:
        raise ValueError(
            f"{', '.join(given)}: method='output_error' searches its ranges and has no use for it, so it would be"
            " ignored; leave it out, or give method='percentile' or 'statistics'"
        )
    return method


def _check(
    model: PreTrainedModel, reference: PreTrainedModel, method: str, percentile: float, n_std: float, range_share: float
) -> Hardware:
    hardware = hardware_of(model)
    if not hardware.has_softmax:
        raise ValueError(
            f"hardware.activation={hardware.activation!r}: ranges are calibrated for a softmax, which"
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
    plain = hardware.activation == "softmax" and hardware.array.full_scales == "global" and not hardware.features.is_on
    if method != "output_error" and not plain:
        raise ValueError(
            f"method={method!r} knows one full scale for the chip, a softmax over all tokens, and features as they are;"
            f" this hardware has array.full_scales={hardware.array.full_scales!r}, activation={hardware.activation!r},"
            f" {hardware.features}; use method='output_error'"
        )
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


def _calibrate_converters(
    model: PreTrainedModel, batches: Batches, percentile: float, report: RangeReport
) -> RangeReport:
    """Full scales of the ADC and of the counters, one for all layers: the largest that any layer needs.

    They clip a tenth of what the percentile lets the other converters clip: the largest scores are what the softmax
        listens to.
    """
    hardware, real = hardware_of(model), RealTokens()
    percentile = 100 - (100 - percentile) / 10
    needed: dict[str, float] = {}

    def observe(number: int, parts: dict[str, Tensor], inside: Details | None) -> None:
        assert inside is not None  # observing(details=True) below
        for name, x in (("score", inside.S / hardware.array.saturation_qk), ("readout", inside.A)):
            size = real.of(x, 2).abs().flatten()
            size = size[size > 0]  # the others were not read
            if len(size):
                step = -(-len(size) // MOST_CHARGES)
                needed[name] = max(needed.get(name, 0.0), float(size[::step].quantile(percentile / 100)))

    set_hardware(model, without_full_scales(hardware))
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
    set_hardware(model, with_full_scales(hardware, score, readout))
    return report
