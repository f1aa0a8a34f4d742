"""Range calibration: a pretrained model on arrays without training."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

import aimc
from aimc import presets
from aimc.calibrate.ranges import calibrate_ranges
from aimc.hardware import Array, Hardware, Leakage, Noise, Protection
from aimc.models import llama2c
from aimc.models.arrays import gain_cell_layers, hardware_of
from tests.conftest import REPOSITORY
from tests.tiny_models import FAMILIES, POSITIONS, ids, tiny_model

NO_LEVELS = dict.fromkeys(("input_levels", "storage_levels", "score_levels", "probability_levels", "readout_levels"))
BATCHES = [ids(seed=s, batch=8) for s in range(3)]
ARRAY = Array(window=64, rows=8)


def ideal() -> Hardware:
    """Linear cells, nothing rounded."""
    return presets.with_softmax(replace(presets.ideal(), array=ARRAY), **NO_LEVELS)


def calibrated(reference: PreTrainedModel, hardware: Hardware, **settings: object) -> PreTrainedModel:
    model = copy.deepcopy(reference)
    aimc.convert(model, hardware)
    calibrate_ranges(model, reference, BATCHES, **settings)
    return model


def error(model: PreTrainedModel, reference: PreTrainedModel, batch: torch.Tensor = BATCHES[0]) -> float:
    """Root mean square difference of the logits, relative to their spread."""
    with torch.no_grad():
        expected = reference(batch).logits
        return float((model(batch).logits - expected).square().mean().sqrt() / expected.std())


@pytest.mark.parametrize("family", FAMILIES)
def test_ideal_arrays_compute_what_the_digital_model_does(family: str) -> None:
    reference = tiny_model(family)
    assert error(calibrated(reference, ideal(), percentile=100.0), reference) < 1e-4


def test_skipped_layers_and_other_windows() -> None:
    reference = tiny_model("llama")
    model = copy.deepcopy(reference)
    aimc.convert(model, ideal(), skip_layers=[0])
    report = calibrate_ranges(model, reference, BATCHES, percentile=100.0)
    assert error(model, reference) < 1e-4
    assert [layer.layer for layer in report.layers] == [1]


def test_the_former_name_of_the_share_still_works() -> None:
    reference = tiny_model("llama")
    now = calibrated(reference, ideal(), range_share=0.5)
    with pytest.warns(DeprecationWarning, match="range_share"):
        former = calibrated(reference, ideal(), fill=0.5)
    assert all(torch.equal(a, b) for a, b in zip(now.parameters(), former.parameters(), strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "statistics"},
        pytest.param({"method": "search"}, marks=pytest.mark.slow),
        {"method": "statistics", "n_std": 3.0},
    ],
)
def test_finer_converters_come_closer(settings: dict[str, object]) -> None:
    reference = tiny_model("llama")
    base = replace(presets.gain_cell_linear(2), array=ARRAY, leakage=Leakage())
    errors = [
        error(
            calibrated(reference, presets.with_softmax(base, input_levels=n, storage_levels=n), **settings), reference
        )
        for n in (4, 16, 256)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.15


def test_the_search_keeps_the_best_that_it_tried() -> None:
    reference = tiny_model("llama", vocab_size=64)
    hardware = presets.with_softmax(replace(presets.gain_cell_cmos(2), array=ARRAY))
    searched, narrow = (
        calibrated(reference, hardware, method="search"),
        calibrated(reference, hardware, percentile=99.0, fill=1.0),
    )

    def loss(model: PreTrainedModel) -> float:
        with torch.no_grad():
            return float(sum(model(b, labels=b).loss for b in BATCHES))

    assert loss(searched) <= loss(narrow) + 1e-6


def test_ranges_are_what_the_percentile_says() -> None:
    reference = tiny_model("llama")
    model = copy.deepcopy(reference)
    aimc.convert(model, ideal())
    report = calibrate_ranges(model, reference, BATCHES, percentile=100.0)
    seen: dict[str, float] = {}

    def observe(number: int, parts: dict[str, torch.Tensor], _: object) -> None:
        for part, x in parts.items():
            seen[part] = max(seen.get(part, 0.0), float((x - (0.0 if part == "query" else 0.45)).abs().max()))

    with aimc.calibrate.observation.observing(model, observe):
        aimc.calibrate.observation.run_batches(model, BATCHES)
    assert seen["query"] == pytest.approx(1.0, rel=1e-3)
    assert seen["key"] == pytest.approx(0.45, rel=1e-3)
    assert seen["value"] == pytest.approx(0.45, rel=1e-3)
    assert hardware_of(model).score_adc.v_max == report.score_full_scale > 0
    assert hardware_of(model).readout.v_max == report.readout_full_scale > 0
    assert [len(r.query) for r in report.layers] == [4, 4] and [len(r.key) for r in report.layers] == [2, 2]
    assert "2 layers calibrated" in str(report)


def test_protected_tokens_rescue_noisy_arrays() -> None:
    reference = tiny_model("llama")
    noisy = replace(
        presets.with_softmax(replace(presets.gain_cell_cmos(2), array=ARRAY)),
        noise=Noise(write_v=0.08, mismatch_gain=0.3),
    )
    model = calibrated(reference, noisy)
    aimc.models.arrays.set_generator(model, torch.Generator().manual_seed(0))
    bare = error(model, reference)
    errors = []
    for n_recent in (8, 32):
        aimc.set_hardware(model, replace(hardware_of(model), protection=Protection(n_sink=2, n_recent=n_recent)))
        errors.append(error(model, reference))
    assert bare > 1.3 * errors[0] > errors[1]
    assert errors[1] < 1e-4  # all 32 tokens are digital


def test_it_survives_saving(tmp_path: object) -> None:
    reference = tiny_model("qwen3")
    model = calibrated(reference, presets.with_softmax(replace(presets.gain_cell_cmos(2), array=ARRAY)))
    model.save_pretrained(tmp_path)
    loaded = aimc.from_pretrained(tmp_path).eval()
    assert hardware_of(loaded) == hardware_of(model)
    with torch.no_grad():
        torch.testing.assert_close(loaded(BATCHES[0]).logits, model(BATCHES[0]).logits, rtol=0, atol=0)


def test_stories260k_tells_the_same_story_on_ideal_arrays() -> None:
    folder = REPOSITORY.parent / "shared" / "data" / "models" / "stories260K"
    if not folder.exists():
        pytest.skip("stories260K is part of the shared data, which is not beside this checkout")
    golden = json.loads((folder / "golden.json").read_text())
    reference, tokenizer = llama2c.load(folder / "stories260K.bin")
    reference.eval()
    prompt = tokenizer(golden["prompt"], return_tensors="pt")
    rules = {"max_length": golden["steps"] + 1, "do_sample": False, "pad_token_id": 0}
    story = reference.generate(**prompt, **rules)
    assert tokenizer.decode(story[0], skip_special_tokens=True) == golden["text"]
    model = copy.deepcopy(reference)
    aimc.convert(model, replace(ideal(), array=Array(window=512, rows=64)))
    torch.manual_seed(0)
    sampled = reference.generate(**prompt, max_length=256, do_sample=True, pad_token_id=0, num_return_sequences=4)
    calibrate_ranges(
        model, reference, [sampled], percentile=100.0
    )  # the model's own stories: nothing of the data is needed
    assert tokenizer.decode(model.generate(**prompt, **rules)[0], skip_special_tokens=True) == golden["text"]


@pytest.mark.parametrize("method", ["percentile", "statistics"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_looked_at(method: str, side: str) -> None:
    reference = tiny_model("llama")
    short = BATCHES[0][:, :20]
    padding = torch.full((8, 12), 1)
    columns = [padding, short] if side == "left" else [short, padding]
    mask = torch.cat([torch.zeros_like(c) if c is padding else torch.ones_like(c) for c in columns], dim=1)
    padded = {
        "input_ids": torch.cat(columns, dim=1),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
    }
    reports = []
    for batches in ([{"input_ids": short}], [padded]):
        model = copy.deepcopy(reference)
        aimc.convert(model, replace(ideal(), array=Array(window=64, rows=64)))
        reports.append(calibrate_ranges(model, reference, batches, method=method, percentile=100.0))
    for bare, other in zip(reports[0].layers, reports[1].layers, strict=True):
        assert other.query == pytest.approx(bare.query, rel=1e-3)
        assert other.key == pytest.approx(bare.key, rel=1e-3)
    assert reports[1].score_full_scale == pytest.approx(reports[0].score_full_scale, rel=1e-3)
    assert reports[1].readout_full_scale == pytest.approx(reports[0].readout_full_scale, rel=1e-3)


def test_with_everything_protected_and_with_noise() -> None:
    reference = tiny_model("llama")
    hardware = replace(presets.with_softmax(replace(presets.gain_cell_cmos(2), array=ARRAY)), noise=presets.typical())
    cells = Noise(write_v=0.05, mismatch_gain=0.3)  # empty sub-tiles are read all the same, so read noise would come in
    model = calibrated(reference, replace(hardware, noise=cells, protection=Protection(n_recent=64)))
    assert error(model, reference) < 1e-4
    assert hardware_of(model).noise == cells
    twice = [calibrated(reference, hardware, method="search") for _ in range(2)]
    assert hardware_of(twice[0]) == hardware_of(twice[1])


# --- Bad input
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "guess"}, "method=guess.*percentile, statistics, search"),
        ({"percentile": 0.0}, "percentile=0.0"),
        ({"percentile": 100.1}, "percentile=100.1"),
        ({"n_std": 0.0}, "n_std=0.0"),
        ({"range_share": 1.5}, "range_share=1.5"),
        ({"n_std": float("inf")}, "n_std=inf"),
    ],
)
def test_settings_out_of_range(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrated(tiny_model("llama"), ideal(), **settings)


def test_models_that_cannot_be_calibrated() -> None:
    reference = tiny_model("llama")
    model = copy.deepcopy(reference)
    with pytest.raises(ValueError, match="no gain-cell layer"):
        calibrate_ranges(model, reference, BATCHES)
    aimc.convert(model, replace(presets.gain_cell_cmos(2), array=ARRAY))
    with pytest.raises(ValueError, match="activation='hard_sigmoid'.*initialise_scalers"):
        calibrate_ranges(model, reference, BATCHES)
    aimc.set_hardware(model, ideal())
    with pytest.raises(ValueError, match="runs on arrays itself"):
        calibrate_ranges(model, model, BATCHES)
    with pytest.raises(ValueError, match="no batch"):
        calibrate_ranges(model, reference, [])
    with pytest.raises(ValueError, match="layer 1 has 4 query and 2 K/V heads, and the reference has no such layer"):
        calibrate_ranges(model, tiny_model("llama", num_hidden_layers=1), BATCHES)


def test_the_gain_of_the_scores_goes_with_the_activation() -> None:
    model = tiny_model("llama")
    aimc.convert(model, ideal())
    assert all(layer.score_gain is not None for _, layer in gain_cell_layers(model))
    aimc.set_hardware(model, replace(presets.gain_cell_cmos(2), array=ARRAY))
    assert not [name for name, _ in model.named_parameters() if "score_gain" in name]
    aimc.set_hardware(model, ideal())
    assert len([name for name, _ in model.named_parameters() if "score_gain" in name]) == 2
    assert POSITIONS == 32
