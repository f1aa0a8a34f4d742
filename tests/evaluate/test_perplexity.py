"""Perplexity against a loop that scores one token at a time, and what chips and non-idealities do to it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from transformers import GPT2LMHeadModel

import aimc
from aimc import presets
from aimc.evaluate.ablation import _without_each, ablation
from aimc.evaluate.measurement import Measurement
from aimc.evaluate.perplexity import Perplexity, perplexity, perplexity_of, token_losses
from aimc.evaluate.sweeps import nonideality_sweep, rescue
from aimc.hardware import Converter, Hardware, Noise, Protection, Pruning
from aimc.models.arrays import gain_cell_layers, hardware_of
from tests.conftest import small_arrays
from tests.tiny_models import ids, tiny_model


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


def test_the_noise_of_a_window_is_its_own_whatever_is_read_beside_it(
    model: GPT2LMHeadModel, tokens: torch.Tensor, hardware: Hardware
) -> None:
    aimc.convert(model, hardware)
    noise = Noise(write_v=0.02, read_qk=0.1, read_av=0.1, mismatch_gain=0.1)
    how = {"context": 16, "stride": 8, "chips": 2, "nonideality": noise}
    found = [perplexity(model, tokens, batch_size=size, **how).per_chip for size in (1, 3, 64)]
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0] == pytest.approx(found[2], rel=1e-5)
    assert abs(found[0][0] - found[0][1]) > 1e-3 * found[0][0]
    reading = Noise(read_qk=0.1)  # each window has noise of its own: the first one's is not read again and again
    same = tokens[:16].repeat(8)
    losses = token_losses(model, same, Measurement(context=16, stride=16), reading)[0]
    assert len({round(float(part.mean()), 6) for part in losses[15:].split(16)}) > 3


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
    assert list(nonideality_sweep(model, tokens[:60], Noise(), chips=2)) == ["clean"]


def test_rescue_measures_every_model_at_every_scale_on_the_same_chips(
    model: GPT2LMHeadModel, tokens: torch.Tensor, hardware: Hardware
) -> None:
    aimc.convert(model, hardware)
    noise = Noise(read_qk=0.3, mismatch_gain=0.5)
    assert noise.scaled(2.0) == Noise(read_qk=0.6, mismatch_gain=1.0)
    curves = rescue({"one": model, "the same": model}, tokens[:60], noise, [0.0, 2.0], chips=2, seed=3)
    assert curves["one"] == curves["the same"] and list(curves["one"]) == [0.0, 2.0]
    assert curves["one"][0.0] == perplexity(model, tokens[:60], nonideality=Noise())
    assert curves["one"][2.0] == perplexity(model, tokens[:60], nonideality=noise.scaled(2.0), chips=2, seed=3)


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


def test_ablation_follows_the_activation() -> None:
    """Only what an activation uses has a row, and only what can go without a new calibration."""
    machine = presets.for_pretrained(presets.gain_cell_cmos(), protection=Protection(n_sink=1))
    between = {"score levels", "probability levels"}
    tiles = {"readout levels", "readout levels and clip", "per-tile readout"}
    common = {"all effects", "input levels", "storage levels", "leakage", "protection"}
    without = _without_each(machine)
    assert set(without) == common | between | tiles | {"age compensation"}
    assert not without["age compensation"].leakage.compensate and not without["protection"].protection.is_on
    for hardware in without.values():
        assert (hardware.features, hardware.array.full_scales) == (machine.features, "head")
        assert hardware.storage_dac.spacing == "equal_charge"
    assert "age compensation" not in _without_each(replace(machine, leakage=replace(machine.leakage, tau_s=None)))

    def pruned(rule: Pruning) -> set[str]:
        return set(_without_each(presets.for_pretrained(machine, pruned=rule)))

    assert pruned(Pruning()) == pruned(Pruning(select="threshold", recompute="values")) == common | {"score levels"}
    assert pruned(Pruning(select="threshold")) == common
    listed = replace(machine, storage_dac=Converter(v_max=0.9, spacing="listed", positions=[0.0, 0.3, 0.9]))
    assert _without_each(listed)["storage levels"].storage_dac == Converter(v_max=0.9)


def test_ablation_knows_the_normalisers_counter() -> None:
    machine = presets.gain_cell_normalised()
    machine.normaliser.counter.inl = 0.1
    without = _without_each(machine)
    assert without["normaliser levels"].normaliser == replace(
        machine.normaliser, counter=replace(machine.normaliser.counter, n_levels=None)
    )
    assert without["converter INL"].normaliser.counter.inl == 0.0 and without["readout levels"].normaliser.counter.inl
    assert "normaliser levels" not in _without_each(presets.gain_cell_cmos())


@pytest.mark.parametrize("rule", [False, True, Pruning(select="threshold", kept_share=0.5)])
def test_ablation_keeps_what_was_calibrated(
    model: GPT2LMHeadModel, tokens: torch.Tensor, batches: list[torch.Tensor], rule: bool | Pruning
) -> None:
    hardware = presets.for_pretrained(
        small_arrays(), storage_levels=4, score_levels=8, protection=Protection(n_recent=2), pruned=rule
    )
    hardware.leakage.step_latency_s = 2e-4  # a third of the signal goes within the window
    digital = copy.deepcopy(model)
    aimc.convert(model, hardware)
    aimc.calibrate_ranges(model, digital, batches[:1])
    before = {name: x.clone() for name, x in model.state_dict().items()}
    rows = ablation(model, tokens[:60])
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(x, after[name]) for name, x in before.items())
    assert float(rows["all effects"]) == float(perplexity(model, tokens[:60]))
    differ = ["storage levels", "protection", *({"age compensation", "score levels"} & set(rows))]
    assert all(float(rows[name]) != float(rows["all effects"]) for name in differ)


def test_spread_of_retention_is_a_non_ideality_of_a_chip(
    model: GPT2LMHeadModel, tokens: torch.Tensor, hardware: Hardware
) -> None:
    hardware.leakage.tau_s = 50 * hardware.leakage.known_token_time_s()
    aimc.convert(model, hardware)
    result = perplexity(model, tokens, chips=2, nonideality=Noise(tau_spread=0.5))
    assert result.std > 0 and result.mean != float(perplexity(model, tokens))
    assert list(nonideality_sweep(model, tokens[:60], Noise(tau_spread=0.5), chips=1)) == ["clean", "tau_spread", "all"]


def test_ids_of_any_width(model: GPT2LMHeadModel, tokens: torch.Tensor) -> None:
    assert float(perplexity(model, tokens.int())) == float(perplexity(model, tokens))


@pytest.mark.parametrize("broken", [math.nan, math.inf, 1e4])
def test_a_chip_that_gives_no_finite_number_is_a_result_not_an_error(broken: float) -> None:
    found = perplexity_of([torch.full((9,), 2.0), torch.full((9,), broken)], context=4, stride=4)
    assert found.per_chip[0] == pytest.approx(math.exp(2)) and not math.isfinite(found.per_chip[1])
    assert math.isnan(found.std) and not math.isfinite(found.mean) and "over 2 chips" in str(found)


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


def test_a_measurement_says_how_and_fields_override_it(model: GPT2LMHeadModel, tokens: torch.Tensor) -> None:
    measurement = Measurement(context=16, stride=4, tokens=50, chips=3)
    whole = perplexity(model, tokens, measurement)
    assert (whole.context, whole.stride, whole.n_tokens, len(whole.per_chip)) == (16, 4, 49, 1)
    assert float(whole) == float(perplexity(model, tokens[:50], context=16, stride=4))
    assert perplexity(model, tokens, measurement, stride=8).stride == 8
    with pytest.raises(TypeError, match="windows: a measurement has no such setting; it has context, stride"):
        perplexity(model, tokens, windows=3)
    with pytest.raises(TypeError, match=r"aimc\.evaluate\.Measurement is needed"):
        perplexity(model, tokens, 4)


def test_effects_off_one_at_a_time_with_shorter_sliding_windows() -> None:
    """Gemma 2's first layer sees 8 tokens; one sub-tile of the whole window of 16 would be longer."""
    model = tiny_model("gemma2")
    aimc.convert(model, small_arrays())
    before = model.config.to_dict()
    rows = ablation(model, ids().flatten(), stride=32)
    short, long = (layer for _, layer in gain_cell_layers(model))
    assert float(rows["per-tile readout"]) != float(rows["all effects"])
    assert model.config.to_dict() == before
    hardware = _without_each(hardware_of(model))["per-tile readout"]
    aimc.set_hardware(model, hardware)
    assert [(layer.machine.array.window, layer.machine.array.rows) for layer in (short, long)] == [(8, 8), (16, 16)]


