"""Full scales of the counters behind pulses, per head, by the error of a read.

A counter that is never full wastes its levels, and its noise, which is a fraction of its full scale; one that is too
small clips. What it meets differs from head to head, by an order of magnitude where the normaliser column counts how
much pulse a query sends. Here each head gets the full scale of the least mean square error of a read: what is clipped,
noise, and half a level. Nothing but these references changes, and nothing is trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aimc.calibrate.observation import Batches, RealTokens, observing, run_batches
from aimc.calibrate.text import next_token_loss
from aimc.hardware import Converter, Hardware, Noise
from aimc.models.arrays import gain_cell_layers, hardware_of, set_hardware
from aimc.nn.attention import GainCellAttention
from aimc.ops.attention import Details

WEIGHTS = (1.0, 2.0, 4.0, 8.0)
"""Of noise against what is clipped. A read that clips is a large one, of which the model misses little, and noise is in
all of them; how much less the one hurts than the other, the model's loss says."""
SHARES = tuple(2.0 ** (-i / 4) for i in range(25))
"""Of the largest that a counter meets: full scales that are tried."""
SAMPLES = 50_000
"""Most reads per head and batch."""


@dataclass(slots=True, kw_only=True)
class LayerFullScales:
    """What was found for one layer, per query head."""

    layer: int
    """Its number in the model, in which skipped layers count."""
    readout: list[float]
    """Full scales of the counters over `array.saturation_av`."""
    normaliser: list[float]
    """Pulses of full length that fill the normaliser's; empty where there is none."""


@dataclass(slots=True, kw_only=True)
class FullScaleReport:
    """What :func:`fit_full_scales` has found."""

    before: float
    """Loss on the text under the noise, with the full scales as they were, in nat a token."""
    after: float
    """With those that were found; where none is better, those that there were stay."""
    weight: float | None = None
    """That of noise, one of :data:`WEIGHTS`; None: none was better."""
    layers: list[LayerFullScales] = field(default_factory=list)

    def __str__(self) -> str:
        readout, normaliser = (
            sorted(x for layer in self.layers for x in getattr(layer, name)) for name in ("readout", "normaliser")
        )
        pulses = f", the normaliser's at {normaliser[0]:.3g} to {normaliser[-1]:.3g} pulses" if normaliser else ""
        return (
            f"Full scales of {len(readout)} heads fitted: perplexity of the text {math.exp(self.before):.2f} →"
            f" {math.exp(self.after):.2f}; counters full at {readout[0]:.3g} to {readout[-1]:.3g} of"
            f" array.saturation_av{pulses}"
        )


@dataclass(slots=True)
class _Reads:
    """What the counters of a layer meet, in their units, per head `[H, N]`."""

    readout: list[Tensor] = field(default_factory=list)
    """|A|, over `array.saturation_av`."""
    normaliser: list[Tensor] = field(default_factory=list)
    """Σφ."""


def fit_full_scales(model: PreTrainedModel, batches: Batches, *, nonideality: Noise | None = None) -> FullScaleReport:
    """Choose the full scales of the counters of a model on pulses (`hardware.activation = "hard_sigmoid"`), for each
    head or layer as `array.full_scales` says.

    It may be called before training, for full scales that the text fills, and after it, when what counters meet has
    moved; where one reference had served the chip, it makes noise cost far less without any training. In a
    data-parallel run, give every process the same batches.

    Args:
        model: converted; the full scales of its layers change in place, nothing else does.
        batches: token batches, re-iterable; a thousand tokens in rows as long as the model will read are enough.
        nonideality: noise that they are chosen for, of the model's chip: narrower full scales are better then, for
            noise is a fraction of them. None: none, and levels and clip decide.

    Returns:
        What was found, and the loss on the batches before and after.

    Raises:
        ValueError: a model that is not converted, has a softmax (:func:`aimc.calibrate_ranges` is for those) or one
            full scale for the whole chip; no batches.
    """
    hardware, noise, batches = _checked(model), nonideality or Noise(), list(batches)
    if not batches:
        raise ValueError(
            "no batch was given, so no counter has met anything; pass at least one batch of token ids [B, T]"
        )
    layers = [layer for _, layer in gain_cell_layers(model)]
    before = {layer.layer: _references(layer) for layer in layers}
    set_hardware(model, replace(hardware, noise=noise))
    try:
        loss = next_token_loss(model, batches)
        report = FullScaleReport(before=loss, after=loss)
        reads, best = _reads(model, batches, hardware), before
        for weight in WEIGHTS if noise.read_av or noise.column_offset else WEIGHTS[:1]:
            found = {layer.layer: _fitted(layer, reads[layer.layer], noise, weight) for layer in layers}
            _set(layers, found)
            if (loss := next_token_loss(model, batches)) < report.after:
                report.after, report.weight, best = loss, weight, found
        _set(layers, best)
    except BaseException:
        _set(layers, before)
        raise
    finally:
        set_hardware(model, hardware)
    for layer in layers:
        readout, of_sum = _references(layer)
        pulses = [] if of_sum is None else (of_sum * hardware.normaliser.full_scale).tolist()
        report.layers.append(LayerFullScales(layer=layer.layer, readout=readout.tolist(), normaliser=pulses))
    return report


