"""How often a value meets a bound of the hardware, counted where a circuit reads something."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aimc.calibrate.observation import Batches, RealTokens, observing, run_batches
from aimc.hardware import Converter, Hardware
from aimc.models.arrays import gain_cell_layers
from aimc.nn.attention import GainCellAttention
from aimc.ops.attention import Details
from aimc.ops.effects.protection import protected_tokens, sink_tokens
from aimc.ops.ring import by_sub_tile


def clip_fractions(model: PreTrainedModel, batches: Batches) -> dict[str, float]:
    """Fraction of values that meet a bound of the hardware, over all layers: q, k and v at their converters, S at the
    charge-to-pulse circuit (`S_off` gives no pulse, `S_full` the longest) or, as `S`, at the ADC, A at the counters;
    each in the full scale of its head; Σφ at the normaliser's counters. With `pruned_softmax` there is no v and no A,
    S is above the full scale from which a ramp counts down, and comparators alone have no bound.

    What no circuit reads does not count: padding, keys that a query does not see, tokens that a digital memory holds in
    place of the arrays, and counters of sub-tiles that hold nothing yet that the query sees. 0 where nothing is read.
    """
    layers = {layer.layer: layer for _, layer in gain_cell_layers(model)}
    hits: dict[str, int] = {}
    counts: dict[str, int] = {}
    real = RealTokens()

    def observe(number: int, parts: dict[str, Tensor], inside: Details | None) -> None:
        assert inside is not None  # observing(details=True) below
        for name, hit, counted in _bounds(parts, inside, layers[number], real.mask):
            counted = counted.expand_as(hit)
            hits[name] = hits.get(name, 0) + int((hit & counted).sum())
            counts[name] = counts.get(name, 0) + int(counted.sum())

    with observing(model, observe, details=True):
        run_batches(model, batches, real)
    return {name: hits[name] / counts[name] if counts[name] else 0.0 for name in hits}


def _bounds(
    parts: dict[str, Tensor], inside: Details, layer: GainCellAttention, mask: Tensor | None
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name of a bound, which values meet it, and which of them are read (broadcastable)."""
    n_batch, _, n_tokens, _ = parts["query"].shape
    device, hardware = parts["query"].device, layer.machine
    pruned = hardware.activation == "pruned_softmax"
    real = torch.ones(n_batch, n_tokens, dtype=torch.bool, device=device) if mask is None else mask.to(device).bool()
    stored, visible, in_use = _read(real, hardware, inside.A.shape[3])
    yield "query", _outside(parts["query"], hardware.input_dac), real[:, None, :, None]
    for part in ("key",) if pruned else ("key", "value"):
        yield part, _outside(parts[part], hardware.storage_dac), stored[:, None, :, None]
    of_head = 1.0 if layer.score_full_scale is None else layer.score_full_scale[:, None, None]
    full_scales = inside.S / (hardware.array.saturation_qk * of_head)
    if hardware.activation == "softmax":
        yield "S", _outside(full_scales, hardware.score_adc), visible
    elif not pruned:
        threshold = 0.0 if layer.pulse_threshold is None else layer.pulse_threshold[:, None, None]
        yield "S_off", full_scales <= threshold, visible
        yield "S_full", full_scales >= 1 + threshold, visible
    elif hardware.pruning.select == "share":
        yield "S", full_scales > hardware.score_adc.v_max, visible
    if not pruned:  # the second array is not read
        bounded = (hardware.readout.v_min >= inside.A) | (hardware.readout.v_max <= inside.A)
        yield "A", bounded, in_use[:, None, :, :, None]
    if hardware.normaliser.is_on:
        full: Tensor | float = hardware.normaliser.counter.v_max * hardware.normaliser.full_scale
        if layer.normaliser_full_scale is not None:
            full = full * layer.normaliser_full_scale[:, None, None]
        pulse = by_sub_tile(inside.phi * visible, hardware.array, inside.A.shape[3])
        yield "normaliser", pulse >= full, in_use[:, None]


def _read(real: Tensor, hardware: Hardware, n_tiles: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens the arrays hold `[B, T]`, which of them each query reads there `[B, 1, T, T]`, and which sub-tiles
    hold any of these `[B, T, J]`."""
    array, protection = hardware.array, hardware.protection
    at = torch.arange(real.shape[1], device=real.device)
    age = at[:, None] - at
    visible = ((age >= 0) & (age < array.window) & real[:, :, None] & real[:, None, :])[:, None]  # [B, 1, T, T]
    stored = real
    if protection.is_on:
        sink = sink_tokens(~real, 0, protection)
        visible = visible & ~protected_tokens(at, at, sink, protection)
        stored = real & ~sink
    tile = at % array.window // array.rows
    in_use = torch.stack([visible[:, 0, :, tile == number].any(dim=-1) for number in range(n_tiles)], dim=-1)
    return stored, visible, in_use


def _outside(x: Tensor, converter: Converter) -> Tensor:
    return (x < converter.v_min) | (x > converter.v_max)