def test_effects_off_one_at_a_time_on_kernels_of_fixed_sizes(hardware: Hardware) -> None:
    assert _without_each(replace(hardware, backend="triton"))["per-tile readout"].backend == "auto"
    assert _without_each(replace(hardware, backend="eager"))["per-tile readout"].backend == "eager"


def test_an_exception_while_measuring_leaves_the_model_as_it_was(
    model: GPT2LMHeadModel, hardware: Hardware, tokens: torch.Tensor
) -> None:
    aimc.convert(model, hardware)
    model.train()
    model.transformer.h[0].eval()
    modes, record = [module.training for module in model.modules()], model.config.to_dict()

    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    handle = model.lm_head.register_forward_pre_hook(fail)
    for measure in (
        lambda: perplexity(model, tokens, chips=2, nonideality=presets.typical()),
        lambda: ablation(model, tokens),
        lambda: nonideality_sweep(model, tokens, presets.typical()),
    ):
        with pytest.raises(RuntimeError, match="on purpose"):
            measure()
        assert [module.training for module in model.modules()] == modes
        assert model.config.to_dict() == record
    handle.remove()


def test_the_face_gives_the_functions_whatever_was_imported() -> None:
    import aimc.evaluate.ageing

    for name in ("ablation", "ageing", "error_budget", "perplexity"):
        for _ in range(2):
            assert callable(getattr(aimc.evaluate, name)), name
    with pytest.warns(DeprecationWarning, match="aimc.evaluate.ageing.ageing now"):
        assert aimc.evaluate.retention is aimc.evaluate.ageing


def test_ablation_needs_no_token_time(hardware: Hardware) -> None:
    """A model's own description may leave it to its layers."""
    hardware.leakage.tau_s, hardware.leakage.target_v, hardware.leakage.token_time_s = 5e-3, 0.0, None
    assert _without_each(hardware)["leak target"].leakage.target_v is None