def _checked(model: PreTrainedModel) -> Hardware:
    hardware = hardware_of(model)
    if hardware.has_softmax:
        raise ValueError(
            f"hardware.activation={hardware.activation!r}: the full scales of a softmax's converters come with the"
            " ranges in front of them; use aimc.calibrate_ranges"
        )
    if hardware.array.full_scales == "global":
        raise ValueError(
            "array.full_scales='global': one reference serves the whole chip, so there is none of a head to be fitted;"
            " set array.full_scales='head' (or 'layer') with aimc.set_hardware"
        )
    return hardware


def _references(layer: GainCellAttention) -> tuple[Tensor, Tensor | None]:
    """Copies of a layer's factors of A_sat and of the normaliser's full scale."""
    readout, of_sum = layer.readout_full_scale, layer.normaliser_full_scale
    assert readout is not None  # full scales are not global
    return readout.clone(), None if of_sum is None else of_sum.clone()


def _set(layers: list[GainCellAttention], found: dict[int, tuple[Tensor, Tensor | None]]) -> None:
    for layer in layers:
        for of_layer, factors in zip(
            (layer.readout_full_scale, layer.normaliser_full_scale), found[layer.layer], strict=True
        ):
            if of_layer is not None and factors is not None:
                of_layer.copy_(factors)


def _reads(model: PreTrainedModel, batches: Batches, hardware: Hardware) -> dict[int, _Reads]:
    """What counters that neither clip, round nor err would say, by layer."""
    found: dict[int, _Reads] = {}
    layers, real = {layer.layer: layer for _, layer in gain_cell_layers(model)}, RealTokens()

    def observe(number: int, parts: dict[str, Tensor], inside: Details | None) -> None:
        assert inside is not None  # observing(details=True) below
        rows, reads = layers[number].machine.array.rows, found.setdefault(number, _Reads())
        factor = layers[number].readout_full_scale
        assert factor is not None  # full scales are not global
        counts = real.of(inside.A, 2).abs() * factor[:, None, None, None]
        reads.readout.append(_sampled(counts))
        # Sub-tiles by token and not by slot: where the ring wraps, the one being overwritten counts as two.
        phi = real.of(inside.phi, 2)
        phi = torch.nn.functional.pad(phi, (0, -phi.shape[-1] % rows)).unflatten(-1, (-1, rows))
        reads.normaliser.append(_sampled(phi.sum(dim=-1)))

    wide = Converter(v_min=-1e6, v_max=1e6, coding="sign_magnitude")
    given = hardware_of(model)
    set_hardware(model, replace(hardware, readout=wide, noise=Noise()))
    try:
        with observing(model, observe, details=True):
            run_batches(model, batches, real)
    finally:
        set_hardware(model, given)
    return found


def _sampled(x: Tensor) -> Tensor:
    """Of numbers by head `[B, H, …]` some that are not zero, which are of sub-tiles that are read: `[H, N]`."""
    by_head = x.transpose(0, 1).flatten(1).float()
    by_head = by_head[:, (by_head > 0).any(dim=0)]
    return by_head[:, :: -(-max(by_head.shape[1], 1) // SAMPLES)].cpu()


def _fitted(layer: GainCellAttention, reads: _Reads, noise: Noise, weight: float) -> tuple[Tensor, Tensor | None]:
    """Factors of A_sat and of the normaliser's full scale for a layer's heads, `[H]` each."""
    hardware, (readout, of_sum) = layer.machine, _references(layer)
    variance = weight**2 * (noise.read_av**2 + noise.column_offset**2)
    shared = hardware.array.full_scales == "layer"
    readout = least_error(reads.readout, hardware.readout, variance, shared).to(readout)
    if of_sum is not None:
        counter = hardware.normaliser.counter
        of_sum = least_error(reads.normaliser, counter, variance, shared).to(of_sum) / hardware.normaliser.full_scale
    return readout, of_sum


def least_error(reads: list[Tensor], counter: Converter, variance: float, shared: bool) -> Tensor:
    """The full scales of the least mean square error of a read.

    Args:
        reads: what the counters are given, not negative, `[H, N]` a batch.
        counter: from full scales to a number.
        variance: of what is added to a read, in full scales.
        shared: one full scale for all heads.

    Returns:
        `[H]`, in the unit of the reads.
    """
    given = torch.cat(reads, dim=1)
    top = given.amax(dim=1) if given.shape[1] else given.new_ones(len(given))
    top = (top.amax().expand_as(top) if shared else top).clamp(min=1e-6)
    step = (counter.v_max - counter.v_min) / ((counter.n_levels or 2**16) - 1)
    errors = []
    for share in SHARES:
        full = share * top
        clipped = (given - counter.v_max * full[:, None]).clamp(min=0.0).square().mean(dim=1)
        error = clipped + full.square() * (variance + step**2 / 12)
        errors.append(error.mean().expand_as(error) if shared else error)
    return top * torch.tensor(SHARES)[torch.stack(errors).argmin(dim=0)]
