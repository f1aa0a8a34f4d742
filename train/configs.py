"""The door between Hydra and the program: schemas and device presets in, one checked dataclass out."""

from __future__ import annotations

from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aimc import presets
from aimc.config import ConfigError, Noise
from train.errors import RunError
from train.schema import EvaluationConfig, RunConfig

T = TypeVar("T")
HARDWARE_PRESETS = ("ideal", "gain_cell_linear", "gain_cell_cmos", "igzo", "published")
NONIDEALITY_PRESETS = {"none": Noise, "typical": presets.typical}


def register() -> None:
    """Make the schemas and presets known to Hydra: the YAML files of conf/ name them and hold no device numbers themselves."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    store.store(name="evaluation_schema", node=EvaluationConfig)
    for name in HARDWARE_PRESETS:
        store.store(group="preset/hardware", name=name, node=getattr(presets, name)())
    for name, make in NONIDEALITY_PRESETS.items():
        store.store(group="preset/nonideality", name=name, node=make())


def checked(config: DictConfig, schema: type[T]) -> T:
    """The composed config as the typed dataclass.

    Raises:
        RunError: a value that a field refuses.
    """
    try:
        result: Any = OmegaConf.to_object(config)
    except ConfigError as error:
        raise RunError(str(error)) from error
    except OmegaConfBaseException as error:
        cause = error.__cause__ or error
        raise RunError(str(cause).splitlines()[0]) from error
    assert isinstance(result, schema)
    return result
