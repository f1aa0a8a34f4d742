"""Full scales of the counters behind pulses, per head, by the error of a read.

A counter that is never full wastes its levels, and its noise, which is a fraction of its full scale; one that is too
small clips. What it meets differs from head to head, by an order of magnitude where the normaliser column counts how
much pulse a query sends. Here each head gets the full scale of the least mean square error of a read: what is clipped,
what is rounded, and noise. Nothing but these references changes, and nothing is trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aimc.calibrate.observation import Batches, RealTokens, observing, run_batches
from aimc.calibrate.settings import without_full_scales
from aimc.calibrate.text import checked_batches, divergence, predictions
from aimc.hardware import Converter, Hardware, Noise
from aimc.models.arrays import gain_cell_layers, hardware_of, set_hardware
from aimc.models.ranks import all_ranks
from aimc.nn.attention import GainCellAttention
from aimc.ops.attention import Details
from aimc.ops.ring import by_sub_tile

WEIGHTS = (1.0, 2.0, 4.0, 8.0)
"""Of rounding and noise against what is clipped. A read that clips is a large one, of which the model misses little,
and those are in all of them; how much less the one hurts than the others, the model's predictions say."""
SHARES = tuple(2.0 ** (-i / 4) for i in range(25))
"""Of the largest that a counter meets: full scales that are tried."""
FINE = 2**20 + 1
"""Levels of an ideal normaliser's counter, whose step is the least that is divided by: without any it would be a
thousandth of a range that has room for every pulse."""
SAMPLES = 50_000
"""Reads per head and batch, about, that the error is taken over; the largest is found over all."""


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
    """Divergence of the predictions, with the full scales as they were, from those that are aimed at, in nat a
    token."""
    after: float
    """The same with those that were found; where none is better, those that there were stay."""
    weight: float | None
    """That of rounding and noise, one of :data:`WEIGHTS`; None: none of the full scales was better."""
    layers: list[LayerFullScales]

    def __str__(self) -> str:
        readout, normaliser = (
            sorted(x for layer in self.layers for x in getattr(layer, name)) for name in ("readout", "normaliser")
        )
        pulses = f", the normaliser's at {normaliser[0]:.3g} to {normaliser[-1]:.3g} pulses" if normaliser else ""
        what = "kept, for none was better" if self.weight is None else "fitted"
        return (
            f"Full scales of {len(readout)} heads {what}: predictions are off by {self.before:.3f} → {self.after:.3f}"
            f" nat; counters full at {readout[0]:.3g} to {readout[-1]:.3g} of"
            f" array.saturation_av{pulses}"
        )


