"""aihwkit beside any torch: without torchvision, which it declares and tiles never use."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

from aimc.static.install import INSTALL
from tests.conftest import REPOSITORY

NOT_FOR_TILES = ("torchvision", "sklearn", "google.protobuf", "requests", "lmfit", "matplotlib", "transformers")
"""What aihwkit declares, or imports elsewhere."""


@pytest.fixture(scope="module")
def told() -> list[str]:
    """What a fresh interpreter says of what a tile has imported, and of transformers thereafter."""
    code = f"""
import sys
from torch import nn, ones
from aimc.static import presets
from aimc.static.layer import StaticLinear
layer = StaticLinear(nn.Linear(4, 4), presets.pcm(), "layer").eval()
layer.program_analog_weights(); layer.drift_analog_weights(1.0); layer(ones(1, 4))
print([name for name in {NOT_FOR_TILES!r} if name in sys.modules], "tqdm" in sys.modules)
import aihwkit.nn
from transformers import GPT2LMHeadModel, Trainer
print("works")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return ran.stdout.split("\n")


@pytest.mark.slow
def test_tiles_need_what_the_extra_names_and_no_more(told: list[str]) -> None:
    assert told[0] == "[] True"
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [requirement.split(">")[0] for requirement in extras["static"]] == ["tqdm"]


@pytest.mark.slow
def test_transformers_works_beside_aihwkit(told: list[str]) -> None:
    assert told[1] == "works"


def test_the_make_file_installs_it_as_the_error_says() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    assert (
        "--only-binary aihwkit --no-deps aihwkit" in makefile and "--only-binary aihwkit --no-deps aihwkit" in INSTALL
    )
    assert makefile.count("pip install --quiet --constraint") == makefile.count("pip install")
    assert "aihwkit==" in (REPOSITORY / "constraints.txt").read_text()
