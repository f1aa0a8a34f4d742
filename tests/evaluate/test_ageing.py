"""Programming, drift, and what they do to a model; and training against both."""

from __future__ import annotations

import copy

import pytest
import torch
from aihwkit.simulator.parameters.enums import WeightClipType, WeightModifierType, WeightRemapType
from torch import nn
from transformers import PreTrainedModel

import aimc
from aimc import presets as hardware_presets
from aimc.evaluate.ageing import ageing
from aimc.evaluate.error_budget import ROWS, error_budget
from aimc.static import Static, follow_optimizer, on_tiles, presets, static_layers, static_of
from aimc.static.layer import StaticLinear
from aimc.static.programming import DAY_S, YEAR_S, without_compensation
from aimc.static.tiles import seeded
from tests.static.test_layers import logits
from tests.tiny_models import ids, tiny_model


def on_pcm(seed: int = 0) -> PreTrainedModel:
    model = tiny_model("gpt2", seed)
    aimc.convert(model, Static(rpu_config="pcm"))
    aimc.static.calibrate_input_ranges(model, [ids()])
    return model


def layer_of(config: object, n_in: int = 300, n_out: int = 40) -> StaticLinear:
    torch.manual_seed(0)
    return StaticLinear(nn.Linear(n_in, n_out), config, "layer").eval()


def test_same_seed_same_conductances_and_torchs_generator_is_left_alone() -> None:
    one, other = on_pcm(), on_pcm()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    aimc.static.program(one, seed=1)
    aimc.static.drift(one, DAY_S, seed=1)
    assert torch.equal(torch.rand(3), expected)
    aimc.static.program(other, seed=1)
    aimc.static.drift(other, DAY_S, seed=1)
    assert torch.equal(logits(one), logits(other))
    aimc.static.program(other, seed=2)
    assert not torch.equal(logits(one), logits(other))


def test_programming_noise_is_what_the_noise_model_says() -> None:
    """Error of a single device at g: the polynomial of [N19] in microsiemens; both devices of a pair have it."""
    config = presets.pcm()
    config.noise_model.read_noise_scale = config.noise_model.drift_scale = 0.0
    layer = layer_of(config, 256, 256)
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.weight[:, 0] = 1.0  # the largest weight of each output: scales 1
    layer.rescale()
    layer.program_analog_weights()
    error_us = (layer.tiles[0].tile.weight - 0.5)[:, 1:] * presets.PCM_G_MAX_US
    at_half = 0.26348 + 1.9650 * 0.5 - 1.1731 * 0.25
    at_zero = 0.26348
    clipped = at_zero * (0.5 - 1 / (2 * torch.pi)) ** 0.5  # the other device is at zero and cannot go below
    assert float(error_us.std()) == pytest.approx((at_half**2 + float(clipped) ** 2) ** 0.5, rel=0.03)


def test_conductances_shrink_with_time_and_compensation_scales_them_back() -> None:
    layer = layer_of(presets.pcm())
    layer.program_analog_weights()
    size = [tile.tile.weight.abs().mean() for tile in layer.tiles]
    layer.drift_analog_weights(YEAR_S)
    for before, tile in zip(size, layer.tiles, strict=True):
        shrunk = float(tile.tile.weight.abs().mean() / before)
        assert 0.2 < shrunk < 0.7  # (a year ÷ 20 s)^−0.05…0.1
        assert float(tile.alpha) == pytest.approx(1 / shrunk, rel=0.05)
    layer.drift_analog_weights(0.0)
    for before, tile in zip(size, layer.tiles, strict=True):
        assert float(tile.tile.weight.abs().mean() / before) == pytest.approx(1.0, abs=0.02)


def test_weights_trained_after_a_programming_are_those_programmed_next() -> None:
    """aihwkit would program the weights that it remembers from the first time."""
    layer = layer_of(presets.noiseless())
    layer.program_analog_weights()
    layer.unprogram()
    with torch.no_grad():
        layer.weight.mul_(2.0)
        x = torch.randn(4, 300)
        layer.program_analog_weights()
        assert torch.allclose(layer(x), layer.digital(x), atol=1e-4)


def test_ageing() -> None:
    model = tiny_model("gpt2")
    aimc.convert(model, hardware_presets.gain_cell_cmos(), Static(rpu_config="pcm"))
    aimc.static.calibrate_input_ranges(model, [ids()])
    before, tokens = logits(model), ids().flatten().repeat(4)
    seen: list[float] = []
    results = ageing(
        model,
        tokens,
        times_s={"now": 1.0, "a year": YEAR_S},
        chips=2,
        nonideality=hardware_presets.typical(),
        on_result=lambda r: seen.append(r.since_programming_s),
    )
    assert [(r.since_programming_s, r.compensated) for r in results] == [
        (1.0, True),
        (1.0, False),
        (YEAR_S, True),
        (YEAR_S, False),
    ]
    assert len(seen) == 4 and all(len(r.perplexity.per_chip) == 2 and r.perplexity.std > 0 for r in results)
    assert results[0].perplexity.mean == pytest.approx(results[1].perplexity.mean, rel=0.05)
    assert torch.equal(logits(model), before)  # not programmed, as before
    again = ageing(
        model, tokens, times_s=[YEAR_S], chips=2, nonideality=hardware_presets.typical(), compensation=[True]
    )
    assert again[0].perplexity.per_chip == results[2].perplexity.per_chip


