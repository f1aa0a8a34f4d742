"""Slots in gain cells: exact where cells are ideal, and each effect does what it says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import aimc
from aimc import presets
from aimc.hardware import Array, ConfigError, Converter, Hardware, Leakage, Noise
from aimc.models.gsa import GSAForCausalLM, calibrate_slots, put_back, put_on_cells, set_cells, slot_arrays
from aimc.models.gsa.arrays import GATE, SlotArrays
from aimc.models.gsa.memory import Memory
from tests.models.gsa.tiny import ids, tiny

NO_LEVELS = dict.fromkeys(("input_levels", "storage_levels", "score_levels", "probability_levels", "readout_levels"))
WIDE = Converter(v_max=100.0)
"""A gate of any width."""


def machine(base: Hardware | None = None, full_scales: str = "head", **changes) -> Hardware:
    levels = NO_LEVELS if base is None else {}
    hardware = presets.with_softmax(base or presets.ideal(), **levels)
    array = replace(hardware.array, window=6, rows=3, full_scales=full_scales)
    return replace(hardware, array=array, **changes)


def on_cells(hardware: Hardware, gate: Converter = WIDE) -> GSAForCausalLM:
    model = tiny()
    put_on_cells(model, hardware, gate=gate)
    calibrate_slots(model, [ids(20), ids(20, seed=4)])
    return model


def logits(model: GSAForCausalLM, tokens: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(ids(20) if tokens is None else tokens, use_cache=False).logits


@pytest.mark.parametrize("full_scales", ["head", "layer", "global"])
def test_ideal_cells_are_the_digital_slots(full_scales: str) -> None:
    model = on_cells(machine(full_scales=full_scales))
    torch.testing.assert_close(logits(model), logits(tiny()), atol=2e-5, rtol=1e-4)
    put_back(model)
    assert torch.equal(logits(model), logits(tiny())) and not list(slot_arrays(model))


def test_token_by_token_is_the_whole_text_and_padding_writes_nothing() -> None:
    model, tokens = on_cells(machine(presets.gain_cell_cmos()), GATE), ids(12)
    cache = model(tokens[:, :7], use_cache=True).past_key_values
    with torch.no_grad():
        rest = [model(tokens[:, t : t + 1], past_key_values=cache).logits for t in range(7, 12)]
        torch.testing.assert_close(torch.cat(rest, dim=1), logits(model, tokens)[:, 7:], atol=1e-5, rtol=1e-4)
        mask = torch.ones_like(tokens)
        mask[1, :4] = 0
        padded = model(tokens, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(padded[1:, 4:], logits(model, tokens[1:, 4:]), atol=1e-5, rtol=1e-4)


def test_a_real_cell_is_near_and_not_equal() -> None:
    expected = logits(tiny())
    real = logits(on_cells(machine(presets.gain_cell_cmos()), GATE))
    error = float((real - expected).std() / expected.std())
    assert 1e-3 < error < 0.3


def arrays(**changes) -> SlotArrays:
    return SlotArrays(1, 2, machine(**changes), WIDE, layer=0, n_layers=1)


def one(arrays: SlotArrays, gate: float, memory_v: float = 0.0, key: float = 0.0) -> Memory:
    """The memory after one token whose key and value are `key`, written by `gate`."""
    memory = Memory(*(torch.full((1, 1, 2, 4), memory_v) for _ in range(2)))
    k = torch.full((1, 1, 1, 4), key)
    with torch.no_grad():
        return arrays(k, k, k, torch.full((1, 1, 1, 2), math.log(gate)), memory)[1]


def test_a_gate_is_a_write_that_is_cut_short() -> None:
    after = one(arrays(), gate=0.25, memory_v=0.2, key=0.4)
    torch.testing.assert_close(after.keys, torch.full((1, 1, 2, 4), 0.25 * 0.2 + 0.75 * 0.4))


def test_leakage_is_a_gate_towards_rest() -> None:
    leaky = arrays(leakage=Leakage(tau_s=1e-6, token_time_s=5e-7))
    torch.testing.assert_close(
        one(leaky, gate=1.0, memory_v=0.2).values, torch.full((1, 1, 2, 4), 0.2 * math.exp(-0.5))
    )


def test_a_gate_has_levels_and_a_longest_pulse() -> None:
    of_levels = SlotArrays(1, 2, machine(), Converter(n_levels=3, v_max=1.0), layer=0, n_layers=1)
    kept = [float(one(of_levels, gate=gate, memory_v=0.4).keys.mean()) / 0.4 for gate in (0.9, 0.6, 0.01)]
    assert kept == pytest.approx([1.0, math.exp(-0.5), math.exp(-1.0)], rel=1e-5)


def test_noise_is_that_of_a_write_as_long_as_the_gate() -> None:
    noisy = arrays(noise=Noise(write_v=0.01))
    torch.manual_seed(0)
    assert torch.equal(one(noisy, gate=1.0).keys, torch.zeros(1, 1, 2, 4)), "a closed gate adds none"
    drawn = torch.stack([torch.cat(one(noisy, gate=0.6)) for _ in range(300)])
    assert float(drawn.std()) == pytest.approx(0.01 * math.sqrt(1 - 0.36), rel=0.05)


def test_a_chip_is_the_same_and_another_is_not() -> None:
    model = on_cells(machine(presets.gain_cell_cmos()))
    set_cells(model, machine(presets.gain_cell_cmos(), noise=Noise(mismatch_gain=0.1, column_offset=0.02)), chip_seed=1)
    first = logits(model)
    assert torch.equal(logits(model), first)
    set_cells(model, machine(presets.gain_cell_cmos(), noise=Noise(mismatch_gain=0.1, column_offset=0.02)), chip_seed=2)
    assert not torch.allclose(logits(model), first, atol=1e-3)
    set_cells(model, machine(presets.gain_cell_cmos(), noise=presets.typical()))
    assert not torch.equal(logits(model), logits(model)), "read noise is drawn at every read"


def test_scalers_stay_precise_in_a_model_of_half_precision() -> None:
    slots = arrays()
    slots.to(torch.bfloat16)
    assert {x.dtype for x in slots.state_dict().values() if x.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("full_scales", ["head", "layer"])
def test_full_scales_hold_what_resting_cells_answer(full_scales: str) -> None:
    """Queries of one sign, as behind a SiLU: all features of a resting cell answer together."""
    hardware = machine(replace(presets.ideal(), cell=presets.gain_cell_cmos().cell), full_scales=full_scales)
    model = tiny()
    put_on_cells(model, hardware, gate=WIDE)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.attn.q_proj.weight.abs_()
            layer.attn_norm.weight.abs_()
    calibrate_slots(model, [ids(20)])
    for (_, cells), layer in zip(slot_arrays(model), model.model.layers, strict=True):
        seen: list[torch.Tensor] = []
        layer.attn.register_forward_pre_hook(
            lambda module, args, seen=seen: seen.append(module.operands(args[0], None)[0])
        )
        logits(model)
        answer = abs(hardware.cell.coefficients[0]) * cells.query_scaler.scale * seen[0].sum(-1).abs().amax((0, 2))
        assert (answer <= hardware.array.saturation_qk * cells.score_full_scale).all()


def test_slots_of_a_model_that_is_loaded_in_half_precision_stay_precise(tmp_path) -> None:
    model = on_cells(machine(presets.gain_cell_cmos()))
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == torch.bfloat16
    for (_, cells), (_, before) in zip(slot_arrays(again), slot_arrays(model), strict=True):
        assert torch.equal(cells.score_gain, before.score_gain) and cells.score_gain.dtype == torch.float32


def test_what_is_said_of_attention_names_the_slots(tmp_path) -> None:
    model = on_cells(machine(presets.gain_cell_cmos()))
    with pytest.raises(ValueError, match="put_back"):
        aimc.to_digital(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="slots in cells"):
        aimc.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="non-negative"):
        set_cells(model, machine(presets.gain_cell_cmos()), chip_seed=-1)


def test_saved_and_loaded(tmp_path) -> None:
    model = on_cells(machine(presets.gain_cell_cmos()), GATE)
    model.save_pretrained(tmp_path)
    again = aimc.load_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert len(list(slot_arrays(again))) == 2


def test_it_is_trained_through_the_cells() -> None:
    model = on_cells(machine(presets.gain_cell_cmos(), noise=presets.typical()), GATE).train()
    model(ids(6), labels=ids(6)).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    ("hardware", "gate", "message"),
    [
        (presets.gain_cell_cmos(), GATE, "activation='hard_sigmoid': .* use aimc.presets.with_softmax"),
        (replace(machine(), array=Array(window=8, rows=4)), GATE, "array.rows=4: 6 slots are no whole number"),
        (presets.for_pretrained(presets.gain_cell_cmos()), GATE, "storage_dac.spacing='equal_charge'"),
        (machine(), Converter(v_min=0.5), "gate.v_min=0.5"),
        (machine(presets.published()), GATE, "cell.gradient='linear'"),
        (machine(noise_gradient="clean"), GATE, "noise_gradient='clean'"),
        (machine(noise=Noise(tau_spread=0.1)), GATE, "noise.tau_spread"),
    ],
)
def test_hardware_that_slots_have_no_circuit_for(hardware: Hardware, gate: Converter, message: str) -> None:
    model = tiny()
    with pytest.raises(ConfigError, match=message):
        put_on_cells(model, hardware, gate=gate)
    assert model.config.slot_cells is None and not list(slot_arrays(model))


def test_bad_input_is_told() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="are digital; call aimc.models.gsa.put_on_cells"):
        calibrate_slots(model, [ids(4)])
    with pytest.raises(ValueError, match="are digital"):
        set_cells(model, machine())
    put_on_cells(model, machine())
    with pytest.raises(ValueError, match="no batch was given"):
        calibrate_slots(model, [])
    with pytest.raises(ValueError, match="in cells already"):
        put_on_cells(model, machine())
    with pytest.raises(TypeError, match="a Linear has no slots"):
        put_on_cells(torch.nn.Linear(2, 2), machine())  # type: ignore[arg-type]


@pytest.mark.parametrize("together", [20, 7])
def test_tokens_at_once_are_one_after_the_other(together: int) -> None:
    def found(size: int) -> list[torch.Tensor]:
        model = on_cells(machine(presets.gain_cell_cmos()), GATE).double()
        fixed = replace(presets.typical(), write_v=0.0, read_qk=0.0, read_av=0.0)
        set_cells(model, machine(presets.gain_cell_cmos(), noise=fixed), chip_seed=3)
        for _, cells in slot_arrays(model):
            cells.together = size
        out = model(ids(20), labels=ids(20), use_cache=False)
        out.loss.backward()
        return [out.logits, *(p.grad for p in model.parameters())]

    for want, got in zip(found(1), found(together), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)  # operands are of float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_they_are_the_same_and_chips_are_drawn_there() -> None:
    model = on_cells(machine())
    expected = logits(model)
    model.to("cuda")  # type: ignore[arg-type]
    torch.testing.assert_close(logits(model, ids(20).cuda()).cpu(), expected, atol=1e-4, rtol=1e-4)
    chips = [
        aimc.perplexity(model, ids(40)[0], context=20, chips=2, nonideality=presets.typical()).per_chip for _ in "12"
    ]
    assert chips[0] == chips[1] and chips[0][0] != chips[0][1]


def test_noise_of_tokens_at_once_is_that_of_single_ones() -> None:
    noisy, n = arrays(noise=Noise(write_v=0.01)), 400
    noisy.together = n
    held = noisy._written(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, n, 4), torch.full((1, 1, n, 2), 0.6))
    assert float(held[:, :, 20:].std()) == pytest.approx(0.01, rel=0.1), "replaced by noise of the write alone"


def test_what_all_scores_have_in_common_has_no_gradient_however_coarse_the_counters() -> None:
    """As it has no effect: of the charge of resting cells, common to all slots, which would drown all others."""
    coarse = arrays(readout=Converter(n_levels=8, v_min=-1.0, v_max=1.0, coding="sign_magnitude"))
    drawn = torch.Generator().manual_seed(0)
    u, pulse = torch.randn(1, 1, 5, 2, 4, generator=drawn), torch.rand(1, 1, 5, 4, generator=drawn)
    resting, slope = torch.tensor(0.02, requires_grad=True), torch.tensor(0.05, requires_grad=True)
    widths, longest = coarse._scores(pulse, u, [resting, slope])
    out = coarse._sums(widths, u, [0.0, 0.2]) * longest
    of_resting, of_slope = torch.autograd.grad((out * torch.randn(out.shape, generator=drawn)).sum(), (resting, slope))
    assert float(of_resting.abs()) < 1e-4 * float(of_slope.abs())
