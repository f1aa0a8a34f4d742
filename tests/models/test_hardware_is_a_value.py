"""Whoever keeps a description of hardware changes no model by changing it, and a refused one leaves nothing changed."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import GPT2LMHeadModel

import aimc
from aimc.hardware import Array, ConfigError, Hardware
from aimc.models.arrays import gain_cell_layers, hardware_of
from tests.tiny_models import ids, tiny_model


def test_hardware_that_is_still_held(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    aimc.convert(model, hardware)
    before, record = hardware_of(model), copy.deepcopy(model.config.aimc)
    hardware.noise.write_v = 0.1
    hardware_of(model).noise.write_v = 0.2
    assert hardware_of(model) == before and model.config.aimc == record
    other = replace(before, noise=aimc.Noise(read_qk=0.1))
    aimc.set_hardware(model, other)
    other.noise.read_qk = 0.3
    assert hardware_of(model).noise.read_qk == 0.1
    assert all(layer.machine.noise.read_qk == 0.1 for _, layer in gain_cell_layers(model))


def test_refused_hardware_changes_no_layer() -> None:
    model = tiny_model("gemma2")  # the first layer sees 8 tokens, the second all
    model.model.layers[0].self_attn.sliding_window, model.model.layers[1].self_attn.sliding_window = None, 8
    model.config.layer_types = ["full_attention", "sliding_attention"]
    aimc.convert(model, replace(aimc.presets.gain_cell_cmos(), array=Array(window=16, rows=4)))
    before, record = hardware_of(model), copy.deepcopy(model.config.aimc)
    with pytest.raises(ConfigError, match="sliding window of 8"):
        aimc.set_hardware(model, replace(before, array=Array(window=15, rows=5)))
    assert all(layer.hardware == before for _, layer in gain_cell_layers(model)) and model.config.aimc == record


def test_a_window_shorter_than_a_sub_tile_is_one_sub_tile() -> None:
    model = tiny_model("gemma2")
    hardware = replace(aimc.presets.gain_cell_cmos(), array=Array(window=64, rows=16))
    aimc.convert(model, hardware)
    machines = [layer.machine.array for _, layer in gain_cell_layers(model)]
    assert [(array.window, array.rows) for array in machines] == [(8, 8), (64, 16)]
    with torch.no_grad():
        assert torch.isfinite(model(ids()).logits).all()
