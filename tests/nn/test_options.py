"""A model with every option of the hard sigmoid: token by token equals all at once, and what is trained is saved."""

from __future__ import annotations

from dataclasses import replace

import torch

import aimc
from aimc.hardware import Array, Converter, Noise, Normaliser
from aimc.models.arrays import gain_cell_layers
from aimc.nn.positions import position_gain, tokens_seen
from tests.tiny_models import ids, tiny_model


def converted():
    hardware = replace(
        aimc.presets.gain_cell_cmos(),
        array=Array(window=16, rows=8),
        input_dac=Converter(n_levels=32, v_min=-1.0, coding="sign_magnitude"),
        normaliser=Normaliser(is_on=True, full_scale=4.0, counter=Converter(n_levels=64)),
        threshold=True,
        position_gain=True,
        noise=Noise(mismatch_gain=0.05, column_gain=0.02, column_offset=0.01, read_av=0.01),
    )
    model = tiny_model("llama")
    aimc.convert(model, hardware)
    for _, layer in gain_cell_layers(model):
        n = len(layer.query_scaler.scale)
        layer.pulse_threshold.data.copy_(torch.linspace(-0.2, 0.0, n))
        layer.position_exponent.data.copy_(torch.linspace(-0.5, 1.0, n))
    return model.eval()


def test_tokens_that_a_query_sees() -> None:
    padding = torch.tensor([[False, False, False, True, True, True, False, False]])
    seen = tokens_seen(8, 4, None, padding, torch.zeros(1))
    assert seen.tolist() == [[1, 2, 3, 3, 2, 1, 1, 2]]
    assert tokens_seen(6, 4, None, None, torch.zeros(1)).tolist() == [[1, 2, 3, 4, 4, 4]]
    gain = position_gain(torch.ones(1), tokens_seen(7, 1024, None, None, torch.zeros(1, dtype=torch.bfloat16)), 1024)
    torch.testing.assert_close(gain.flatten(), 1024 / torch.arange(1.0, 8.0))


def test_token_by_token_is_all_at_once_with_padding() -> None:
    model, tokens = converted(), ids(seed=0, batch=2)[:, :24]
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0

    def reseeded() -> None:
        for number, (_, layer) in enumerate(gain_cell_layers(model)):
            layer.generator = torch.Generator().manual_seed(number)

    reseeded()
    with torch.no_grad():
        whole = model(input_ids=tokens, attention_mask=mask).logits
        reseeded()
        cache, parts = aimc.GainCellCache(model), []
        for a, b in [(0, 10), (10, 13), *((t, t + 1) for t in range(13, tokens.shape[1]))]:
            parts.append(model(input_ids=tokens[:, a:b], attention_mask=mask[:, :b], past_key_values=cache).logits)
    difference = (torch.cat(parts, dim=1) - whole)[mask.bool()].abs().max()
    assert difference < 1e-4 * whole.abs().max()
    for _, layer in gain_cell_layers(model):  # and it matters
        layer.position_exponent.data.zero_()
    reseeded()
    with torch.no_grad():
        without = model(input_ids=tokens, attention_mask=mask).logits
    assert (without - whole)[mask.bool()].abs().max() > 1e-3 * whole.abs().max()


def test_what_is_trained_is_saved_and_comes_back(tmp_path) -> None:
    model, tokens = converted(), ids(seed=0, batch=2)[:, :12]
    aimc.set_hardware(model, replace(next(gain_cell_layers(model))[1].hardware, noise=Noise()))
    model.save_pretrained(tmp_path)
    loaded = aimc.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=tokens).logits, model(input_ids=tokens).logits)
    names = dict(loaded.named_parameters())
    assert any(name.endswith("pulse_threshold") for name in names)
    aimc.set_hardware(loaded, aimc.presets.gain_cell_cmos())
    assert not any(name.endswith(("pulse_threshold", "position_exponent")) for name in dict(loaded.named_parameters()))
