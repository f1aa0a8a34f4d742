"""Configurations as JSON: every one of aihwkit's comes back to the value, and nothing else is ever built."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

import aihwkit.simulator.configs as configs
import aihwkit.simulator.presets as aihwkit_presets
import pytest
from aihwkit.inference import PCMLikeNoiseModel

from aimc.static import EncodingError, presets
from aimc.static.encoding import decode, encode

KINDS = {
    name: kind
    for module in (configs, aihwkit_presets)
    for name, kind in vars(module).items()
    if inspect.isclass(kind) and dataclasses.is_dataclass(kind) and name.endswith(("Preset", "InferenceRPUConfig"))
}


def through_json(config: Any) -> Any:
    return decode(json.loads(json.dumps(encode(config))))


@pytest.mark.parametrize("name", KINDS)
def test_every_configuration_of_aihwkit_comes_back(name: str) -> None:
    config = KINDS[name]()
    again = through_json(config)
    assert type(again) is type(config)
    assert encode(again) == encode(config)
    assert str(again) == str(config)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_what_was_changed_comes_back(name: str) -> None:
    config = presets.PRESETS[name]()
    config.forward.out_noise, config.modifier.std_dev, config.drift_compensation = 0.1234567890123, 0.3, None
    config.noise_model = PCMLikeNoiseModel(g_max=17.0, prog_coeff=[0.1, 0.2])
    again = through_json(config)
    assert again.forward == config.forward and again.modifier == config.modifier and again.drift_compensation is None
    assert vars(again.noise_model.g_converter) == vars(config.noise_model.g_converter)
    assert again.noise_model.prog_coeff == [0.1, 0.2] and again.clip.type is config.clip.type


def test_keys_that_are_numbers_and_tuples() -> None:
    value = {1.0: [1, 2], 86400.0: ("a", None)}
    assert through_json(value) == value


class OwnNoise(PCMLikeNoiseModel):
    """A user's own class."""


def test_a_class_of_ones_own_is_refused() -> None:
    config = presets.pcm()
    config.noise_model = OwnNoise()
    with pytest.raises(EncodingError, match="OwnNoise is not one of aihwkit's classes.*without pickling"):
        encode(config)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"object": "os.system", "fields": {}}, "os.system is not one of aihwkit's classes"),
        ({"class": "builtins.eval"}, "not one of aihwkit's classes"),
        ({"object": "aihwkit.nn.modules.linear.AnalogLinear", "fields": {}}, "not one of aihwkit's classes"),
        ({"class": "aihwkit.cloud.client.session.ApiSession"}, "not one of aihwkit's classes"),
        ({"object": "aihwkit.simulator.configs.TorchInferenceRPUConfig", "fields": {}}, "not a class of aihwkit's"),
        (
            {"object": "aihwkit.simulator.tiles.inference_torch.TorchInferenceTile", "fields": {}},
            "no configuration, noise model",
        ),
        ({"enum": "aihwkit.simulator.parameters.io.IOParameters", "name": "inp_res"}, "is no enum"),
        ({"object": "aihwkit.simulator.parameters.io.Nothing", "fields": {}}, "has no such class"),
        (
            {"object": "aihwkit.simulator.parameters.io.IOParameters", "fields": {"colour": 1}},
            "no field colour.*another version",
        ),
        ({"enum": "aihwkit.simulator.parameters.enums.WeightClipType", "name": "NOTHING"}, "damaged"),
        ({"object": "aihwkit.simulator.parameters.io.IOParameters"}, "damaged"),
        ({"nonsense": 1}, "stand for nothing known"),
    ],
)
def test_bad_data_is_refused(data: dict, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        decode(data)
