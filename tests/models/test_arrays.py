"""What a converted model says about its arrays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

import aimc
from aimc.hardware import Hardware, Noise
from aimc.models import gain_cell_layers, hardware_of, has_arrays, is_digital, machine_of
from aimc.models.arrays import set_draws, set_generator
from tests.conftest import tiny_gpt2


def test_the_old_question_still_answers_and_names_the_new_one(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    with pytest.warns(DeprecationWarning, match="not aimc.models.has_arrays"):
        assert is_digital(model) and not has_arrays(model)
    aimc.convert(model, hardware)
    with pytest.warns(DeprecationWarning, match="not aimc.models.has_arrays"):
        assert not is_digital(model) and has_arrays(model)


def token_times_s(model: GPT2LMHeadModel) -> set[float | None]:
    return {layer.machine.leakage.token_time_s for _, layer in gain_cell_layers(model)}


def test_the_token_time_of_a_model_stays_with_it(hardware: Hardware, tmp_path: Path) -> None:
    """Where hardware leaves it to the model, the next model has a time of its own."""
    hardware.leakage.token_time_s = None
    step_s = hardware.leakage.step_latency_s
    two, four = tiny_gpt2(n_layer=2), tiny_gpt2(n_layer=4)
    aimc.convert(two, hardware)
    assert hardware_of(two) == hardware and token_times_s(two) == {2 * step_s}
    aimc.convert(four, hardware_of(two))
    assert token_times_s(four) == {4 * step_s} and machine_of(four).leakage.token_time_s == 4 * step_s
    aimc.set_hardware(two, hardware_of(four))
    assert token_times_s(two) == {2 * step_s}
    two.save_pretrained(tmp_path)
    assert two.config.aimc["leakage"]["token_time_s"] is None
    loaded = aimc.from_pretrained(tmp_path)
    assert hardware_of(loaded) == hardware and token_times_s(loaded) == {2 * step_s}


def test_a_token_time_that_was_given_is_kept(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    hardware.leakage.token_time_s = 1e-3
    aimc.convert(model, hardware)
    assert hardware_of(model) == machine_of(model) == hardware and token_times_s(model) == {1e-3}


def test_a_layer_hands_out_no_hardware_of_its_own(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    aimc.convert(model, hardware)
    _, layer = next(gain_cell_layers(model))
    layer.hardware.noise.write_v = 0.3
    layer.hardware = given = hardware_of(model)
    given.noise.write_v = 0.4
    assert layer.hardware == hardware and layer.machine.noise == hardware.noise


def gradients(model: GPT2LMHeadModel, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


@pytest.mark.parametrize("backend", ["eager", "blocked"])
def test_checkpointed_layers_meet_the_same_noise_again(
    model: GPT2LMHeadModel, hardware: Hardware, backend: str
) -> None:
    """Also beside a generator of the model's own, which checkpointing could not put back."""
    hardware.backend = backend
    hardware.noise = Noise(write_v=0.02, read_qk=0.05, read_av=0.05)
    aimc.convert(model, hardware)
    set_generator(model, torch.Generator().manual_seed(0))
    set_draws(model, 11, 5)
    model.train()
    tokens = torch.randint(model.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(1))
    kept = gradients(model, tokens)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients(model, tokens)
    assert kept.keys() == again.keys() and all(again[name].equal(kept[name]) for name in kept)
    set_draws(model, 12, 5)
    assert any(not x.equal(kept[name]) for name, x in gradients(model, tokens).items())
    set_draws(model, None)
    with pytest.raises(ValueError, match="gradient checkpointing"):
        gradients(model, tokens)


def test_chips_are_measured_on_noise_of_their_own(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    hardware.noise = Noise(read_qk=0.2)
    aimc.convert(model, hardware)
    tokens = torch.randint(model.config.vocab_size, (64,), generator=torch.Generator().manual_seed(1))
    before = aimc.perplexity(model, tokens, context=16, stride=16, chips=2).per_chip
    set_draws(model, 11)
    assert aimc.perplexity(model, tokens, context=16, stride=16, chips=2).per_chip == before
    assert {int(layer.draws[0]) for _, layer in gain_cell_layers(model) if layer.draws is not None} == {11}