def test_perplexity_on_tiles_is_the_same_each_time() -> None:
    model, tokens = on_pcm(), ids().flatten()
    assert float(aimc.perplexity(model, tokens)) == float(aimc.perplexity(model, tokens))


def test_without_compensation_is_undone_after_an_error() -> None:
    model = on_pcm()
    with pytest.raises(RuntimeError, match="on purpose"), without_compensation(model):
        raise RuntimeError("on purpose")
    assert all(
        tile.rpu_config.drift_compensation is not None for _, layer in static_layers(model) for tile in layer.tiles
    )


def test_error_budget() -> None:
    digital, analog = tiny_model("gpt2"), tiny_model("gpt2")
    aimc.convert(analog, hardware_presets.gain_cell_cmos())
    tokens = ids().flatten().repeat(2)
    settings = {"chips": 2, "nonideality": hardware_presets.typical()}
    names: list[str] = []
    rows = error_budget(digital, analog, tokens, [ids()], on_result=lambda name, value: names.append(name), **settings)
    assert tuple(rows) == ROWS == tuple(names)
    assert rows["digital"].per_chip == [float(aimc.perplexity(digital, tokens))]
    assert rows["only attention analog"].per_chip == aimc.perplexity(analog, tokens, **settings).per_chip
    assert len({rows[name].mean for name in ROWS}) == 4 and len(rows["both"].per_chip) == 2
    whole = on_tiles(analog, "pcm", [ids()])
    again = error_budget(digital, whole, tokens, [ids()], **settings)
    assert {name: value.per_chip for name, value in again.items()} == {
        name: value.per_chip for name, value in rows.items()
    }


def test_error_budget_refuses_models_in_the_wrong_place() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(ValueError, match="no attention on gain cells"):
        error_budget(model, model, ids().flatten(), [ids()])
    with pytest.raises(ValueError, match="before its conversion"):
        error_budget(on_pcm(), model, ids().flatten(), [ids()])


def test_the_same_tiles_for_another_model() -> None:
    tiles = Static(rpu_config="pcm", overrides={"*.mlp.*": "reram"}, layers=["*.mlp.*", "*.attn.c_attn"], head=True)
    model, other = tiny_model("gpt2"), tiny_model("gpt2", seed=1)
    aimc.convert(model, tiles)
    aimc.convert(other, static_of(model))
    assert other.config.aimc_static == model.config.aimc_static


def test_refusals() -> None:
    model = on_pcm()
    with pytest.raises(ValueError, match="hold their targets"):
        aimc.static.drift(model, 1.0)
    with pytest.raises(ValueError, match="since_programming_s=-1"):
        aimc.static.drift(model, -1.0)
    with pytest.raises(ValueError, match="chips=0"):
        ageing(model, ids().flatten(), chips=0)
    with pytest.raises(ValueError, match="batches is empty"):
        aimc.static.calibrate_input_ranges(model, [])
    with pytest.raises(ValueError, match="quantile=0"):
        aimc.static.calibrate_input_ranges(model, [ids()], quantile=0.0)
    aimc.static.program(model, seed=0)
    model.train()
    with pytest.raises(RuntimeError, match="aimc.static.unprogram"):
        model(ids())
    with pytest.raises(RuntimeError, match="call model.eval"):
        aimc.static.program(model, seed=0)


def test_input_ranges_are_quantiles_of_what_the_layers_see() -> None:
    model = on_pcm()
    seen = {}
    name = "transformer.h.1.mlp.c_proj"
    layer = dict(static_layers(model))[name]
    handle = layer.register_forward_pre_hook(lambda _, args: seen.update(x=args[0].abs().flatten()))
    with aimc.static.computing_digitally(model):
        model(ids())
    handle.remove()
    ranges = aimc.static.calibrate_input_ranges(model, [ids(), ids()], quantile=0.9)
    assert ranges[name] == pytest.approx(float(seen["x"].detach().quantile(0.9)), rel=0.01)
    assert float(layer.tiles[0].input_range) == pytest.approx(ranges[name])
    assert len(ranges) == 8


def test_weight_noise_is_injected_while_training_only() -> None:
    layer, x = layer_of(presets.pcm()), torch.randn(64, 300)
    for tile in layer.tiles:
        tile.rpu_config.forward.is_perfect = True
    assert torch.equal(layer(x), layer(x))
    layer.train()
    one, other = layer(x), layer(x)
    assert not torch.equal(one, other)
    one.sum().backward()
    assert layer.weight.grad is not None and all(tile.input_range.grad is not None for tile in layer.tiles)


