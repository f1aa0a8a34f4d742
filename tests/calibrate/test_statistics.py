"""Statistics matching: it finds its way back, says where it did not, and is the same every time."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

import aimc
from aimc.calibrate.moments import Moments
from aimc.calibrate.observation import analog_moments, digital_moments
from aimc.calibrate.statistics import RANGE_IN_STD
from aimc.hardware import Hardware
from aimc.models.arrays import gain_cell_layers
from tests.conftest import tiny_gpt2

Batches = list[torch.Tensor]


def scalers(model: GPT2LMHeadModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if "gain_cell" in name}


def disturbed(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """A copy with every scaler moved."""
    copied = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            if "gain_cell" in name:
                parameter.mul_(1 + 0.3 * (2 * torch.rand(parameter.shape, generator=generator) - 1)).add_(0.05)
    return copied


_LINEAR: list[GPT2LMHeadModel] = []


@pytest.fixture
def linear(model: GPT2LMHeadModel, batches: Batches, hardware: Hardware) -> GPT2LMHeadModel:
    """A copy of one that is calibrated once: all of its fixtures are the same for each test."""
    if not _LINEAR:
        _LINEAR.append(copy.deepcopy(model))
        aimc.convert(_LINEAR[0], aimc.presets.linearised(hardware))
        aimc.initialise_scalers(_LINEAR[0], model, batches)
    return copy.deepcopy(_LINEAR[0])


def test_moments_are_those_of_numpy() -> None:
    x = torch.randn(3, 2, 5, 4) + torch.tensor([1.0, -2.0])[None, :, None, None]
    moments = Moments()
    moments.add(x[:1])
    moments.add(x[1:])
    torch.testing.assert_close(moments.mean, x.double().mean(dim=(0, 2, 3)))
    torch.testing.assert_close(moments.std, x.double().transpose(0, 1).flatten(1).std(dim=1, correction=0))


def test_a_model_matches_itself_at_once(linear: GPT2LMHeadModel, batches: Batches) -> None:
    before = scalers(linear)
    report = aimc.match_statistics(linear, copy.deepcopy(linear), batches)
    assert report.converged and report.iterations == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in scalers(linear).items())


def test_disturbed_scalers_find_their_way_back(linear: GPT2LMHeadModel, batches: Batches) -> None:
    """Same weights, same cell: the statistics fix gain and offset uniquely, so the scalers themselves must return."""
    other = disturbed(linear)
    report = aimc.match_statistics(other, linear, batches, iterations=40, tolerance=1e-4)
    assert report.converged, report
    assert report.history[0] > 0.1 > 1e-4 > report.history[-1]
    for name, tensor in scalers(linear).items():
        torch.testing.assert_close(scalers(other)[name], tensor, atol=5e-3, rtol=5e-3)


def test_nonlinear_cell_reaches_the_linear_statistics(
    linear: GPT2LMHeadModel, batches: Batches, hardware: Hardware
) -> None:
    target = analog_moments(linear, batches)
    model = copy.deepcopy(linear)
    aimc.set_hardware(model, hardware)
    report = aimc.match_statistics(model, reference=linear, batches=batches, iterations=20, tolerance=0.02)
    assert report.converged, report
    for now, wanted in zip(analog_moments(model, batches).values(), target.values(), strict=True):
        for part, moments in now.items():
            assert ((moments.mean - wanted[part].mean).abs() <= 0.021 * wanted[part].std).all()
            assert ((moments.std / wanted[part].std - 1).abs() <= 0.021).all()


def test_report_names_the_heads_that_did_not_meet_it(linear: GPT2LMHeadModel, batches: Batches) -> None:
    other = disturbed(linear)
    report = aimc.match_statistics(other, linear, batches, iterations=0)
    assert not report.converged
    worst = report.unmatched[0]
    assert worst.size == max(d.size for d in report.unmatched) == report.history[-1]
    assert f"layer {worst.layer} {worst.part} head {worst.head}" in str(report)


def test_only_the_parts_asked_for_change(linear: GPT2LMHeadModel, batches: Batches) -> None:
    other = disturbed(linear)
    before = scalers(other)
    aimc.match_statistics(other, linear, batches, iterations=2, parts=("key",))
    changed = {name.split(".")[-2] for name, tensor in scalers(other).items() if not torch.equal(tensor, before[name])}
    assert changed == {"key_scaler"}


def test_deterministic_also_with_noise(linear: GPT2LMHeadModel, batches: Batches, hardware: Hardware) -> None:
    hardware.noise = aimc.presets.typical()
    results = []
    for seed in (1, 2):
        model = copy.deepcopy(linear)
        aimc.set_hardware(model, hardware)
        torch.manual_seed(seed)
        aimc.match_statistics(model, linear, batches, iterations=2)
        results.append(scalers(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_matching_leaves_the_models_mode_and_random_state_alone(linear: GPT2LMHeadModel, batches: Batches) -> None:
    model = disturbed(linear).train()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    aimc.match_statistics(model, linear, batches, iterations=1)
    assert model.training and torch.equal(torch.rand(1), expected)


def test_start_from_digital_statistics(model: GPT2LMHeadModel, linear: GPT2LMHeadModel, batches: Batches) -> None:
    """q, k and v of the digital model, once scaled, put the stated number of standard deviations on the clip range."""
    digital = digital_moments(model, batches)
    for (_, layer), moments in zip(gain_cell_layers(linear), digital.values(), strict=True):
        for part, full_scale in (("query", 1.0), ("key", 0.45), ("value", 0.45)):
            spread = layer.scaler(part).scale.detach().double() * moments[part].std * RANGE_IN_STD[part]
            torch.testing.assert_close(spread, torch.full_like(spread, full_scale), rtol=1e-5, atol=0)
        centre = layer.key_scaler.scale.double() * moments["key"].mean + layer.key_scaler.offset.double()
        torch.testing.assert_close(centre.detach(), torch.full_like(centre, 0.45), rtol=1e-5, atol=0)
    first_now, first_wanted = analog_moments(linear, batches)[0]["output"], digital[0]["output"]
    torch.testing.assert_close(first_now.std, first_wanted.std, rtol=0.03, atol=0)


def test_digital_reference_only_for_the_output(
    model: GPT2LMHeadModel, linear: GPT2LMHeadModel, batches: Batches
) -> None:
    with pytest.raises(ValueError, match=r"parts=\('output',\)"):
        aimc.match_statistics(linear, model, batches)


def test_bad_arguments(model: GPT2LMHeadModel, linear: GPT2LMHeadModel, batches: Batches, hardware: Hardware) -> None:
    with pytest.raises(ValueError, match=r"aimc\.convert"):
        aimc.match_statistics(model, linear, batches)
    with pytest.raises(ValueError, match="damping=1.5"):
        aimc.match_statistics(linear, linear, batches, damping=1.5)
    with pytest.raises(ValueError, match="no batch"):
        aimc.match_statistics(linear, linear, [])
    bigger = tiny_gpt2(n_layer=3)
    aimc.convert(bigger, hardware)
    with pytest.raises(ValueError, match="same architecture"):
        aimc.match_statistics(linear, bigger, batches)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": ()}, "name one or more of query, key, value, output"),
        ({"parts": ("keys",)}, "parts=.'keys',."),
        ({"parts": "key"}, "a sequence of names is needed"),
        ({"parts": ("key", "key")}, "each once"),
        ({"iterations": -1}, "iterations=-1"),
        ({"iterations": 1.5}, "iterations=1.5"),
        ({"damping": float("nan")}, "damping=nan"),
        ({"tolerance": -0.1}, "tolerance=-0.1"),
        ({"tolerance": float("inf")}, "tolerance=inf"),
    ],
)
def test_settings_out_of_range(
    linear: GPT2LMHeadModel, batches: Batches, settings: dict[str, object], message: str
) -> None:
    before = scalers(linear)
    with pytest.raises(ValueError, match=message):
        aimc.match_statistics(linear, copy.deepcopy(linear), batches, **settings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in scalers(linear).items())


def test_skipped_layers_keep_their_numbers_and_have_to_be_the_same(
    model: GPT2LMHeadModel, batches: Batches, hardware: Hardware
) -> None:
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    aimc.convert(first, hardware, skip_layers=[1])
    aimc.convert(second, hardware, skip_layers=[0])
    other = disturbed(second)
    report = aimc.match_statistics(other, second, batches, iterations=0)
    assert {d.layer for d in report.unmatched} == {1} and "layer 1 " in str(report)
    with pytest.raises(ValueError, match="layers 1 on arrays and the reference 0; .*skip_layers"):
        aimc.match_statistics(second, first, batches)
    report = aimc.initialise_scalers(second, model, batches, iterations=0)
    assert {d.layer for d in report.unmatched} <= {1}


def test_the_start_needs_a_digital_reference(linear: GPT2LMHeadModel, batches: Batches) -> None:
    with pytest.raises(ValueError, match="runs on arrays itself"):
        aimc.initialise_scalers(linear, copy.deepcopy(linear), batches)


_WORKER = """
import copy, sys, torch, torch.distributed as dist
sys.path.insert(0, {root!r})
import aimc
from tests.conftest import small_arrays, tiny_gpt2
from tests.calibrate.test_statistics import disturbed, scalers
dist.init_process_group("gloo")
batches = [torch.randint(64, (4, 32), generator=torch.Generator().manual_seed(s)) for s in range(4)]
linear = tiny_gpt2()
aimc.convert(linear, aimc.presets.linearised(small_arrays()))
model = disturbed(linear)
mine = batches[dist.get_rank()::dist.get_world_size()]
aimc.match_statistics(model, linear, mine, iterations=3, tolerance=0)
torch.save(scalers(model), f"{out}/{{dist.get_rank()}}.pt")
"""


@pytest.mark.slow
def test_two_processes_end_with_the_scalers_of_one(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    script = tmp_path / "worker.py"
    script.write_text(_WORKER.format(root=root, out=tmp_path))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    subprocess.run([*launch, "2", str(script)], check=True, env=environment, capture_output=True, timeout=180)
    two = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    subprocess.run([*launch, "1", str(script)], check=True, env=environment, capture_output=True, timeout=180)
    one = torch.load(tmp_path / "0.pt", weights_only=True)
    for name, tensor in one.items():
        assert torch.equal(two[0][name], two[1][name]), name
        torch.testing.assert_close(two[0][name], tensor, rtol=1e-5, atol=1e-6)
