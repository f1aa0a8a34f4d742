import json
import math
import warnings
from dataclasses import fields

import pytest

from aimc import presets
from aimc.hardware import HARDWARE_VERSION, Array, Cell, ConfigError, Converter, Hardware, Leakage, Noise, Normaliser
from aimc.hardware.noise import FROZEN_IN_CHIP

CONVERTERS = ("input_dac", "storage_dac", "readout", "score_adc", "probability_dac")


@pytest.mark.parametrize(
    ("build", "kwargs", "names"),
    [
        (Cell, {"supply_v": 0.0}, "cell.supply_v"),
        (Cell, {"supply_v": math.inf}, "cell.supply_v"),
        (Cell, {"offset_v": 1.0}, "cell.offset_v"),
        (Cell, {"offset_v": -0.1}, "cell.offset_v"),
        (Cell, {"coefficients": [1.0]}, "cell.coefficients"),
        (Cell, {"coefficients": [0.0, math.nan]}, "cell.coefficients"),
        (Cell, {"coefficients": [1.0, 0.0]}, "cell.coefficients"),
        (Cell, {"gradient": "none"}, "cell.gradient"),
        (Cell, {"surrogate_slope": 0.0}, "cell.surrogate_slope"),
        (Leakage, {"tau_s": 0.0}, "leakage.tau_s"),
        (Leakage, {"tau_s": math.inf}, "leakage.tau_s"),
        (Leakage, {"token_time_s": -1.0}, "leakage.token_time_s"),
        (Leakage, {"target_v": -0.1}, "leakage.target_v.*0 for ground"),
        (Leakage, {"target_v": math.nan}, "leakage.target_v"),
        (Hardware, {"leakage": Leakage(target_v=1.0)}, "leakage.target_v=1.0.*cell.supply_v=0.9"),
        *((Converter, {"inl": value}, "inl=.*turns back.*LSB") for value in (0.25, -0.25, 1.0)),
        (Array, {"rows": 0}, "array.rows"),
        (Array, {"window": 100, "rows": 64}, "array.window.*use 128"),
        (Array, {"window": 0}, "array.window"),
        (Array, {"saturation_qk": 0.0}, "array.saturation_qk"),
        (Array, {"saturation_av": -1.0}, "array.saturation_av"),
        (Converter, {"n_levels": 1}, "n_levels"),
        (Converter, {"v_min": 1.0, "v_max": 1.0}, "v_min, v_max"),
        (Converter, {"v_max": math.inf}, "v_max=inf.*finite"),
        (Converter, {"coding": "gray"}, "coding"),
        (Converter, {"coding": "sign_magnitude"}, "v_min, v_max"),
        (Converter, {"coding": "sign_magnitude", "v_min": -1.0, "n_levels": 2}, "n_levels"),
        (Converter, {"coding": "sign_magnitude", "v_min": -1.0, "n_levels": 31}, "n_levels"),
        (Hardware, {"activation": "relu"}, "activation"),
        (Hardware, {"backend": "cuda"}, "backend"),
        (Hardware, {"storage_dac": Converter(v_max=1.0)}, "storage_dac"),
        (Hardware, {"storage_dac": Converter(v_min=-0.1, v_max=0.9)}, "storage_dac"),
        (Hardware, {"input_dac": Converter(v_max=2.0)}, "input_dac"),
        (Hardware, {"input_dac": Converter(v_min=-1.5)}, "input_dac"),
        (
            Hardware,
            {"probability_dac": Converter(spacing="listed", positions=[0.05, 0.3, 1.0])},
            "probability_dac.positions.*gets no pulse.*begin the list with 0",
        ),
        (
            Hardware,
            {"storage_dac": Converter(n_levels=8, v_min=0.1, v_max=0.9, coding="rounded")},
            "storage_dac.coding.*to 0.914286.*outside of 0 to 0.9",
        ),
        (Hardware, {"input_dac": Converter(n_levels=32, v_min=-1.0, coding="rounded")}, "input_dac.coding.*-1.03226"),
        (
            Hardware,
            {"activation": "softmax", "normaliser": Normaliser(is_on=True)},
            "normaliser.is_on.*divides by the sum",
        ),
        (Hardware, {"activation": "pruned_softmax", "threshold": True}, "threshold.*hard_sigmoid"),
        (Hardware, {"activation": "softmax", "position_gain": True}, "position_gain"),
        (Normaliser, {"full_scale": 0.0}, "normaliser.full_scale"),
        (Normaliser, {"counter": Converter(v_min=-1.0)}, "normaliser.counter.v_min"),
        *((Noise, {f.name: value}, f"noise.{f.name}") for f in fields(Noise) for value in (-0.1, math.nan)),
    ],
)
def test_values_that_no_device_has_are_refused_by_name(build, kwargs, names):
    with pytest.raises(ConfigError, match=names):
        build(**kwargs)


@pytest.mark.parametrize("build", [Hardware, presets.gain_cell_cmos, presets.igzo, presets.published])
def test_round_trip_through_json(build):
    hardware = build()
    hardware.noise = presets.typical()
    data = json.loads(json.dumps(hardware.to_dict()))
    assert data["version"] == HARDWARE_VERSION
    assert Hardware.from_dict(data) == hardware


