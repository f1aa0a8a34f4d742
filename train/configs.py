"""The door between Hydra and the program: schemas and device presets in, one checked dataclass out."""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aimc.hardware import ConfigError, Noise, presets

from .characterise_config import CharacteriseConfig
from .errors import RunError
from .schema import EvaluationConfig, RealConfig, RunConfig, WholeChipConfig
from .study_schema import PageConfig, StudyConfig

T = TypeVar("T")
HARDWARE_PRESETS = ("ideal", "gain_cell_linear", "gain_cell_cmos", "gain_cell_normalised", "igzo", "published")
NONIDEALITY_PRESETS = {"none": Noise, "typical": presets.typical}


@functools.cache  # each entry point asks for it, which would take half a second
def register() -> None:
    """Make the schemas and presets known to Hydra: the YAML files of conf/ name them and hold no device numbers
    themselves."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    store.store(name="evaluation_schema", node=EvaluationConfig)
    store.store(name="whole_chip_schema", node=WholeChipConfig)
    store.store(name="real_schema", node=RealConfig)
    store.store(name="characterise_schema", node=CharacteriseConfig)
    store.store(name="study_schema", node=StudyConfig)
    store.store(name="page_schema", node=PageConfig)
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
        result: Any = _object(config, "")
    except OmegaConfBaseException as error:  # what stands there refers to something that is not there
        where = getattr(error, "full_key", None) or "the config"
        raise RunError(f"{where}: {str(error).splitlines()[0]}") from error
    assert isinstance(result, schema)
    return result


def _object(config: DictConfig, name: str) -> Any:
    """`config` as its dataclass, its parts first, so that an error can say where in the whole config it is."""
    schema: Any = OmegaConf.get_type(config)
    known = [f.name for f in fields(schema)]
    for key in map(str, config):
        where = f"{name}.{key}".lstrip(".")
        if key not in known:  # only a `+` on the command line gets this far
            raise RunError(f"{where}: unknown key; the keys there are {', '.join(known)}")
        if OmegaConf.is_missing(config, key):
            raise RunError(f"{where} is not set; set {where}=…")
        if isinstance(config[key], DictConfig) and OmegaConf.get_type(config[key]) is not dict:
            _object(config[key], where)
    try:
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise RunError(_located(str(error.__cause__ or error).splitlines()[0], name)) from error
    except ConfigError as error:
        raise RunError(_located(str(error), name)) from error
    except RunError as error:  # begins with the field's name
        raise RunError(f"{name}.{error}".lstrip(".")) from error


def _located(message: str, name: str) -> str:
    return message if message.startswith(name) else f"{name}: {message}"
