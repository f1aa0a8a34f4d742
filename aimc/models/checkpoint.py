"""Loading a converted model, arrays and static tiles, from the folder, or hub repository, that `save_pretrained`
wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import get_session
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import logging as hf_logging
from transformers.utils import cached_file

from aimc.hardware import Hardware
from aimc.models.arrays import CONFIG_KEY, set_chip
from aimc.models.conversion import convert
from aimc.models.hook import IMPLEMENTATION
from aimc.static.layers import layers_of, rebuild
from aimc.static.tiles import STATIC_KEY, TILES

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""Options of transformers' `from_pretrained` that say where files are."""
NETWORK_TIMEOUT_S = 5.0
"""How long the hub may take to answer at all."""


def from_pretrained(path: str | Path, **kwargs: Any) -> PreTrainedModel:
    """A converted model as `save_pretrained` wrote it: weights, scalers, hardware, chip, static tiles, and which layers
    are digital.

    Each layer on static tiles gets the aihwkit configuration that it was saved with. Its weights are targets: tiles
        come back not programmed.

    Args:
        path: folder or hub name.
        kwargs: passed to transformers' `from_pretrained`. `dtype` is that of the saved weights unless given; scalers
            are float32 always.

    Raises:
        FileNotFoundError: no such folder or hub repository, or no network to ask for it.
        ValueError: it holds a plain digital model, is incomplete or damaged, or was written for an unknown hardware
            version.
        aimc.static.MissingAihwkit: it has static tiles, and aihwkit is not installed.
    """
    path = str(path)
    where = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
    if not Path(path).is_dir() and not where.get("local_files_only") and not _hub_answers(path):
        kwargs["local_files_only"] = where["local_files_only"] = (
            True  # downloaded before, or FileNotFoundError without minutes of retries
        )
        kwargs.setdefault(
            "adapter_kwargs", {"local_files_only": True}
        )  # where peft is installed, transformers asks for an adapter, too
    record, tiles = _records(path, where)
    try:
        hardware = None if record is None else Hardware.from_dict(record.arrays)
        layers = None if tiles is None else layers_of(tiles)
    except ValueError as error:
        raise ValueError(f"{path}/config.json: {error}") from error
    with _reading_weights(path):
        model = _digital_part(path, kwargs)
        saved = _analog_tensors(path, where)
    if hardware is not None and record is not None:
        convert(model, hardware, skip_layers=record.skip_layers)
    if layers is not None and tiles is not None:
        rebuild(model, layers, parted=bool(tiles.get("parted")))
    expected = {name for name in model.state_dict() if _is_analog(name)}
    if expected != set(saved):
        odd = sorted(expected ^ set(saved))
        raise ValueError(
            f"{path}: the scalers or tiles do not fit the model (first: {odd[0]}); the folder is incomplete or from"
            " another version, convert again"
        )
    model.load_state_dict(
        saved, strict=False
    )  # exactly the analog parts, checked above; the other weights are in place
    if record is not None:
        set_chip(model, record.chip_seed)
    return model


@dataclass(slots=True)
class _Record:
    """What `config.json` says of the gain-cell arrays."""

    arrays: dict[str, Any]
    chip_seed: int | None = None
    skip_layers: list[int] = field(default_factory=list)


def _hub_answers(name: str) -> bool:
    """Whether the hub can be asked for a repository: one request, where its client would retry for half a minute.

    Raises:
        FileNotFoundError: the name is a path, which the hub cannot have.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise FileNotFoundError(
            f"{name}: no model there (no such folder); give a folder written by save_pretrained, or a hub name"
            " owner/name"
        )
    try:
        get_session().head(constants.ENDPOINT, timeout=NETWORK_TIMEOUT_S)
    except Exception:  # no route, no name service, offline mode: each client library has its own kind
        return False
    return True


def _records(path: str, where: dict[str, Any]) -> tuple[_Record | None, dict[str, Any] | None]:
    """What stands in `config.json` of gain-cell arrays and of static tiles; one of the two may be missing."""
    reason: OSError | None = None
    try:
        config_file = cached_file(path, "config.json", **where)
    except OSError as error:
        config_file, reason = None, error
    if config_file is None:
        raise FileNotFoundError(
            f"{path}: no model there (no config.json); give a folder written by save_pretrained, or a hub name and a"
            " network"
        ) from reason
    try:
        config = json.loads(Path(config_file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: config.json is damaged ({error}), so nothing is known of the model; use another copy"
        ) from error
    arrays, tiles = config.get(CONFIG_KEY), config.get(STATIC_KEY)
    if arrays is None and tiles is None:
        raise ValueError(
            f"{path}: a digital model, without gain-cell hardware in its config.json; load it with transformers and"
            " call aimc.convert"
        )
    if arrays is None:
        return None, tiles
    arrays = dict(arrays)
    return (
        _Record(chip_seed=arrays.pop("chip_seed", None), skip_layers=arrays.pop("skip_layers", []), arrays=arrays),
        tiles,
    )


@contextmanager
def _reading_weights(path: str) -> Iterator[None]:
    """Whatever goes wrong with the weights, told with the folder's name; transformers keeps quiet about the scalers,
    which we load."""
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    except Exception as error:  # the file formats raise a different kind for each damage
        raise ValueError(
            f"{path}: its weights cannot be read ({type(error).__name__}:"
            f" {str(error).splitlines()[0] if str(error) else 'no message'}); the folder is incomplete or damaged, use"
            " another copy"
        ) from error
    finally:
        hf_logging.set_verbosity(verbosity)


def _digital_part(path: str, kwargs: dict[str, Any]) -> PreTrainedModel:
    """The model without its arrays, in the dtype it was saved in, every weight of it from the file."""
    if not {"dtype", "torch_dtype"} & kwargs.keys():
        kwargs = {**kwargs, "dtype": "auto"}
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, **{**kwargs, "output_loading_info": True})
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise KeyError(f"{len(missing)} weights are not in the file, the first is {missing[0]}")
    return model


def _is_analog(name: str) -> bool:
    """Whether a tensor belongs to arrays or tiles; the weights that tiles are programmed to are those of the digital
    model."""
    return f".{IMPLEMENTATION}." in name or f".{TILES}." in name


def _analog_tensors(path: str, where: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of arrays and tiles, by name, from one safetensors file or from shards."""
    index = cached_file(path, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False, **where)
    names = sorted(set(json.loads(Path(index).read_text())["weight_map"].values())) if index else ["model.safetensors"]
    found: dict[str, Tensor] = {}
    for name in names:
        with safe_open(cached_file(path, name, **where), framework="pt") as tensors:
            found |= {key: tensors.get_tensor(key) for key in tensors.keys() if _is_analog(key)}  # noqa: SIM118 (not a dict)
    return found