class Reads:
    """What the counters of one kind in a layer meet, not negative."""

    def __init__(self) -> None:
        self.sample: list[Tensor] = []
        """Some of them, `[H, N]` a batch."""
        self.largest: Tensor | None = None
        """Of all, `[H]`."""

    def add(self, x: Tensor) -> None:
        """Reads `[B, H, T, J, D]` of D columns; a sub-tile that gives no head anything is not read."""
        by_read = x.transpose(0, 1).flatten(1, 3).float().cpu()  # [H, B·T·J, D]
        largest = by_read.amax(dim=(1, 2))
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        by_read = by_read[:, (by_read > 0).any(dim=2).any(dim=0)]
        step = -(-by_read.shape[1] * by_read.shape[2] // SAMPLES)
        self.sample.append(by_read[:, :: max(step, 1)].flatten(1))


OfLayers = dict[int, tuple[Tensor, Tensor | None]]
"""Factors of A_sat and of the normaliser's full scale `[H]`, by the number of the layer."""


def fit_full_scales(
    model: PreTrainedModel, batches: Batches, *, nonideality: Noise, trained: bool = True
) -> FullScaleReport:
    """Choose the full scales of the counters of a model on pulses (`hardware.activation = "hard_sigmoid"`) for a noise,
    for each head or layer as `array.full_scales` says.

    Where one reference had served the chip, it makes noise cost far less without any training. Full scales that clip
    too much move predictions as noise and levels do. A head that sends no pulse keeps what it has. In a data-parallel
    run, give every process the same batches.

    Args:
        model: converted; the full scales of its layers change in place, nothing else does.
        batches: token batches, a thousand tokens or two in rows as long as the model will read. All pairs of a batch's
            tokens are held at once, and the predictions of all batches.
        nonideality: noise that they are chosen for, of the model's chip, with read noise of the second array or column
            offsets, which are fractions of a full scale; of a model that is still to be trained it may be none.
        trained: what is aimed at. True: the predictions of the model as it stands, without noise, for one that was
            trained on the counters that it has. False: those on counters that neither clip, round nor err, for one that
            is still to be trained as a whole; levels are a reason to fit then.

    Returns:
        What was found, and how far the predictions are off before and after.

    Raises:
        ValueError: a model that is not converted, has a softmax (:func:`aimc.calibrate_ranges` is for those) or one
            full scale for the whole chip; noise that no full scale changes, of a trained model; no batches, rows of one
            token, or tokens that it does not know.
    """
    hardware, text = _checked(model, nonideality, trained), checked_batches(batches, model)
    layers = [layer for _, layer in gain_cell_layers(model)]
    before, generators = {layer.layer: _factors(layer) for layer in layers}, [layer.generator for layer in layers]
    best, best_weight, ranks = before, None, all_ranks()
    try:
        for layer in layers:
            layer.generator = None  # the same draws at every trial: those of `run_batches`
        reads = _reads(model, layers, text)
        if trained:
            set_hardware(model, replace(hardware, noise=Noise()))
            _set(layers, before)
        target = predictions(model, text)
        set_hardware(model, replace(hardware, noise=nonideality))
        _set(layers, before)
        first = least = divergence(model, text, target)
        for weight in WEIGHTS:
            found = {layer.layer: _fitted(layer, *reads[layer.layer], nonideality, weight) for layer in layers}
            _set(layers, found)
            if (off := divergence(model, text, target)) < least:
                least, best_weight, best = off, weight, found
        # Processes round differently, and all have to end with the same.
        least, best_weight, best = ranks.united({ranks.number: (least, best_weight, best)})[0]
    except BaseException:
        best = before
        raise
    finally:
        for layer, generator in zip(layers, generators, strict=True):
            layer.generator = generator
        set_hardware(model, hardware)
        _set(layers, best)
    of_layers = [
        LayerFullScales(
            layer=number,
            readout=readout.tolist(),
            normaliser=[] if of_sum is None else (of_sum * hardware.normaliser.full_scale).tolist(),
        )
        for number, (readout, of_sum) in best.items()
    ]
    return FullScaleReport(before=first, after=least, weight=best_weight, layers=of_layers)


def depends_on_full_scales(noise: Noise) -> bool:
    """Whether any of it is a fraction of the counters' full scales."""
    return bool(noise.read_av or noise.column_offset)


def _checked(model: PreTrainedModel, noise: Noise, trained: bool) -> Hardware:
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
    if trained and not depends_on_full_scales(noise):
        raise ValueError(
            f"nonideality.read_av={noise.read_av}, nonideality.column_offset={noise.column_offset}: nothing of this"
            " noise is a fraction of a counter's full scale, so all that clip nothing are as good; set one of the two,"
            " or trained=False"
        )
    return hardware


def _factors(layer: GainCellAttention) -> tuple[Tensor, Tensor | None]:
    """A layer's, copied to the CPU."""
    readout, of_sum = layer.readout_full_scale, layer.normaliser_full_scale
    assert readout is not None  # full scales are not global
    return readout.to("cpu", copy=True), None if of_sum is None else of_sum.to("cpu", copy=True)


def _set(layers: list[GainCellAttention], found: OfLayers) -> None:
    for layer in layers:
        own = layer.readout_full_scale, layer.normaliser_full_scale
        for of_layer, factors in zip(own, found[layer.layer], strict=True):
            if of_layer is not None and factors is not None:
                of_layer.copy_(factors)


def _reads(
    model: PreTrainedModel, layers: list[GainCellAttention], text: list[dict[str, Tensor]]
) -> dict[int, tuple[Reads, Reads]]:
    """|A| over `array.saturation_av` and Σφ of counters that neither clip, round nor err, by layer. The layers are left
    on such counters."""
    found = {layer.layer: (Reads(), Reads()) for layer in layers}
    arrays, real = {layer.layer: layer.machine.array for layer in layers}, RealTokens()

    def observe(number: int, parts: dict[str, Tensor], inside: Details | None) -> None:
        assert inside is not None  # observing(details=True) below
        counts, of_sum = found[number]
        counts.add(real.of(inside.A, 2).abs())
        of_sum.add(real.of(by_sub_tile(inside.phi, arrays[number], inside.A.shape[3]), 2)[..., None])

    wide = without_full_scales(hardware_of(model))
    never_full = replace(wide.normaliser, full_scale=float(wide.array.rows), counter=Converter(n_levels=FINE))
    set_hardware(model, replace(wide, normaliser=never_full, noise=Noise()))
    for layer in layers:
        for factors in (layer.readout_full_scale, layer.normaliser_full_scale):
            if factors is not None:
                factors.fill_(1.0)
    with observing(model, observe, details=True):
        run_batches(model, text, real)
    return found


def _fitted(
    layer: GainCellAttention, counts: Reads, of_sum: Reads, noise: Noise, weight: float
) -> tuple[Tensor, Tensor | None]:
    """Factors of A_sat and of the normaliser's full scale for a layer's heads; those of a head without pulses stay."""
    hardware, (readout, normaliser) = layer.machine, _factors(layer)
    variance = noise.read_av**2 + noise.column_offset**2
    shared = hardware.array.full_scales == "layer"
    found = [(counts, hardware.readout, readout, 1.0)]
    if normaliser is not None:
        found.append((of_sum, hardware.normaliser.counter, normaliser, hardware.normaliser.full_scale))
    for reads, counter, factors, unit in found:
        full_scales = least_error(reads, counter, variance, weight, shared)
        factors.copy_(torch.where(full_scales > 0, full_scales / unit, factors))
    return readout, normaliser


def least_error(reads: Reads, counter: Converter, variance: float, weight: float, shared: bool) -> Tensor:
    """The full scales of the least mean square error of a read.

    Args:
        reads: what the counters are given.
        counter: from full scales to a number.
        variance: of what is added to a read, in full scales.
        weight: of that and of rounding, against what is clipped.
        shared: one full scale for all heads.

    Returns:
        `[H]`, in the unit of the reads; 0 where there are none.
    """
    given, largest = torch.cat(reads.sample, dim=1), reads.largest
    assert largest is not None  # something was added
    largest = largest.amax().expand_as(largest) if shared else largest
    largest = largest / counter.v_max  # full scales that never clip
    if not given.shape[1]:
        return torch.zeros_like(largest)
    step, errors = (counter.v_max - counter.v_min) / ((counter.n_levels or 2**16) - 1), []
    for share in SHARES:
        full = share * largest
        clipped = (given - counter.v_max * full[:, None]).clamp(min=0.0).square().mean(dim=1)
        error = clipped + (weight * full).square() * (variance + step**2 / 12)
        errors.append(error.mean().expand_as(error) if shared else error)
    return largest * given.new_tensor(SHARES)[torch.stack(errors).argmin(dim=0)]
