import math
from dataclasses import replace

import pytest

from aimc import presets
from aimc.hardware import ConfigError, Converter, Features, Hardware, Protection, Pruning

ALL = [
    *(presets.ideal, presets.gain_cell_linear, presets.gain_cell_cmos, presets.gain_cell_normalised),
    *(presets.igzo, presets.published),
]


@pytest.mark.parametrize("build", ALL)
def test_every_call_gives_a_valid_hardware_of_its_own(build):
    a, b = build(), build()
    assert isinstance(a, Hardware) and a == b
    a.array.window = 64
    a.cell.coefficients[1] = 0.5
    a.leakage.token_time_s = 1.0
    assert build() == b


def test_published_numbers():
    hardware = presets.gain_cell_cmos()
    assert hardware.cell.coefficients == [0.52136361391, 13.612260634, -2.620445619, 46.05483778]
    assert (hardware.cell.supply_v, hardware.cell.offset_v) == (0.9, 0.45)
    assert (hardware.input_dac.n_levels, hardware.storage_dac.n_levels, hardware.readout.n_levels) == (16, 8, 32)
    assert (hardware.array.saturation_qk, hardware.array.saturation_av) == (80.0, 40.0)
    assert (hardware.array.window, hardware.array.rows) == (1024, 64)
    assert math.exp(-hardware.leakage.decay_per_token) == pytest.approx(math.exp(-1.56e-4))
    assert hardware.cell.gradient == "exact"


def test_presets_differ_only_in_what_they_say():
    cmos, linear = presets.gain_cell_cmos(), presets.gain_cell_linear()
    assert presets.linearised(cmos) == linear and presets.with_cell(linear, cmos.cell) == cmos
    assert linear.cell.coefficients == [0.0, 19.3]
    igzo = presets.igzo()
    assert igzo.leakage.decay_per_token == pytest.approx(cmos.leakage.decay_per_token / 1000)
    igzo.leakage = cmos.leakage
    assert igzo == cmos
    ours = presets.gain_cell_normalised()
    assert ours.normaliser.is_on and ours.input_dac.v_min == -1.0 and ours.input_dac.n_levels == 32
    assert ours.array.full_scales == "head"
    assert replace(ours, normaliser=cmos.normaliser, input_dac=cmos.input_dac, array=cmos.array) == cmos
    published = presets.published()
    assert (
        published.readout.coding == "rounded"
        and published.cell.gradient == "linear"
        and published.cell.surrogate_slope == 19.3
    )


def test_leakage_follows_the_number_of_layers():
    assert presets.gain_cell_cmos(24).leakage.decay_per_token == pytest.approx(
        2 * presets.gain_cell_cmos(12).leakage.decay_per_token
    )


def test_with_cell_shares_nothing():
    original = presets.gain_cell_cmos()
    other = presets.linearised(original)
    other.array.window = 64
    assert original.array.window == 1024


def test_typical_noise_has_every_effect():
    noise = presets.typical()
    assert set(noise.active()) >= {
        "write_v",
        "read_qk",
        "read_av",
        "mismatch_gain",
        "mismatch_offset_v",
        "column_gain",
        "column_offset",
    }
    assert noise.is_frozen_in_chip()


def test_for_pretrained_is_a_softmax_with_every_remedy_that_needs_no_training():
    base = presets.gain_cell_cmos(30)
    hardware = presets.for_pretrained(base, storage_levels=16, protection=Protection(n_sink=4))
    softmax = presets.with_softmax(base, storage_levels=16)
    assert base == presets.gain_cell_cmos(30)
    assert hardware.activation == "softmax" and hardware.score_adc == softmax.score_adc
    assert hardware.storage_dac == replace(softmax.storage_dac, spacing="equal_charge")
    assert hardware.array == replace(softmax.array, full_scales="head")
    assert hardware.leakage == replace(softmax.leakage, token_time_s=None, compensate=True)
    rotated = Features(rotation_qk="hadamard", rotation_av="hadamard")
    divided = {"normalise_queries": True, "normalise_keys": True, "normalise_values": True}
    assert hardware.features == replace(rotated, **divided)
    turned = presets.for_pretrained(base, rotation="orthogonal").features
    assert (turned.rotation_qk, turned.rotation_av) == ("orthogonal", "orthogonal")
    assert hardware.protection == Protection(n_sink=4)
    assert Hardware.from_dict(hardware.to_dict()) == hardware


def test_for_pretrained_pruned():
    pruned = presets.for_pretrained(presets.gain_cell_cmos(), storage_levels=8, pruned=True)
    assert (pruned.activation, pruned.pruning, pruned.leakage.compensate) == ("pruned_softmax", Pruning(), False)
    rule = Pruning(kept_share=0.1, recompute="values")
    assert presets.for_pretrained(presets.gain_cell_cmos(), pruned=rule).pruning == rule
    softmax = presets.for_pretrained(presets.gain_cell_cmos(), storage_levels=8)
    assert not pruned.features.normalises and pruned.features.normalise_queries
    with pytest.raises(ConfigError, match=r"leakage\.compensate=True: .*pruned_softmax"):
        replace(softmax, activation="pruned_softmax", features=pruned.features)
    with pytest.raises(ConfigError, match=r"features\.normalise_keys"):
        replace(softmax, activation="pruned_softmax", leakage=pruned.leakage)


def test_for_pretrained_of_a_kept_protection_shares_nothing():
    base = replace(presets.gain_cell_cmos(), protection=Protection(n_recent=8))
    hardware = presets.for_pretrained(base)
    assert hardware.protection == base.protection
    hardware.protection.n_recent = 1
    assert base.protection.n_recent == 8


def test_a_softmax_of_any_hardware_has_what_a_softmax_can_have():
    ours = replace(presets.gain_cell_normalised(), threshold=True, position_gain=True)
    softmax = presets.with_softmax(ours)
    assert not (softmax.normaliser.is_on or softmax.threshold or softmax.position_gain)
    listed = Converter(n_levels=3, v_max=0.9, spacing="listed", positions=[0.0, 0.4, 0.9])
    assert presets.with_softmax(replace(ours, storage_dac=listed)).storage_dac == Converter(n_levels=64, v_max=0.9)
    cmos = presets.gain_cell_cmos()
    elsewhere = presets.for_pretrained(replace(cmos, leakage=replace(cmos.leakage, target_v=0.0)))
    assert elsewhere.features.normalise_queries and not elsewhere.features.normalises
