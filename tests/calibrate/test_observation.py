"""Clip fractions, counted by hand on the operator's own details."""

from __future__ import annotations

import torch
from transformers import GPT2LMHeadModel

import aimc
from aimc.hardware import Hardware
from aimc.models.hook import gain_cell_layers


def test_clip_fractions_count_what_hits_a_bound(
    model: GPT2LMHeadModel, hardware: Hardware, batches: list[torch.Tensor]
) -> None:
    aimc.convert(model, hardware)
    _, layer = next(gain_cell_layers(model))
    seen = {}

    def keep(module: object, parts: dict[str, torch.Tensor], details: object) -> None:
        seen.update(parts, details=details)

    hits = aimc.clip_fractions(model, batches[:1])
    del model.transformer.h[1:]  # one layer, to compare with
    only = aimc.clip_fractions(model, batches[:1])
    layer.observer, layer.observe_details = keep, True
    with torch.no_grad():
        model(batches[0])
    k, details = seen["key"], seen["details"]
    assert only["key"] == float(((k < 0) | (k > 0.9)).double().mean())
    visible = [(t, s) for t in range(32) for s in range(32) if s <= t < s + 16]
    charge = torch.stack([details.S[:, :, t, s] for t, s in visible])
    assert only["S_off"] == float((charge <= 0).double().mean())
    assert only["S_full"] == float((charge >= 80).double().mean())
    assert only["A"] == float((details.A.abs() >= 1).double().mean())
    assert set(hits) == {"query", "key", "value", "S_off", "S_full", "A"}
    assert 0 < hits["query"] < 1


def test_observers_are_taken_off_again(model: GPT2LMHeadModel, hardware: Hardware, batches: list[torch.Tensor]) -> None:
    aimc.convert(model, hardware)
    aimc.clip_fractions(model, batches[:1])
    assert all(layer.observer is None and not layer.observe_details for _, layer in gain_cell_layers(model))
