"""Loading a converted model, arrays and static tiles, from the folder, or hub repository, that `save_pretrained`
wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from aimc.models.hub import place_of, quiet_libraries, require_reachable
from aimc.models.manifest import CONFIG, WEIGHTS, require_intact
from aimc.models.restoring import read_records, record_keys, restore
from aimc.models.substrates import substrates_under
from aimc.models.trust import (
    naming_config,
    require_no_adapter,
    require_plain_names,
    require_plain_weights,
    require_possible_sizes,
    say_code_is_ignored,
    shard_names,
)

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""Options of transformers' `from_pretrained` that say where files are."""
INDEX = "model.safetensors.index.json"
CACHE_OPTIONS = ("cache_dir", "revision", "subfolder")
"""Those of them that say where in the hub's cache."""


class _IncompleteWeights(Exception):
    """The files can be read, and some of the model is not in them or has another shape."""


READ_ERRORS = (OSError, SafetensorError, json.JSONDecodeError, UnicodeDecodeError, _IncompleteWeights)
"""What a damaged copy raises while its weights are read. Anything else, such as a wrong keyword, is told as it is."""


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
        FileNotFoundError: no such folder or hub repository, no network to ask for it, or no weights in it.
        ValueError: it holds a plain digital model, is incomplete or damaged (:class:`aimc.models.manifest.Damaged`:
            not as its manifest says), names files elsewhere, or was written for an unknown hardware version.
        TypeError: a keyword that neither transformers nor the model knows.
        aimc.static.MissingAihwkit: it has static tiles, and aihwkit is not installed.
    """
    path = str(path)
    place = place_of(path, kwargs)
    require_intact(place, *CONFIG, *WEIGHTS)
    require_plain_names(place)
    kwargs.setdefault("trust_remote_code", False)  # or transformers asks at the terminal
    where = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
    cache = {name: where[name] for name in CACHE_OPTIONS if where.get(name)}
    if not Path(path).is_dir() and not where.get("local_files_only") and not require_reachable(path, **cache):
        kwargs["local_files_only"] = where["local_files_only"] = True  # asks nothing of a hub that does not answer
        # where peft is installed, transformers asks for an adapter, too
        kwargs.setdefault("adapter_kwargs", {"local_files_only": True})
    with quiet_libraries():
        config_file = _file(path, "config.json", where)
    config = _config(path, config_file)
    if not kwargs["trust_remote_code"]:
        say_code_is_ignored(config, path)
    require_possible_sizes(config, path)
    require_plain_weights(config, path)
    read = read_records(config, path)
    if not read and config.get("slot_cells") is not None:
        raise ValueError(
            f"{path}: a model with slots in cells, which transformers loads as it is: give it to"
            " transformers.AutoModelForCausalLM.from_pretrained, behind import aimc"
        )
    if not read:
        raise ValueError(
            f"{path}: a digital model, without analog hardware in its config.json; load it with transformers and call"
            " aimc.convert"
        )
    with quiet_libraries():
        with naming_config(path):
            AutoConfig.from_pretrained(path, trust_remote_code=kwargs["trust_remote_code"], **where)
        files = _weight_files(path, kwargs.get("variant"), where)
        with _reading_weights(path):
            model = _complete(path, kwargs)
            if not substrates_under(model):  # without the mark by which transformers asks aimc for it
                restore(model, read, files, path)
    return model


def is_converted(model: str | Path | PretrainedConfig) -> bool:
    """Whether a folder, or a model's config, is that of a converted model: gain-cell arrays, static tiles, or both.

    Without aimc, transformers refuses such a folder, unless an older aimc wrote it or its attention implementation is
    chosen by hand: then it makes a digital model, with weights that were trained for arrays. Whoever reads folders he
    did not write should ask first.

    Args:
        model: folder with a `config.json`, that file itself, or a config that was read already. Of a hub name, give
            `transformers.AutoConfig.from_pretrained(name)`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged.
    """
    if isinstance(model, PretrainedConfig):
        return any(getattr(model, key, None) is not None for key in record_keys())
    file = Path(model) / "config.json" if Path(model).is_dir() else Path(model)
    if not file.is_file():
        raise FileNotFoundError(f"{model}: no model there (no config.json); give a folder written by save_pretrained")
    config = _config(str(model), str(file))
    return any(config.get(key) is not None for key in record_keys())


def _file(path: str, name: str, where: dict[str, Any]) -> str:
    """Where a file of a model is on this machine, downloaded if need be.

    Raises:
        FileNotFoundError: it is not there; of a hub, with the hub's reason.
    """
    reason: OSError | None = None
    try:
        found = cached_file(path, name, **where)
    except OSError as error:
        found, reason = None, error
    if found is None:
        told = "" if reason is None or Path(path).is_dir() else f": {str(reason).splitlines()[0]}"
        if name == "config.json":
            what, do = "no model there", "give a folder written by save_pretrained, or a hub name and a network"
        else:
            what, do = "incomplete", "use another copy, or save it again"
        raise FileNotFoundError(f"{path}: {what} (no {name}{told}); {do}") from reason
    return found


def _config(path: str, config_file: str) -> dict[str, Any]:
    """The JSON object in `config.json`, with objects where it speaks of arrays and tiles."""
    try:
        config = json.loads(Path(config_file).read_text(encoding="utf-8"))
        if not isinstance(config, dict) or any(not isinstance(config.get(key) or {}, dict) for key in record_keys()):
            raise ValueError("a JSON object is missing")
    except ValueError as error:
        raise ValueError(
            f"{path}: config.json is damaged ({error}), so nothing is known of the model; use another copy"
        ) from error
    return config


@contextmanager
def _reading_weights(path: str) -> Iterator[None]:
    """Whatever a damaged copy of the weights raises, told with the folder's name."""
    try:
        yield
    except READ_ERRORS as error:
        raise ValueError(
            f"{path}: its weights cannot be read ({type(error).__name__.lstrip('_')}:"
            f" {str(error).splitlines()[0] if str(error) else 'no message'}); the folder is incomplete or damaged, use"
            " another copy"
        ) from error


def _complete(path: str, kwargs: dict[str, Any]) -> PreTrainedModel:
    """The model in the dtype it was saved in, every weight of it from the file."""
    if not {"dtype", "torch_dtype"} & kwargs.keys():
        kwargs = {**kwargs, "dtype": "auto"}
    # Tensors of another shape are let through, and refused below by name.
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, **{**kwargs, **told})
    except (ValueError, KeyError, ZeroDivisionError, OverflowError) as error:  # sizes that do not go together
        with naming_config(path):
            raise error
    model, info = loaded
    require_no_adapter(model, path)
    if missing := sorted(info["missing_keys"]):
        raise _IncompleteWeights(f"{len(missing)} weights are not in the file, the first is {missing[0]}")
    if other := sorted(info["mismatched_keys"]):
        name, in_file, in_model = other[0]
        raise _IncompleteWeights(
            f"size mismatch for {name}: {tuple(in_file)} in the file, {tuple(in_model)} in the model"
        )
    return model


def _weight_files(path: str, variant: str | None, where: dict[str, Any]) -> list[str]:
    """The safetensors files of a model, one or shards, all of them there.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: the list of shards is damaged.
    """
    name, of_shards = "model.safetensors", INDEX
    if variant is not None:  # as transformers names them
        name, of_shards = f"model.{variant}.safetensors", INDEX.replace(".json", f".{variant}.json")
    index = cached_file(path, of_shards, _raise_exceptions_for_missing_entries=False, **where)
    if not index:
        return [_file(path, name, where)]
    return [_file(path, name, where) for name in shard_names(Path(index), path)]
