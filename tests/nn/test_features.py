"""Centring, balancing and rotating features leaves attention as it is."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import aimc
from aimc import presets
from aimc.hardware import Array, ConfigError, Features, Hardware, Leakage, Protection
from aimc.models.arrays import gain_cell_layers
from aimc.nn.attention import GainCellAttention
from tests.tiny_models import ids, tiny_model

NO_LEVELS = dict.fromkeys(("input_levels", "storage_levels", "score_levels", "probability_levels", "readout_levels"))
FREEDOMS = {
    "centre_keys": Features(centre_keys=True),
    "centre_values": Features(centre_values=True),
    "balance": Features(balance=True),
    "normalise_queries": Features(normalise_queries=True),
    "normalise_keys": Features(normalise_keys=True),
    "normalise_values": Features(normalise_values=True),
    "rotation_qk": Features(rotation_qk="hadamard"),
    "rotation_av": Features(rotation_av="orthogonal"),
}
ALL = Features(centre_keys=True, centre_values=True, balance=True, rotation_qk="orthogonal", rotation_av="orthogonal")


def hardware_with(features: Features, **changes: object) -> Hardware:
    array = Array(window=64, rows=8, full_scales="head")
    return replace(
        presets.with_softmax(replace(presets.ideal(), array=array), **NO_LEVELS), features=features, **changes
    )


def relative_error(features: Features, family: str) -> float:
    reference, batch = tiny_model(family), ids(seed=0, batch=4)
    model = copy.deepcopy(reference)
    aimc.convert(model, hardware_with(features))
    aimc.calibrate_ranges(model, reference, [batch])
    layer = next(layer for _, layer in gain_cell_layers(model))
    assert layer.features is not None
    with torch.no_grad():
        expected = reference(batch).logits
        return float((model(batch).logits - expected).abs().max() / expected.std())


@pytest.mark.parametrize("freedom", FREEDOMS)
def test_each_freedom_leaves_the_logits(freedom: str) -> None:
    assert relative_error(FREEDOMS[freedom], "llama") < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3"])  # learned positions, sliding windows, norms of heads
def test_all_freedoms_together_leave_the_logits_of_every_family(family: str) -> None:
    assert relative_error(ALL, family) < 2e-5


def test_a_hadamard_matrix_of_another_size_is_refused_by_name() -> None:
    hardware = hardware_with(Features(rotation_av="hadamard"))
    with pytest.raises(ConfigError, match=r"features\.rotation_av='hadamard'.*12 features.*'orthogonal'"):
        GainCellAttention(4, 2, hardware, layer=0, head_size=12)
    GainCellAttention(4, 2, hardware, layer=0, head_size=16)
    with pytest.raises(ConfigError, match="head_size"):
        GainCellAttention(4, 2, hardware, layer=0)


def test_nothing_behind_the_hard_sigmoid_puts_back_what_was_divided_by() -> None:
    for name in ("normalise_queries", "normalise_keys", "normalise_values"):
        with pytest.raises(ConfigError, match="features.*softmax"):
            Hardware(features=Features(**{name: True}))


def test_what_was_found_is_saved_and_comes_back(tmp_path) -> None:
    reference, batch = tiny_model("llama"), ids(seed=0, batch=4)
    model = copy.deepcopy(reference)
    aimc.convert(model, hardware_with(ALL))
    aimc.calibrate_ranges(model, reference, [batch])
    model.save_pretrained(tmp_path)
    again = aimc.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(batch).logits, again(batch).logits)
        model.to(torch.bfloat16)
    layer = next(layer for _, layer in gain_cell_layers(model))
    assert layer.features.key_centre.dtype == layer.score_full_scale.dtype == torch.float32


@pytest.mark.parametrize("protection", [Protection(), Protection(n_sink=1, n_recent=2)])
def test_generation_goes_through_the_same_features(protection: Protection) -> None:
    reference, batch = tiny_model("llama"), ids(seed=0, batch=2)
    model = copy.deepcopy(reference)
    leaky = Leakage(tau_s=1.0, token_time_s=0.02, compensate=True)
    hardware = hardware_with(ALL, leakage=leaky, protection=protection, cell=presets.gain_cell_cmos().cell)
    hardware.storage_dac = replace(hardware.storage_dac, n_levels=16, spacing="equal_charge")
    aimc.convert(model, hardware)
    aimc.calibrate_ranges(model, reference, [batch])
    with torch.no_grad():
        whole = model(batch).logits
        cache = aimc.GainCellCache(model)
        pieces = [model(batch[:, t : t + 1], past_key_values=cache, use_cache=True).logits for t in range(8)]
    assert torch.allclose(torch.cat(pieces, dim=1), whole[:, :8], atol=1e-4)