def test_new_effects_travel_too():
    hardware = Hardware(
        leakage=Leakage(tau_s=1.0, target_v=0.0),
        storage_dac=Converter(v_max=0.9, inl=-0.1),
        noise=Noise(tau_spread=0.3, read_qk=0.1),
    )
    assert Hardware.from_dict(json.loads(json.dumps(hardware.to_dict()))) == hardware


NEW_IN_4 = {
    ("array", "full_scales"),
    ("leakage", "compensate"),
    *((c, name) for c in CONVERTERS for name in ("spacing", "positions")),
}
NEW_IN_3 = {("leakage", "target_v"), ("noise", "tau_spread"), *((c, "inl") for c in CONVERTERS)}


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("build", [Hardware, presets.gain_cell_cmos, presets.published])
def test_earlier_versions_lacked_fields_and_mean_the_same(build, version):
    hardware = build()
    data = json.loads(json.dumps(hardware.to_dict())) | {"version": version}
    missing = (NEW_IN_4 if version < 4 else set()) | (NEW_IN_3 if version < 3 else set())
    for part, name in missing:
        del data[part][name]
    new_fields = {6: ("normaliser", "threshold", "position_gain"), 5: ("noise_gradient",), 4: ("features", "pruning")}
    for name in (name for new_in, names in new_fields.items() if version < new_in for name in names):
        del data[name]
    if version == 6:
        del data["normaliser"]["least"]
    if version == 1:
        for name in ("activation", "score_adc", "probability_dac", "protection"):
            del data[name]
        del data["leakage"]["step_latency_s"]
        hardware.leakage.step_latency_s = Leakage().step_latency_s
    loaded = Hardware.from_dict(data)
    assert loaded == hardware and loaded.to_dict()["version"] == HARDWARE_VERSION == 7


def test_seeds_of_earlier_versions_name_other_chips_and_say_so():
    data = json.loads(json.dumps(Hardware(noise=Noise(read_qk=0.1)).to_dict()))
    with pytest.warns(UserWarning, match=r"noise\.read_qk was written before hardware version 5"):
        Hardware.from_dict(data | {"version": 4})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Hardware.from_dict(data)


def test_fields_left_out_keep_their_defaults():
    hardware = Hardware.from_dict({"version": HARDWARE_VERSION, "array": {"window": 128}})
    assert hardware == Hardware(array=Array(window=128))


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ({"version": HARDWARE_VERSION, "colour": 1}, "hardware.colour"),
        ({"version": HARDWARE_VERSION, "cell": {"supply": 1.0}}, "hardware.cell.supply.*supply_v"),
        ({"version": HARDWARE_VERSION, "leakage": {"tau_s": -1.0}}, "leakage.tau_s"),
        ({"version": HARDWARE_VERSION + 1}, "version"),
        ({}, "version"),
    ],
)
def test_dictionaries_of_something_else_are_refused(data, names):
    with pytest.raises(ConfigError, match=names):
        Hardware.from_dict(data)


def test_defaults_are_off():
    hardware = Hardware()
    assert hardware.noise.active() == [] and not hardware.noise.is_frozen_in_chip()
    assert hardware.leakage.decay_per_token == 0.0
    assert {c.n_levels for c in (hardware.input_dac, hardware.storage_dac, hardware.readout)} == {None}


def test_derived_values():
    assert Leakage(tau_s=2.0, token_time_s=0.5).decay_per_token == 0.25
    assert Array(window=256, rows=64).n_tiles == 4
    noise = Noise(write_v=0.1, column_gain=0.2)
    assert noise.active() == ["write_v", "column_gain"] and noise.is_frozen_in_chip()
    assert Noise(tau_spread=0.1, write_v=0.1, mismatch_gain=0.1).frozen() == ["mismatch_gain", "tau_spread"]
    assert {*FROZEN_IN_CHIP, "write_v", "read_qk", "read_av"} == {
        f.name for f in fields(Noise)
    }  # each is one or the other
    assert noise.only("write_v") == Noise(write_v=0.1) and not noise.only("write_v").is_frozen_in_chip()


def test_a_listed_counter_of_the_normaliser_divides_by_its_first_step():
    listed = [0.0, 0.01, 0.03, 0.1, 0.3, 1.0]
    assert Normaliser(counter=Converter(n_levels=6, spacing="listed", positions=listed)).least_share == 0.01
    with pytest.raises(ConfigError, match=r"normaliser\.counter\.positions=.*begin the list with 0"):
        Normaliser(counter=Converter(n_levels=2, spacing="listed", positions=[0.5, 1.0]))
    with pytest.raises(ConfigError, match=r"normaliser\.counter\.spacing='equal_charge'"):
        Hardware(normaliser=Normaliser(counter=Converter(n_levels=16, spacing="equal_charge")))


def test_a_spread_that_is_meant_in_percent_is_refused():
    with pytest.raises(ConfigError, match=r"noise\.tau_spread=30.*0\.1 for 10 %"):
        Noise(tau_spread=30)