def test_gradients_are_those_of_the_digital_layer_on_perfect_tiles() -> None:
    config = presets.noiseless()
    config.modifier.type = WeightModifierType.NONE
    layer, x = layer_of(config).train(), torch.randn(8, 300)
    layer(x).square().sum().backward()
    got = layer.weight.grad.clone()
    layer.weight.grad = None
    layer.digital(x).square().sum().backward()
    assert torch.allclose(got, layer.weight.grad, atol=1e-3)


def test_weights_are_clipped_and_remapped_after_every_step_of_any_optimiser() -> None:
    config = presets.noiseless()
    config.clip.type, config.clip.fixed_value = WeightClipType.FIXED_VALUE, 1.0
    config.remap.type = WeightRemapType.NONE
    layer = layer_of(config)
    bound = layer.weight.detach().abs().amax(1, keepdim=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    follow_optimizer(layer, optimizer)
    layer.weight.grad = torch.full_like(layer.weight, -0.01)
    before = layer.weight.detach().clone()
    optimizer.step()
    parts = [(rows, columns, tile.get_mapping_scales().view(-1, 1)) for tile, rows, columns in layer.parts()]
    assert len(parts) == 2
    for rows, columns, scales in parts:
        wanted = (before[rows, columns] + 0.01).clamp(-scales, scales)
        assert torch.allclose(layer.weight[rows, columns], wanted, atol=1e-6)
    assert bool((layer.weight.detach().abs() <= bound + 1e-6).all())
    for tile in layer.tiles:
        tile.rpu_config.clip.type, tile.rpu_config.remap.type = (
            WeightClipType.NONE,
            WeightRemapType.CHANNELWISE_SYMMETRIC,
        )
    with torch.no_grad():
        layer.weight.mul_(3.0)
    kept = layer.weight.detach().clone()
    layer.post_update_step()
    assert torch.equal(layer.weight, kept)
    for tile, rows, columns in layer.parts():
        assert torch.allclose(tile.get_mapping_scales(), kept[rows, columns].abs().amax(1))


def test_joint_training_makes_a_model_that_bears_its_noise() -> None:
    """Gain cells and tiles in one graph, trained with any optimiser: the loss on noisy weights falls."""
    torch.manual_seed(0)
    model = tiny_model("gpt2")
    aimc.convert(model, hardware_presets.gain_cell_cmos(), Static(rpu_config="pcm"))
    aimc.static.calibrate_input_ranges(model, [ids()])
    untrained = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    follow_optimizer(model, optimizer)
    model.train()
    for _ in range(15):
        model(ids(), labels=ids()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tokens = ids().flatten()
    rule = {"times_s": [DAY_S], "chips": 2, "compensation": [True], "stride": 32}
    trained = ageing(model, tokens, **rule)[0].perplexity
    assert trained.mean < 0.8 * ageing(untrained, tokens, **rule)[0].perplexity.mean
    ranges = [float(tile.input_range) for _, layer in static_layers(model) for tile in layer.tiles]
    before = [float(tile.input_range) for _, layer in static_layers(untrained) for tile in layer.tiles]
    assert ranges != before  # learned


def test_programming_drift_and_reads_are_independent_draws():
    """One seed for a chip, and yet no device gets the same number three times."""
    drawn = []
    for purpose in ("programming", "drift", "reads"):
        with seeded(1, purpose):
            drawn.append(torch.randn(4096))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(float(torch.corrcoef(torch.stack([drawn[a], drawn[b]]))[0, 1])) < 0.08
    with seeded(1, "drift"):
        assert torch.equal(torch.randn(4096), drawn[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"times_s": []}, "at least one time"),
        ({"times_s": [1.0, 1.0]}, "each once"),
        ({"times_s": [1.0, -1.0]}, "times_s has -1.0"),
        ({"compensation": []}, "each once"),
        ({"compensation": [True, True]}, "each once"),
        ({"compensation": ["yes"]}, "give .True., .False., or both"),
    ],
)
def test_ageing_refuses_before_it_programs(settings: dict[str, object], message: str) -> None:
    model = on_pcm()
    before = logits(model)
    with pytest.raises(ValueError, match=message):
        ageing(model, ids().flatten(), **settings)
    assert torch.equal(logits(model), before)


def test_programmings_are_chips() -> None:
    model, tokens = on_pcm(), ids().flatten()
    rule = {"times_s": [DAY_S], "compensation": [True]}
    now = ageing(model, tokens, chips=2, **rule)
    with pytest.warns(DeprecationWarning, match="called chips now"):
        former = ageing(model, tokens, programmings=2, **rule)
    assert now == former and len(now[0].perplexity.per_chip) == 2


def test_the_budget_refuses_before_it_measures() -> None:
    digital, analog, seen = tiny_model("gpt2"), tiny_model("gpt2"), []
    aimc.convert(analog, hardware_presets.gain_cell_cmos())
    for batches, settings, message in (
        ([], {}, "batches is empty"),
        ([ids()], {"since_programming_s": -1.0}, "since_programming_s=-1"),
        ([ids()], {"chips": 0}, "chips=0"),
    ):
        with pytest.raises(ValueError, match=message):
            error_budget(
                digital, analog, ids().flatten(), batches, on_result=lambda name, _: seen.append(name), **settings
            )
    assert seen == []
