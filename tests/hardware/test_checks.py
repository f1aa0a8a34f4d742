"""Every field of every hardware and circuit description: its type, and that it is finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, get_type_hints

import numpy as np
import pytest

from aimc import presets
from aimc.circuit import (
    CostParameters,
    DigitalBaseline,
    FullScales,
    ModelShape,
    hermes_chip,
    oxide_cell,
    silicon_cell,
    to_cost,
    to_hardware,
)
from aimc.hardware import Array, Cell, ConfigError, Converter, Hardware, Leakage, Noise, Protection
from aimc.hardware.checks import check_fields

BASELINE = DigitalBaseline(name="x", attention_energy_j=1.0, attention_latency_s=1.0, source="")
DESCRIPTIONS: list[Any] = [
    *(Cell(), Leakage(tau_s=1.0, target_v=0.0), Array(), Converter(n_levels=4), Noise(), Protection(), Hardware()),
    *(presets.gain_cell_cmos(), silicon_cell(), oxide_cell(), silicon_cell().read_n),
    *(CostParameters(refresh_interval_s=1.0), hermes_chip(), ModelShape(attention_layers=12), BASELINE),
]


def numeric_fields() -> Iterator[Any]:
    for instance in DESCRIPTIONS:
        hints = get_type_hints(type(instance))
        for f in fields(instance):
            if {int, float} & {hints[f.name], *getattr(hints[f.name], "__args__", ())} and f.name != "coefficients":
                yield pytest.param(instance, f.name, id=f"{type(instance).__name__}.{f.name}")


@pytest.mark.parametrize(("instance", "name"), numeric_fields())
def test_no_number_is_infinite_or_nan(instance: Any, name: str) -> None:
    for value in (math.inf, -math.inf, math.nan, np.float64("inf"), np.float32("nan")):
        with pytest.raises(ConfigError, match=rf"\b{name}="):
            replace(instance, **{name: value})


def test_whole_numbers_beyond_any_float_are_refused() -> None:
    with pytest.raises(ConfigError, match="cell.supply_v=.*finite"):
        Cell(supply_v=10**400)


@pytest.mark.parametrize(("instance", "name"), numeric_fields())
def test_no_number_is_something_else(instance: Any, name: str) -> None:
    for value in (True, "1", {}, [1.0], np.array(1.0), np.ones(2), np.True_, 1j, Array):
        with pytest.raises(ConfigError, match=rf"\b{name}="):
            replace(instance, **{name: value})


def test_every_description_is_walked() -> None:
    walked = {parameter.id.split(".")[0] for parameter in numeric_fields()}
    assert walked == {type(instance).__name__ for instance in DESCRIPTIONS} - {"Hardware"}
    assert sum(1 for _ in numeric_fields()) > 100


@pytest.mark.parametrize(
    ("build", "kwargs", "message"),
    [
        (Converter, {"n_levels": 2.5}, "n_levels=2.5: .*whole number"),
        (Array, {"window": 64.0}, "array.window=64.0: .*write 64"),
        (Protection, {"n_sink": 1.5}, "protection.n_sink=1.5"),
        (Hardware, {"array": {"window": 64}}, r"array=.*a Array.*Array\(…\).*from_dict"),
        (Hardware, {"array": None}, "array=None"),
        (Hardware, {"cell": Array()}, "cell=Array.*a Cell"),
        (Hardware, {"backend": None}, "backend=None"),
        (Hardware, {"activation": 3}, "activation=3: .*a name"),
        (Cell, {"coefficients": 1.0}, "cell.coefficients=1.0: .*a list"),
        (Cell, {"coefficients": "01"}, "cell.coefficients"),
        (Cell, {"coefficients": [0.0, "1"]}, "cell.coefficients.*type str"),
        (Cell, {"coefficients": [0.0, True]}, "cell.coefficients.*type bool"),
        (Cell, {"coefficients": [0.0, math.inf]}, "cell.coefficients.*finite"),
        (Cell, {"coefficients": np.ones((2, 2))}, "cell.coefficients"),
        (Cell, {"coefficients": np.array(1.0)}, "cell.coefficients"),
        (ModelShape, {"windows": 64}, "windows=64: .*a list"),
        (ModelShape, {"windows": [64.5]}, "windows"),
    ],
)
def test_wrong_types_are_refused_by_name(build: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**kwargs)


def test_circuits_too() -> None:
    with pytest.raises(ConfigError, match="write={}.*a Transistor"):
        replace(silicon_cell(), write={})
    with pytest.raises(ConfigError, match="has_body=1: .*truth value"):
        replace(silicon_cell().read_n, has_body=1)
    assert replace(silicon_cell(), leak_target_v=None).leak_target_v is None


def test_numbers_of_numpy_become_pythons() -> None:
    array = Array(window=np.int64(128), saturation_qk=np.float32(0.5), saturation_av=3)
    assert [type(value) for value in (array.window, array.saturation_qk, array.saturation_av)] == [int, float, float]
    assert array == Array(window=128, saturation_qk=0.5, saturation_av=3.0)
    for given in ((0, 1), np.array([0.0, 1.0]), [np.float32(0), np.int8(1)]):
        cell = Cell(coefficients=given)  # type: ignore[arg-type]
        assert cell.coefficients == [0.0, 1.0] and {type(c) for c in cell.coefficients} == {float}
    assert type(replace(BASELINE, rest_energy_j=1).rest_energy_j) is float


def test_a_refused_dictionary_names_the_field_too() -> None:
    for data, name in (({"array": {"window": 64.0}}, "array.window"), ({"array": 3}, "array=3")):
        with pytest.raises(ConfigError, match=name):
            Hardware.from_dict({"version": 3, **data})


def test_types_that_nobody_taught_are_found_when_they_are_written() -> None:
    with pytest.raises(TypeError, match="teach aimc.hardware.checks"):
        check_fields(Untaught())


@dataclass
class Untaught:
    numbers: frozenset[int] = frozenset()


def test_every_field_of_the_hardware_has_its_type_after_all() -> None:
    def walk(instance: Any) -> Iterator[Any]:
        for f in fields(instance):
            value = getattr(instance, f.name)
            if is_dataclass(value):
                yield from walk(value)
            else:
                yield value

    assert {type(value) for value in walk(presets.gain_cell_cmos())} == {bool, int, float, str, list, type(None)}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 0.0, -1.0])
def test_arguments_of_the_circuit_are_held_to_the_same(value: float) -> None:
    cell = silicon_cell()
    for name in ("head_size", "mean_pulse", "phi_pulse_s"):
        with pytest.raises(ConfigError, match=f"{name}="):
            to_hardware(cell, **{name: value})
    for name in ("qk_c", "av_c"):
        with pytest.raises(ConfigError, match=f"full_scales.{name}="):
            to_hardware(cell, full_scales=FullScales(1e-12, 1e-12)._replace(**{name: value}))
    for name in ("mean_pulse", "mean_phi", "layout_factor", "capacitor_f_m2"):
        with pytest.raises(ConfigError, match=f"{name}="):
            to_cost(cell, **{name: value})
