"""The public face: names of the flat layout of version 0.1 work on, with one warning that says where each is now."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import aimc

SAYS = "import warnings; warnings.simplefilter('always')\n"
MOVED = dict(aimc._MOVED)


@pytest.fixture(scope="module")
def told() -> tuple[str, list[str], list[str]]:
    """What a fresh interpreter prints that takes every new name and then every old module, and the lines in which it
    warns at each."""
    names = sorted({*aimc.__all__} - {"static", "plot"})
    code = (
        f"import sys, importlib, aimc\nfor name in {names!r}: getattr(aimc, name)\n"
        "print(aimc.presets.__name__)\nprint('old names', file=sys.stderr)\n"
        f"moved = {MOVED!r}\n"
        "for old, new in moved.items():\n"
        "    first = importlib.import_module('aimc.' + old)\n"
        "    exec(f'import aimc.{old}; from aimc import {old} as second')\n"
        "    real = importlib.import_module(new)\n"
        "    assert first is second is getattr(aimc, old) is sys.modules['aimc.' + old] is real, old\n"
        "    assert real.__name__ == real.__spec__.name == new, old\n"
    )
    done = subprocess.run([sys.executable, "-c", SAYS + code], capture_output=True, text=True, check=True)
    at_new, _, at_old = done.stderr.partition("old names\n")
    warned = ([x for x in said.splitlines() if "DeprecationWarning: aimc." in x] for said in (at_new, at_old))
    return done.stdout.strip(), *warned  # type: ignore[return-value]


def test_a_moved_module_is_the_one_at_its_new_place(told: tuple[str, list[str], list[str]]) -> None:
    """By attribute, by import and by `from … import`; each is told once, with the place to go."""
    *_, warned = told
    assert len(warned) == len(MOVED)
    for (old, new), line in zip(MOVED.items(), warned, strict=True):
        assert line.endswith(f"DeprecationWarning: aimc.{old} is {new} now")


@pytest.mark.parametrize(
    "use",
    [
        "import aimc; aimc.converter",
        "import aimc.converter",
        "from aimc import converter",
        "from aimc.nonideality import Noise",
        "from aimc.presets import typical",
    ],
)
def test_the_warning_names_the_users_line(use: str) -> None:
    """Python shows a deprecation by default only where the user's own program is the one to change."""
    done = subprocess.run([sys.executable, "-c", use], capture_output=True, text=True, check=True)
    assert done.stderr.count("DeprecationWarning: aimc.") == 1 and "<string>:1: Dep" in done.stderr


def test_new_names_warn_nothing(told: tuple[str, list[str], list[str]]) -> None:
    assert told[:2] == ("aimc.hardware.presets", [])


def test_an_unknown_module_is_unknown() -> None:
    for name in ("aimc.nonsense", "aimc.models.hf", "aimc.hf.nonsense"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("hf", "gain_cell_layers hardware_of is_digital set_chip set_generator set_hardware"),
        ("config", "Array Cell Converter Hardware Leakage Noise Protection"),
        ("conversion", "ConversionReport convert to_digital"),
        ("design", "Design"),
        ("explore", "Point Tradeoff sweep"),
        ("plot_circuit", "tradeoff retention noise_budget"),
    ],
)
def test_an_old_module_has_the_names_that_people_took_from_it(module: str, names: str) -> None:
    with pytest.warns(DeprecationWarning):
        sys.modules.pop(f"aimc.{module}", None)
        old = importlib.import_module(f"aimc.{module}")
    assert [name for name in names.split() if not hasattr(old, name)] == []
