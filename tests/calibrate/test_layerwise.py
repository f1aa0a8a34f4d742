"""Calibration by the error of the attention output."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import aimc
from aimc import presets
from aimc.calibrate.layerwise import joined
from aimc.hardware import Array, Hardware, Noise, Protection, Pruning
from aimc.models.arrays import gain_cell_layers, hardware_of
from tests.tiny_models import ids, tiny_model

ARRAY = Array(window=32, rows=8)
BATCHES = [ids(seed=s, batch=4) for s in range(2)]


def machine(**changes: object) -> Hardware:
    base = replace(presets.gain_cell_cmos(2), array=ARRAY)
    return replace(presets.for_pretrained(base, storage_levels=16, input_levels=32), **changes)


def plain() -> Hardware:
    return presets.with_softmax(replace(presets.gain_cell_cmos(2), array=ARRAY))


def calibrated(hardware: Hardware, family: str = "llama", batches: object = BATCHES, **settings: object):
    reference = tiny_model(family)
    model = copy.deepcopy(reference)
    aimc.convert(model, hardware)
    report = aimc.calibrate_ranges(model, reference, batches, **settings)
    return reference, model, report


def error(model: torch.nn.Module, reference: torch.nn.Module) -> float:
    batch = ids(seed=9, batch=4)
    with torch.no_grad():
        expected = reference(batch).logits
        return float((model(batch).logits - expected).square().mean().sqrt() / expected.std())


def test_it_finds_better_ranges_than_the_largest_values() -> None:
    from aimc.calibrate import layerwise

    coarse = machine(storage_dac=replace(machine().storage_dac, n_levels=6))
    reference, searched, report = calibrated(coarse)
    assert [len(layer.error) for layer in report.layers] == [4, 4] and 0 < report.error < 0.2
    only_largest = dict.fromkeys(layerwise.SHARES, (1.0,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layerwise, "SHARES", only_largest)
        patch.setattr(layerwise, "NEIGHBOURS", (1.0,))
        _, unsearched, unsearched_report = calibrated(coarse)
    assert report.error < 0.9 * unsearched_report.error
    assert error(searched, reference) < error(unsearched, reference)


def test_the_same_text_gives_the_same_numbers_and_noise_takes_no_part() -> None:
    _, first, _ = calibrated(machine(noise=presets.typical()))
    _, second, _ = calibrated(machine())
    assert hardware_of(first).noise == presets.typical()
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_under_noise_full_scales_are_narrower_and_the_output_closer() -> None:
    noise = Noise(read_qk=0.05, read_av=0.05)
    reference, clean, _ = calibrated(machine())
    _, noisy, _ = calibrated(machine(), nonideality=noise)
    assert hardware_of(noisy).noise == Noise()

    def scales(model: torch.nn.Module) -> float:
        return float(sum(layer.readout_full_scale.sum() for _, layer in gain_cell_layers(model)))

    assert scales(noisy) < scales(clean)
    text = ids(seed=9, batch=4).flatten()
    kl = [aimc.agreement(m, reference, text, context=32, chips=4, nonideality=noise).kl.mean for m in (noisy, clean)]
    assert kl[0] < kl[1]
    with pytest.raises(ValueError, match="nonideality: method='percentile'"):
        calibrated(plain(), method="percentile", nonideality=noise)


def test_padding_is_not_looked_at() -> None:
    batch = ids(seed=0, batch=4)
    padded = torch.nn.functional.pad(batch, (0, 0))
    mask = torch.ones_like(padded)
    mask[:, 20:] = 0
    garbage = padded.masked_fill(mask == 0, 5)
    _, masked, _ = calibrated(machine(), batches=[{"input_ids": garbage, "attention_mask": mask}])
    _, short, _ = calibrated(machine(), batches=[batch[:, :20]])
    for a, b in zip(masked.state_dict().values(), short.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_batches_of_several_lengths_become_one() -> None:
    both = joined([ids(batch=2, length=5), ids(batch=1, length=9)])
    assert both["input_ids"].shape == (3, 9) and both["attention_mask"].sum(dim=1).tolist() == [5, 5, 9]
    assert "attention_mask" not in joined([ids(batch=2, length=5)])


@pytest.mark.parametrize("full_scales", ["global", "layer", "head"])
def test_references_are_as_many_as_the_hardware_has(full_scales: str) -> None:
    hardware = machine(array=replace(ARRAY, full_scales=full_scales))
    reference, model, report = calibrated(hardware)
    assert error(model, reference) < 0.2
    factors = [layer.score_full_scale for _, layer in gain_cell_layers(model)]
    if full_scales == "global":
        assert factors == [None, None] and hardware_of(model).score_adc.v_max == report.score_full_scale
    else:
        assert [len(set(f.tolist())) for f in factors] == ([1, 1] if full_scales == "layer" else [4, 4])
        assert hardware_of(model).score_adc.v_max == 1.0


def test_protected_tokens_take_no_part_in_the_arrays_ranges() -> None:
    _, _, everything = calibrated(machine())
    reference, model, protected = calibrated(machine(protection=Protection(n_sink=2, n_recent=8)))
    assert error(model, reference) < 0.2 and protected.error < everything.error


@pytest.mark.parametrize("protection", [Protection(), Protection(n_sink=2, n_recent=6)], ids=["", "protected"])
@pytest.mark.parametrize("share", [0.25, 0.6])
def test_comparators_keep_the_wanted_share(share: float, protection: Protection) -> None:
    """Of what they see: protected tokens are kept without them."""
    hardware = presets.for_pretrained(replace(presets.gain_cell_cmos(2), array=ARRAY), storage_levels=8, pruned=True)
    hardware.protection = protection
    hardware.pruning = Pruning(select="threshold", kept_share=share)
    reference, model, _ = calibrated(hardware)
    kept: list[torch.Tensor] = []
    with aimc.calibrate.observing(model, lambda number, parts, inside: kept.append(inside.phi > 0), details=True):
        model(BATCHES[0])
    visible = torch.ones(32, 32, dtype=torch.bool).tril(-protection.n_recent)
    visible[:, : protection.n_sink] = False
    for of_layer in kept:
        assert float(of_layer[..., visible].float().mean()) == pytest.approx(share, abs=0.1)


def test_a_full_scale_of_zero_is_refused_where_it_is_read(tmp_path) -> None:
    _, model, _ = calibrated(machine())
    next(layer for _, layer in gain_cell_layers(model)).score_full_scale[2] = 0.0
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="layer 0: score_full_scale of head 2 is 0.*calibrate again"):
        aimc.from_pretrained(tmp_path)


def test_a_calibration_that_fails_leaves_the_hardware_as_it_was(monkeypatch) -> None:
    reference = tiny_model("llama")
    model = copy.deepcopy(reference)
    shared = machine(array=replace(ARRAY, full_scales="global"))
    aimc.convert(model, shared)

    def full(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("aimc.calibrate.layerwise.search", full)
    with pytest.raises(KeyboardInterrupt):
        aimc.calibrate_ranges(model, reference, BATCHES)
    assert hardware_of(model) == shared


def test_older_methods_know_one_machine_only() -> None:
    reference = tiny_model("llama")
    model = copy.deepcopy(reference)
    aimc.convert(model, machine())
    with pytest.raises(ValueError, match="method='percentile'.*full_scales='head'.*output_error"):
        aimc.calibrate_ranges(model, reference, BATCHES, method="percentile")
