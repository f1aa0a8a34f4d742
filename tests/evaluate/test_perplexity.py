"""Perplexity against a loop that scores one token at a time, and what chips and non-idealities do to it."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import GPT2LMHeadModel

import aimc
from aimc import presets
from aimc.evaluate.perplexity import Perplexity, _without_each, ablation, nonideality_sweep, perplexity
from aimc.hardware import Hardware, Noise
from aimc.models.hook import gain_cell_layers, hardware_of


def by_hand(model: GPT2LMHeadModel, tokens: torch.Tensor, context: int, stride: int) -> float:
    """Score every token once, with the context its window gives it."""
    nll, done = [], 0
    while done < len(tokens) - 1:
        end = min(len(tokens) - 1, done + stride if done else context)
        start = max(0, end - context)
        for position in range(done + 1, end + 1):
            with torch.no_grad():
                logits = model(tokens[None, start:position]).logits[0, -1]
            nll.append(-torch.log_softmax(logits, -1)[tokens[position]].item())
        done = end
    assert len(nll) == len(tokens) - 1
    return math.exp(sum(nll) / len(nll))


@pytest.mark.parametrize(
    ("length", "context", "stride"), [(203, 32, 16), (70, 32, 32), (20, 32, 16), (33, 32, 1), (100, 24, 5)]
)
def test_equals_one_token_at_a_time(
    model: GPT2LMHeadModel, tokens: torch.Tensor, length: int, context: int, stride: int
) -> None:
    result = perplexity(model, tokens[:length], context=context, stride=stride, batch_size=3)
    assert float(result) == pytest.approx(by_hand(model, tokens[:length], context, stride), rel=1e-4)
    assert (result.n_tokens, result.context, result.stride) == (length - 1, context, stride)


def test_converted_model_too(model: GPT2LMHeadModel, tokens: torch.Tensor, hardware: Hardware) -> None:
    aimc.convert(model, hardware)
    assert float(perplexity(model, tokens[:60])) == pytest.approx(by_hand(model, tokens[:60], 32, 16), rel=1e-4)


def test_chips_differ_and_come_back(model: GPT2LMHeadModel, tokens: torch.Tensor, hardware: Hardware) -> None:
    aimc.convert(model, hardware)
    result = aimc.perplexity(model, tokens, chips=3, nonideality=aimc.presets.typical())
    assert len(set(result.per_chip)) == 3 and result.std > 0
    assert result.mean == pytest.approx(sum(result.per_chip) / 3)
    assert result.per_chip == aimc.perplexity(model, tokens, chips=3, nonideality=aimc.presets.typical()).per_chip
    assert (
        aimc.perplexity(model, tokens, chips=1, nonideality=aimc.presets.typical(), seed=2).per_chip
        == result.per_chip[2:]
    )
    assert hardware_of(model) == hardware and all(layer.chip_seed is None for _, layer in gain_cell_layers(model))


def test_without_noise_one_chip_is_enough(model: GPT2LMHeadModel, tokens: torch.Tensor, hardware: Hardware) -> None:
    aimc.convert(model, hardware)
    assert len(aimc.perplexity(model, tokens, chips=5).per_chip) == 1


def test_the_hardwares_own_noise_counts_unless_replaced(
    model: GPT2LMHeadModel, tokens: torch.Tensor, hardware: Hardware
) -> None:
    hardware.noise = aimc.presets.typical()
    aimc.convert(model, hardware)
    assert len(aimc.perplexity(model, tokens, chips=2).per_chip) == 2
    assert len(aimc.perplexity(model, tokens, chips=2, nonideality=Noise()).per_chip) == 1


def test_sweep_has_every_active_non_ideality_alone(
    model: GPT2LMHeadModel, tokens: torch.Tensor, hardware: Hardware
) -> None:
    aimc.convert(model, hardware)
    noise = Noise(read_qk=0.3, mismatch_gain=0.5)
    seen: list[str] = []
    rows = nonideality_sweep(model, tokens, noise, chips=2, on_result=lambda name, _: seen.append(name))
    assert seen == list(rows) == ["clean", "read_qk", "mismatch_gain", "all"]
    assert rows["read_qk"].per_chip == perplexity(model, tokens, chips=2, nonideality=Noise(read_qk=0.3)).per_chip
    assert len({round(p.mean, 6) for p in rows.values()}) == 4


def test_ablation_switches_one_effect_off_and_back_on(
    model: GPT2LMHeadModel, tokens: torch.Tensor, hardware: Hardware
) -> None:
    aimc.convert(model, hardware)
    rows = ablation(model, tokens)
    assert "leakage" in rows and "readout levels" in rows
    assert hardware_of(model) == hardware
    assert float(rows["all effects"]) == float(perplexity(model, tokens))
    assert float(rows["storage levels"]) != float(rows["all effects"])


def test_ablation_has_rows_for_what_is_on(model: GPT2LMHeadModel, tokens: torch.Tensor, hardware: Hardware) -> None:
    assert not {"leak target", "converter INL"} & set(_without_each(hardware))
    hardware.leakage.tau_s, hardware.leakage.target_v = 20 * hardware.leakage.known_token_time_s(), 0.0
    hardware.readout.inl = hardware.storage_dac.inl = 0.1
    without = _without_each(hardware)
    assert without["leak target"].leakage.target_v is None and without["leak target"].readout.inl == 0.1
    assert not any(without["converter INL"].to_dict()[name]["inl"] for name in ("input_dac", "storage_dac", "readout"))
    assert without["readout levels and clip"].readout.inl == 0.0 and without["readout levels"].readout.inl == 0.1
    aimc.convert(model, hardware)
    rows = ablation(model, tokens)
    assert len({float(rows[name]) for name in ("all effects", "leak target", "converter INL", "leakage")}) == 4


def test_spread_of_retention_is_a_non_ideality_of_a_chip(
    model: GPT2LMHeadModel, tokens: torch.Tensor, hardware: Hardware
) -> None:
    hardware.leakage.tau_s = 50 * hardware.leakage.known_token_time_s()
    aimc.convert(model, hardware)
    result = perplexity(model, tokens, chips=2, nonideality=Noise(tau_spread=0.5))
    assert result.std > 0 and result.mean != float(perplexity(model, tokens))
    assert list(nonideality_sweep(model, tokens[:60], Noise(tau_spread=0.5), chips=1)) == ["clean", "tau_spread", "all"]


def test_text_of_a_result() -> None:
    assert str(Perplexity(mean=12.345, std=0.0, per_chip=[12.345])) == "12.35"
    assert "± 0.50 over 2 chips" in str(Perplexity(mean=12.0, std=0.5, per_chip=[11.5, 12.5]))


@pytest.mark.parametrize(
    ("tokens", "arguments", "message"),
    [
        ([], {}, "at least two"),
        ([1], {}, "at least two"),
        ([1.0, 2.0], {}, "integer token ids"),
        ([1, 64], {}, "outside the model's vocabulary of 64"),
        ([-1, 3], {}, "outside the model's vocabulary"),
        ([1, 2, 3], {"context": 33}, "the model has 32 positions"),
        ([1, 2, 3], {"stride": 0}, "stride=0"),
        ([1, 2, 3], {"chips": 0}, "chips=0"),
        ([1, 2, 3], {"nonideality": Noise(read_qk=0.1)}, r"aimc\.convert"),
    ],
)
def test_bad_input(model: GPT2LMHeadModel, tokens: list[float], arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        perplexity(model, torch.tensor(tokens), **arguments)


def test_what_is_saved_afterwards_is_the_model_as_it_was(model: GPT2LMHeadModel, hardware: Hardware) -> None:
    aimc.convert(model, hardware)
    aimc.set_chip(model, 5)
    before = model.config.to_dict()
    tokens = torch.randint(64, (100,), generator=torch.Generator().manual_seed(0))
    aimc.perplexity(model, tokens, chips=2, nonideality=presets.typical(), context=16)
    assert model.config.to_dict() == before
