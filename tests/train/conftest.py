"""Real English text in a folder, and Hydra's own way to a checked config, as the command line takes it."""

from __future__ import annotations

import copy
import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import REPOSITORY
from train.configs import checked, register
from train.schema import EvaluationConfig, RunConfig

TINY = ["model.n_layer=1", "measure.tokens=128", "measure.chips=2"]
"""What makes the smoke experiment smaller still."""

register()


def english(n_characters: int, skip: int = 0) -> str:
    """Prose from CPython's documentation topics."""
    topics = importlib.import_module("pydoc_data.topics").topics
    return "\n\n".join(topics[name] for name in sorted(topics))[skip : skip + n_characters]


def write_text_folder(folder: Path, scale: int = 1) -> Path:
    """train.txt, valid.txt and test.txt of real English, each its own stretch of it."""
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for split, size in (("train", 20000 * scale), ("valid", 3000 * scale), ("test", 3000 * scale)):
        (folder / f"{split}.txt").write_text(english(size, start), encoding="utf-8")
        start += size
    return folder


GROUPS = {folder.name for folder in (REPOSITORY / "conf").iterdir() if folder.is_dir()}
"""Names whose words choose files."""


def compose_config(name: str, *overrides: str) -> Any:
    """What Hydra makes of a command line, without the part that is Hydra's own. Files are put together once for all
    lines that choose the same ones, which takes half a second; words of fields go in as Hydra puts them in."""
    fields = [word for word in overrides if is_of_field(word)]
    return with_fields(composed(name, *(word for word in overrides if word not in fields)), fields)


def with_fields(config: DictConfig, words: list[str]) -> DictConfig:
    """A copy in which words of fields are put, by Hydra's own."""
    changed = copy.deepcopy(config)
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(words), changed)
    return changed


def is_of_field(word: str) -> bool:
    """Whether a word sets a field that is there, and asks for nothing else."""
    name, _, value = word.partition("=")
    return name not in GROUPS and not set("+~@/") & set(name) and "${" not in value and "hydra" not in name


@functools.cache
def composed(name: str, *overrides: str) -> DictConfig:
    """What Hydra makes of files, for nobody to change."""
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        config = hydra_compose(name, overrides=list(overrides))
    assert "hydra" not in config
    return config


def weights_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a stage's folder."""
    return load_file(folder / "model.safetensors")


def same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def command(module: str, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m module overrides`, as a user types it."""
    return subprocess.run(
        [sys.executable, "-m", module, *overrides],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_folder(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens that the tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def smoke(text_folder: Path, cache: Path) -> Callable[..., list[str]]:
    """Overrides of the smoke experiment into a folder; on the published route, which has the most stages, unless one
    is named."""

    def overrides(output: Path, *more: str) -> list[str]:
        return [
            "experiment=smoke",
            *TINY,
            f"data.path={text_folder}",
            f"data.cache_dir={cache}",
            f"output_dir={output}",
            *([] if any(word.startswith("recipe=") for word in more) else ["recipe=published"]),
            *more,
        ]

    return overrides


@pytest.fixture(scope="session")
def compose(smoke: Callable[..., list[str]]) -> Callable[..., RunConfig]:
    """The checked smoke config, writing into `output`."""

    def make(output: Path, *more: str) -> RunConfig:
        return checked(compose_config("run", *smoke(output, *more)), RunConfig)

    return make


@pytest.fixture
def compose_evaluation(text_folder: Path, cache: Path) -> Callable[..., EvaluationConfig]:
    def make(checkpoint: Path, *more: str) -> EvaluationConfig:
        overrides = [
            f"checkpoint={checkpoint}",
            "data=text",
            f"data.path={text_folder}",
            f"data.cache_dir={cache}",
            "measure.tokens=128",
            *more,
        ]
        return checked(compose_config("evaluation", *overrides), EvaluationConfig)

    return make
