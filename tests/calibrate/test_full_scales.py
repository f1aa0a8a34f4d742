"""Full scales of the counters of each head: what is chosen, that nothing else changes, and what it is worth under
noise."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import aimc
from aimc import presets
from aimc.calibrate import full_scales
from aimc.calibrate.full_scales import WEIGHTS, Reads, fit_full_scales, least_error
from aimc.evaluate.tasks import tokenizer_of
from aimc.hardware import Array, Converter, Hardware, Noise, Normaliser
from aimc.models.arrays import gain_cell_layers, hardware_of, set_hardware
from tests.calibrate.small import changed, weights
from tests.conftest import REPOSITORY, VOCABULARY, small_arrays
from tests.tiny_models import tiny_model

DIRECT = REPOSITORY / "checkpoints" / "direct" / "finetuned"
NOISE = Noise(read_av=0.05, column_offset=0.02)
REFERENCES = {"readout_full_scale", "normaliser_full_scale"}


def machine(kind: str = "head") -> Hardware:
    hardware = small_arrays(presets.gain_cell_normalised())
    hardware.normaliser.full_scale, hardware.array.full_scales = 4.0, kind
    return hardware


RANDOM = [torch.randint(VOCABULARY, (n, 32), generator=torch.Generator().manual_seed(n)) for n in (4, 2)]


@pytest.fixture(scope="module")
def text() -> list[torch.Tensor]:
    """What the model itself finds likely, or noise would make it no worse."""
    return written_by(on_arrays())


def written_by(model: PreTrainedModel) -> list[torch.Tensor]:
    """Of a model whose logits are large enough that its text is not any text."""
    batches, generator = [x.clone() for x in RANDOM], torch.Generator().manual_seed(0)
    with torch.no_grad():
        for ids in batches:
            for t in range(1, ids.shape[1]):
                shares = model(ids[:, :t]).logits[:, -1].softmax(dim=-1)
                ids[:, t] = torch.multinomial(shares, 1, generator=generator)[:, 0]
    return batches


def on_arrays(kind: str = "head", family: str = "llama") -> PreTrainedModel:
    """Pulses of the heads of the first layer differ by a factor of ten."""
    return copy.deepcopy(_on_arrays(kind, family))


@functools.cache
def _on_arrays(kind: str, family: str) -> PreTrainedModel:
    digital, model = (tiny_model(family, vocab_size=VOCABULARY) for _ in range(2))
    aimc.convert(model, machine(kind))
    aimc.initialise_scalers(model, digital, RANDOM)
    layer = next(layer for _, layer in gain_cell_layers(model))
    with torch.no_grad():
        layer.query_scaler.scale.mul_(torch.logspace(-1, 0, len(layer.query_scaler.scale)))
    return model


def factors(model: PreTrainedModel, name: str) -> torch.Tensor:
    return torch.stack([getattr(layer, name) for _, layer in gain_cell_layers(model)])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_only_full_scales_change_and_noise_costs_less(family: str) -> None:
    model = on_arrays(family=family)
    text = written_by(model)
    before, hardware, state = weights(model), hardware_of(model), torch.get_rng_state()
    report = fit_full_scales(model, text, nonideality=NOISE)
    assert {name.rsplit(".", 1)[1] for name in changed(model, before)} == REFERENCES
    assert hardware_of(model) == hardware and torch.equal(torch.get_rng_state(), state)
    assert report.after < report.before and report.weight in WEIGHTS
    assert f"{len(factors(model, 'readout_full_scale').flatten())} heads" in str(report)
    again = on_arrays(family=family)
    assert fit_full_scales(again, text, nonideality=NOISE) == report
    for layer, found in zip((layer for _, layer in gain_cell_layers(model)), report.layers, strict=True):
        assert layer.readout_full_scale is not None and layer.normaliser_full_scale is not None
        assert found.readout == layer.readout_full_scale.tolist()
        assert found.normaliser == pytest.approx((4.0 * layer.normaliser_full_scale).tolist())


def test_of_a_model_that_is_still_to_be_trained_levels_cost_less(text: list[torch.Tensor]) -> None:
    """Its predictions come nearer to those on counters without levels and full scale."""
    model, ideal = on_arrays(), on_arrays()
    hardware, before = hardware_of(model), weights(model)
    endless = Converter(v_min=-1e3, v_max=1e3)
    counter, rows = Converter(n_levels=2**20 + 1), float(hardware.array.rows)
    column = replace(hardware.normaliser, full_scale=rows, counter=counter)
    set_hardware(ideal, replace(hardware, readout=endless, normaliser=column))
    off = [distance(model, ideal, text)]
    report = fit_full_scales(model, text, nonideality=Noise(), trained=False)
    off.append(distance(model, ideal, text))
    assert {name.rsplit(".", 1)[1] for name in changed(model, before)} == REFERENCES and hardware_of(model) == hardware
    assert [report.before, report.after] == pytest.approx(off, rel=1e-3) and off[1] < 0.7 * off[0]
    noisy = fit_full_scales(on_arrays(), text, nonideality=NOISE, trained=False)
    assert report.after < noisy.after < noisy.before  # noise dithers what levels round


def distance(model: PreTrainedModel, target: PreTrainedModel, text: list[torch.Tensor]) -> float:
    """Mean divergence of predictions, in nat."""
    found = []
    with torch.no_grad():
        for ids in text:
            own, wanted = (m(ids).logits.log_softmax(dim=-1).flatten(0, 1) for m in (model, target))
            found.append((wanted.exp() * (wanted - own)).sum(dim=-1))
    return float(torch.cat(found).mean())


def test_a_head_that_sends_less_pulse_has_smaller_counters(text: list[torch.Tensor]) -> None:
    model = on_arrays()
    fit_full_scales(model, text, nonideality=NOISE)
    for name in REFERENCES:
        of_first = factors(model, name)[0]
        assert of_first[0] < of_first[-1] / 3, name


def test_one_for_a_layer_is_the_same_for_its_heads(text: list[torch.Tensor]) -> None:
    model = on_arrays("layer")
    fit_full_scales(model, text, nonideality=NOISE)
    for name in REFERENCES:
        of_layers = factors(model, name)
        assert (of_layers == of_layers[:, :1]).all() and not (of_layers == 1.0).all()


def test_they_stay_where_none_is_better(text: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_arrays()
    before = weights(model)
    moved = iter([1.0, *[2.0] * len(WEIGHTS)])
    monkeypatch.setattr(full_scales, "divergence", lambda *_: next(moved))
    report = fit_full_scales(model, text, nonideality=NOISE)
    assert changed(model, before) == set() and report.weight is None and report.after == report.before == 1.0


def test_a_stop_leaves_the_model_as_it_was(text: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_arrays()
    before, hardware, calls = weights(model), hardware_of(model), []

    def stopped(*given: object) -> float:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return 1.0 / len(calls)

    monkeypatch.setattr(full_scales, "divergence", stopped)
    with pytest.raises(KeyboardInterrupt):
        fit_full_scales(model, text, nonideality=NOISE)
    assert changed(model, before) == set() and hardware_of(model) == hardware


@pytest.mark.parametrize("trained", [True, False])
def test_that_of_the_charge_to_pulse_circuit_stays_and_counts(text: list[torch.Tensor], trained: bool) -> None:
    """Another reference there is another model, whose predictions are the ones to be kept."""
    model = on_arrays()
    first = next(layer for _, layer in gain_cell_layers(model))
    assert first.score_full_scale is not None
    first.score_full_scale.fill_(0.25)
    wanted = fit_full_scales(on_arrays(), text, nonideality=NOISE, trained=trained)
    found = fit_full_scales(model, text, nonideality=NOISE, trained=trained)
    assert first.score_full_scale.eq(0.25).all() and found.before != wanted.before
    assert found.after <= found.before < 2 * wanted.before, "with itself, not with one at full scale"


def test_an_ideal_counter_divides_by_all_that_it_is_given(text: list[torch.Tensor]) -> None:
    model = on_arrays()
    full_scales._reads(model, [layer for _, layer in gain_cell_layers(model)], text)
    normaliser = hardware_of(model).normaliser
    assert normaliser.least_share * normaliser.full_scale < 1e-4, "in pulses"


def of(x: torch.Tensor) -> Reads:
    """Reads of heads `[H, N]`, in two batches."""
    reads = Reads()
    for part in x.chunk(2, dim=1):
        reads.add(part[None, :, :, None, None])
    return reads


def test_the_least_error_of_a_read() -> None:
    """Ninety-nine reads of one and one of a hundred: without levels and noise nothing speaks against the largest; noise
    would cost more there than clipping it to one does; and of a head with reads of one there is nothing to clip."""
    reads = torch.ones(2, 100)
    reads[0, 7] = 100.0
    analog, coarse = Converter(v_max=1.0), Converter(n_levels=3, v_max=1.0)
    assert least_error(of(reads), analog, 0.0, 1.0, False).tolist() == [100.0, 1.0]
    assert least_error(of(reads), Converter(v_max=0.5), 0.0, 1.0, False).tolist() == [200.0, 2.0]
    of_noise = least_error(of(reads), analog, 1e2, 1.0, False)
    assert of_noise[0] < 3.0 and of_noise[1] < 1.0
    assert least_error(of(reads), analog, 1.0, 10.0, False).equal(of_noise)
    of_levels = least_error(of(reads), coarse, 0.0, 1.0, False)
    assert of_levels[0] < 100.0  # a step is fifty of them
    assert least_error(of(reads), coarse, 0.0, 10.0, False)[0] < of_levels[0] / 2
    assert least_error(of(reads), analog, 0.0, 1.0, True).tolist() == [100.0, 100.0]
    assert least_error(of(torch.zeros(2, 100)), analog, 0.0, 1.0, False).tolist() == [0.0, 0.0]


def test_all_features_are_looked_at_and_the_largest_read_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_scales, "SAMPLES", 40)
    reads, x = Reads(), torch.zeros(1, 2, 10, 3, 8)
    x[:, :, :, :2] = torch.arange(8.0)
    x[0, 1, 7, 1, 3] = 50.0
    reads.add(x)
    (sample,) = reads.sample
    assert sample.shape[1] <= 40 and set(sample[0].tolist()) == set(range(8))
    assert reads.largest is not None and reads.largest.tolist() == [7.0, 50.0]


def test_a_head_without_pulses_keeps_what_it_has(text: list[torch.Tensor]) -> None:
    model = on_arrays()
    layer = next(layer for _, layer in gain_cell_layers(model))
    assert layer.readout_full_scale is not None and layer.normaliser_full_scale is not None
    with torch.no_grad():
        layer.query_scaler.scale[0] = layer.query_scaler.offset[0] = 0.0
        layer.readout_full_scale[0], layer.normaliser_full_scale[0] = 0.7, 0.8
    report = fit_full_scales(model, text, nonideality=NOISE)
    assert report.layers[0].readout[0] == pytest.approx(0.7)
    assert report.layers[0].normaliser[0] == pytest.approx(0.8 * 4.0)


def test_padding_is_not_read(text: list[torch.Tensor]) -> None:
    """A window of it in front of each row leaves every sub-tile with the tokens that it had."""
    ids, found = text[0], []
    padded = torch.cat([torch.zeros(len(ids), 16, dtype=ids.dtype), ids], dim=1)
    mask = (torch.arange(padded.shape[1]) >= 16).long().expand_as(padded)
    at = (mask.cumsum(dim=1) - 1).clamp(min=0)
    for batch in ({"input_ids": ids}, {"input_ids": padded, "attention_mask": mask, "position_ids": at}):
        model = on_arrays()
        assert math.isfinite(fit_full_scales(model, [batch], nonideality=NOISE).after)
        model = on_arrays()
        of_layers = full_scales._reads(model, [layer for _, layer in gain_cell_layers(model)], [batch])
        found.append([kind for reads in of_layers.values() for kind in reads])
    for plain, behind in zip(*found, strict=True):
        torch.testing.assert_close(behind.largest, plain.largest, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(behind.sample[0].sum(dim=1), plain.sample[0].sum(dim=1), rtol=1e-3, atol=1e-4)


def test_hardware_without_a_column(text: list[torch.Tensor]) -> None:
    model = on_arrays()
    hardware = hardware_of(model)
    set_hardware(model, replace(hardware, normaliser=replace(hardware.normaliser, is_on=False)))
    report = fit_full_scales(model, text, nonideality=NOISE)
    assert report.after < report.before and not report.layers[0].normaliser and "pulses" not in str(report)
    assert not (factors(model, "readout_full_scale") == 1.0).all()


def test_the_generator_of_a_model_is_not_moved_and_does_not_matter(text: list[torch.Tensor]) -> None:
    reports = []
    for seed in (1, 2):
        model = on_arrays()
        generator = torch.Generator().manual_seed(seed)
        aimc.models.set_generator(model, generator)
        state = generator.get_state()
        reports.append(fit_full_scales(model, text, nonideality=NOISE))
        assert torch.equal(generator.get_state(), state)
        assert all(layer.generator is generator for _, layer in gain_cell_layers(model))
    assert reports[0] == reports[1]


def test_a_file_from_before_there_was_one_has_ones(text: list[torch.Tensor], tmp_path: Path) -> None:
    model = on_arrays()
    model.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    tensors = load_file(file)
    save_file({k: x for k, x in tensors.items() if not k.endswith("normaliser_full_scale")}, file, {"format": "pt"})
    assert (factors(aimc.from_pretrained(tmp_path), "normaliser_full_scale") == 1.0).all()
    save_file({k: x for k, x in tensors.items() if not k.endswith("readout_full_scale")}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="convert again"):
        aimc.from_pretrained(tmp_path)


def test_they_come_back_with_a_checkpoint(text: list[torch.Tensor], tmp_path: Path) -> None:
    model = on_arrays()
    fit_full_scales(model, text, nonideality=NOISE)
    model.save_pretrained(tmp_path)
    loaded = aimc.from_pretrained(tmp_path)
    for name in REFERENCES:
        assert torch.equal(factors(loaded, name), factors(model, name))
    with torch.no_grad():
        assert torch.equal(loaded(text[0]).logits, model(text[0]).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"array": Array(window=16, rows=4)}, "full_scales='global'.*set array.full_scales='head'"),
        ({"activation": "softmax", "normaliser": Normaliser()}, "use aimc.calibrate_ranges"),
    ],
)
def test_what_has_no_full_scales_to_be_fitted_is_refused(change: dict, message: str, text: list[torch.Tensor]) -> None:
    model = on_arrays()
    set_hardware(model, replace(hardware_of(model), **change))
    with pytest.raises(ValueError, match=message):
        fit_full_scales(model, text, nonideality=NOISE)


def test_noise_that_no_full_scale_changes_is_refused(text: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"read_av=0.0, nonideality.column_offset=0.0.*or trained=False"):
        fit_full_scales(on_arrays(), text, nonideality=Noise(write_v=0.01, mismatch_gain=0.1))


def test_what_is_no_text_or_has_no_arrays_is_refused(text: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="no batch"):
        fit_full_scales(on_arrays(), [], nonideality=NOISE)
    with pytest.raises(ValueError, match=r"aimc\.convert"):
        fit_full_scales(tiny_model("llama"), text, nonideality=NOISE)


def test_noise_costs_the_shipped_model_half_of_what_it_did() -> None:
    """On text that nothing was chosen on. Trained with one full scale for the chip; not trained again."""
    from tests.train.conftest import english

    model = aimc.from_pretrained(DIRECT)
    ids = torch.tensor(tokenizer_of(DIRECT)(english(40_000))["input_ids"])
    kept, held_out = ids[:1024].view(4, 256), ids[1024:5120]
    hardware = hardware_of(model)
    set_hardware(model, replace(hardware, array=replace(hardware.array, full_scales="head")))

    def losses() -> tuple[float, float]:
        clean, noisy = (
            aimc.perplexity(model, held_out, context=256, stride=256, nonideality=noise, seed=7).mean
            for noise in (Noise(), presets.typical())
        )
        return clean, noisy / clean - 1

    before = losses()
    fit_full_scales(model, [kept], nonideality=presets.typical())
    after = losses()
    assert after[0] < 1.01 * before[0] and after[1] < 0.6 * before[1], (before, after)
