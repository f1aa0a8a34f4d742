"""Perplexity and cost of a model over a sweep, on a tiny model."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import aimc
from aimc import presets
from aimc.circuit import silicon_cell
from aimc.evaluate.design import Design
from aimc.evaluate.perplexity import Perplexity
from aimc.evaluate.tradeoff import Point, mark_front, sweep
from aimc.hardware import ConfigError, Noise, Protection
from aimc.models.arrays import gain_cell_layers, hardware_of
from tests.conftest import small_arrays, tiny_gpt2


@pytest.fixture
def converted(batches):
    model, digital = tiny_gpt2(), tiny_gpt2()
    aimc.convert(model, small_arrays())
    aimc.initialise_scalers(model, digital, batches)
    return model


def test_a_point_is_the_perplexity_on_that_hardware(converted, tokens):
    seen: list[Point] = []
    before = copy.deepcopy(converted.state_dict())
    result = sweep(converted, tokens, "hardware.readout.n_levels", [8, 32], on_point=seen.append)
    assert [p.label for p in result.points] == ["8", "32"] and seen == result.points
    for point, levels in zip(result.points, (8, 32), strict=True):
        assert point.hardware.readout.n_levels == levels
        alone = copy.deepcopy(converted)
        aimc.set_hardware(alone, point.hardware)
        assert point.perplexity.mean == pytest.approx(aimc.perplexity(alone, tokens).mean, rel=1e-6)
    assert result.points[1].energy_j > result.points[0].energy_j
    assert hardware_of(converted).readout.n_levels == 32  # the model is left as it was
    assert all(torch.equal(value, before[name]) for name, value in converted.state_dict().items())


@pytest.mark.parametrize("between", ["circuits", "softmax"])
def test_another_supply_keeps_the_model_where_it_was(converted, tokens, between, batches):
    """A linear cell with ideal converters on twice the supply, its slope halved, is the same machine; and so is what a
    digital memory makes of its tokens."""
    own = replace(
        hardware_of(converted), cell=presets.ideal().cell, leakage=replace(hardware_of(converted).leakage, tau_s=None)
    )
    if between == "softmax":
        own = replace(presets.with_softmax(own), protection=Protection(n_sink=1, n_recent=3))
    aimc.set_hardware(converted, own)
    if between == "softmax":
        aimc.calibrate_ranges(converted, tiny_gpt2(), batches)
        with torch.no_grad():  # so that it matters what is attended to
            for _, layer in gain_cell_layers(converted):
                layer.score_gain.mul_(30.0)

    def supply(design: Design, factor: float) -> Design:
        hardware = design.hardware
        cell = replace(hardware.cell, supply_v=0.9 * factor, offset_v=0.45 * factor, coefficients=[0.0, 19.3 / factor])
        return replace(
            design, hardware=replace(hardware, cell=cell, storage_dac=replace(hardware.storage_dac, v_max=0.9 * factor))
        )

    one, two = sweep(converted, tokens, supply, [1.0, 2.0]).points
    assert two.perplexity.mean == pytest.approx(one.perplexity.mean, rel=1e-4)


def test_values_that_only_one_machine_has_a_tensor_for(converted, tokens):
    result = sweep(converted, tokens, "hardware.array.full_scales", ["global", "head"])
    one, other = (point.perplexity.mean for point in result.points)
    assert one == other and not result.refused


def test_matching_brings_a_changed_cell_back(converted, batches, tokens):
    def weaker(design: Design, factor: float) -> Design:
        array = replace(design.hardware.array, saturation_av=design.hardware.array.saturation_av * factor)
        return replace(design, hardware=replace(design.hardware, array=array))

    own = aimc.perplexity(converted, tokens).mean
    left, matched = (
        sweep(converted, tokens, weaker, [2.0], batches=b).points[0].perplexity.mean for b in ((), batches)
    )
    assert abs(matched / own - 1) < abs(left / own - 1)


def test_the_front_and_the_table(converted, tokens):
    design = Design(cell=silicon_cell(), hardware=hardware_of(converted), noise=False)
    result = sweep(
        converted, tokens, "cell.read_v", [0.9, 0.7, 0.0], design=design, unit="V", digital=50.0, name="read pulse"
    )
    assert "read_v=0.0" in result.refused["0 V"] and "refused" in str(result)
    assert "900 mV" in str(result) and "read pulse" in str(result)
    front = result.front
    assert front and all(
        a.energy_j <= b.energy_j and a.perplexity.mean >= b.perplexity.mean
        for a, b in zip(front, front[1:], strict=False)
    )
    for point in result.points:
        beaten = any(o.energy_j < point.energy_j and o.perplexity.mean < point.perplexity.mean for o in result.points)
        assert point.on_front is not beaten


def test_chips_give_error_bars_and_circuits_warn(converted, tokens):
    cell = silicon_cell()
    leaky = replace(cell, leak_conductance_s=1e5 * cell.leak_conductance_s)
    result = sweep(
        converted,
        tokens,
        "cell.temperature_k",
        [300.0],
        design=Design(cell=leaky, hardware=hardware_of(converted)),
        chips=2,
    )
    assert len(result.points[0].perplexity.per_chip) == 2
    assert any("short against the window" in w for w in result.points[0].warnings)
    assert result.points[0].hardware.noise != Noise()


def test_a_refused_cost_does_not_lose_the_points_measured(converted, tokens):
    result = sweep(converted, tokens, "costs.batch", [1.0, 0.5])
    assert [p.label for p in result.points] == ["1"] and "batch=0.5" in result.refused["0.5"]


def test_what_is_no_number_is_on_no_front(converted, tokens):
    cost = sweep(converted, tokens, "costs.batch", [1.0]).points[0].cost
    points = [
        Point(label="", perplexity=Perplexity(mean=m, std=0.0), cost=cost, hardware=hardware_of(converted))
        for m in (10.0, float("nan"))
    ]
    mark_front(points)
    assert [p.on_front for p in points] == [True, False]


def test_what_cannot_be_swept(converted, tokens):
    with pytest.raises(ConfigError, match="no value can be built .*read_v=0.0"):
        sweep(converted, tokens, "cell.read_v", [0.0], design=Design(cell=silicon_cell()))
    with pytest.raises(ConfigError, match="none was given"):
        sweep(converted, tokens, "cell.read_v", [])
    with pytest.raises(ConfigError, match="has no field 'colour'"):
        sweep(converted, tokens, "hardware.colour", [1])
    with pytest.raises(ValueError, match="not converted|no gain-cell"):
        sweep(tiny_gpt2(), tokens, "hardware.array.window", [16])


def test_the_token_time_is_the_designs_also_where_the_model_says_none(converted, tokens):
    """A model's own description may leave the time of a token to its layers."""
    expected = sweep(converted, tokens, "hardware.readout.n_levels", [16]).points[0]
    for _, layer in gain_cell_layers(converted):
        layer.hardware = replace(layer.hardware, leakage=replace(layer.hardware.leakage, token_time_s=None))
    point = sweep(converted, tokens, "hardware.readout.n_levels", [16]).points[0]
    assert point.hardware.leakage.token_time_s == point.cost.latency_s.total
    assert point.perplexity == expected.perplexity and point.hardware == expected.hardware


def test_a_sweep_takes_a_measurement(converted, tokens):
    measurement = aimc.evaluate.Measurement(context=16, tokens=60)
    (point,) = sweep(converted, tokens, "hardware.readout.n_levels", [32], measurement).points
    assert (point.perplexity.context, point.perplexity.n_tokens) == (16, 59)
