"""Clip fractions, counted one by one where a circuit reads something."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import GPT2LMHeadModel

import aimc
from aimc import presets
from aimc.hardware import Hardware, Normaliser, Protection, Pruning
from aimc.models.arrays import gain_cell_layers
from tests.conftest import small_arrays


def seen_in_one_layer(model: GPT2LMHeadModel, **inputs: torch.Tensor) -> dict[str, object]:
    _, layer = next(gain_cell_layers(model))
    seen: dict[str, object] = {}

    def keep(module: object, parts: dict[str, torch.Tensor], details: object) -> None:
        seen.update(parts, details=details)

    layer.observer, layer.observe_details = keep, True
    with torch.no_grad():
        model(**inputs)
    layer.observer, layer.observe_details = None, False
    return seen


@pytest.mark.parametrize("n_padding", [0, 5])
@pytest.mark.parametrize("protection", [Protection(), Protection(n_sink=2, n_recent=3)])
def test_only_what_is_read_counts(
    model: GPT2LMHeadModel, hardware: Hardware, batches: list[torch.Tensor], n_padding: int, protection: Protection
) -> None:
    """By loops over tokens, as one would count at the bench: window 16, sub-tiles of 4, 32 tokens."""
    hardware.array.saturation_av = 1.0  # so that counters are full
    aimc.convert(model, replace(hardware, protection=protection))
    del model.transformer.h[1:]  # one layer, to compare with
    ids = batches[0]
    mask = torch.ones_like(ids)
    mask[1:, :n_padding] = 0
    seen = seen_in_one_layer(model, input_ids=ids, attention_mask=mask)
    k, q, details = seen["key"], seen["query"], seen["details"]
    read: dict[str, list[float]] = {name: [] for name in ("query", "key", "S_off", "S_full", "A")}
    for b in range(len(ids)):
        real = [t for t in range(32) if mask[b, t]]
        sinks = real[: protection.n_sink]
        for t in real:
            read["query"] += ((q[b, :, t] < 0) | (q[b, :, t] > 1)).flatten().tolist()
            if t not in sinks:
                read["key"] += ((k[b, :, t] < 0) | (k[b, :, t] > 0.9)).flatten().tolist()
            keys = [s for s in real if t - 16 < s <= t - protection.n_recent + (protection.n_recent == 0)]
            keys = [s for s in keys if s <= t and s not in sinks]
            read["S_off"] += (details.S[b, :, t, keys] <= 0).flatten().tolist()
            read["S_full"] += (details.S[b, :, t, keys] >= 80).flatten().tolist()
            for tile in {s % 16 // 4 for s in keys}:
                read["A"] += (details.A[b, :, t, tile].abs() >= 1).flatten().tolist()
    shares = aimc.clip_fractions(model, [{"input_ids": ids, "attention_mask": mask}])
    for name, values in read.items():
        assert shares[name] == pytest.approx(sum(values) / len(values)), name
    assert 0 < shares["A"] < 1 and 0 < shares["query"] < 1
    assert set(shares) == {"query", "key", "value", "S_off", "S_full", "A"}


@pytest.mark.parametrize("pruned", [False, True])
def test_scores_are_held_to_the_full_scale_of_their_head(
    model: GPT2LMHeadModel, batches: list[torch.Tensor], pruned: bool
) -> None:
    """A ramp counts down from it, and meets no lower bound; the second array of a pruned softmax is not there."""
    hardware = presets.for_pretrained(small_arrays(), protection=Protection(n_sink=1), pruned=pruned)
    aimc.convert(model, hardware)
    del model.transformer.h[1:]
    _, layer = next(gain_cell_layers(model))
    layer.score_full_scale = torch.tensor([0.1, 0.4])
    seen = seen_in_one_layer(model, input_ids=batches[0])
    hits = []
    for t in range(32):
        keys = [s for s in range(max(t - 15, 1), t + 1)]
        full_scales = seen["details"].S[:, :, t, keys] / (80.0 * torch.tensor([0.1, 0.4])[:, None])
        hits += ((full_scales > 1) | ((full_scales < -1) & (not pruned))).flatten().tolist()
    shares = aimc.clip_fractions(model, batches[:1])
    assert shares["S"] == pytest.approx(sum(hits) / len(hits)) and 0 < shares["S"] < 1
    assert set(shares) == ({"query", "key", "S"} if pruned else {"query", "key", "value", "S", "A"})
    if pruned:
        aimc.set_hardware(model, replace(hardware, pruning=Pruning(select="threshold")))
        assert set(aimc.clip_fractions(model, batches[:1])) == {"query", "key"}, "a comparator has no bound"


def test_where_nothing_is_read_nothing_is_clipped(
    model: GPT2LMHeadModel, hardware: Hardware, batches: list[torch.Tensor]
) -> None:
    aimc.convert(model, replace(hardware, protection=Protection(n_recent=16)))
    shares = aimc.clip_fractions(model, batches[:1])
    assert shares["A"] == shares["S_full"] == 0.0


def test_observers_are_taken_off_again(model: GPT2LMHeadModel, hardware: Hardware, batches: list[torch.Tensor]) -> None:
    aimc.convert(model, hardware)
    aimc.clip_fractions(model, batches[:1])
    assert all(layer.observer is None and not layer.observe_details for _, layer in gain_cell_layers(model))


def test_full_counters_of_the_normaliser_are_counted(
    model: GPT2LMHeadModel, hardware: Hardware, batches: list[torch.Tensor]
) -> None:
    column = Normaliser(is_on=True, full_scale=0.5)
    aimc.convert(model, replace(hardware, normaliser=column, threshold=True))
    del model.transformer.h[1:]
    _, layer = next(gain_cell_layers(model))
    layer.pulse_threshold.data.fill_(-0.2)  # every key that is seen gets some pulse
    details, full = seen_in_one_layer(model, input_ids=batches[0])["details"], []
    for t in range(32):
        for tile in {s % 16 // 4 for s in range(max(t - 15, 0), t + 1)}:
            keys = [s for s in range(max(t - 15, 0), t + 1) if s % 16 // 4 == tile]
            full += (details.phi[:, :, t, keys].sum(dim=-1) >= 0.5).flatten().tolist()
    shares = aimc.clip_fractions(model, batches[:1])
    assert 0 < shares["normaliser"] < 1
    assert shares["normaliser"] == pytest.approx(sum(full) / len(full))
    assert shares["S_off"] < 1 and shares["S_full"] >= 0
    array = replace(hardware.array, full_scales="head")
    aimc.set_hardware(model, replace(hardware, array=array, normaliser=replace(column, full_scale=2.0), threshold=True))
    assert layer.normaliser_full_scale is not None
    layer.normaliser_full_scale.fill_(0.25)
    assert aimc.clip_fractions(model, batches[:1])["normaliser"] == shares["normaliser"]
    layer.normaliser_full_scale[1] = 100.0  # which of the two heads is hardly ever full
    assert aimc.clip_fractions(model, batches[:1])["normaliser"] < shares["normaliser"]
