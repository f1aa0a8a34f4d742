"""A digital model by its source: a folder of safetensors, a GGUF file, a llama2.c checkpoint, or a name on the hub."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from aimc.models import gguf, llama2c, mamba
from aimc.models.checkpoint import CACHE_OPTIONS, is_converted
from aimc.models.hub import place_of, quiet_libraries, require_reachable
from aimc.models.manifest import CONFIG, TOKENIZER, WEIGHTS, require_intact
from aimc.models.trust import (
    naming_config,
    require_no_adapter,
    require_plain_names,
    require_plain_weights,
    require_possible_sizes,
    say_code_is_ignored,
)


def load_pretrained(
    source: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    config: PretrainedConfig | None = None,
    **hub: Any,
) -> PreTrainedModel:
    """A pretrained causal language model as an ordinary digital transformers model, ready for :func:`aimc.convert`.

    Args:
        source: one of

            - a folder that `save_pretrained` wrote,
            - a `.gguf` file, or a folder that holds one and no config.json (`pip install 'aimc[gguf]'`); its weights
              are unpacked, so that it trains, converts and saves as any other model,
            - a llama2.c `.bin` checkpoint, or a folder that holds one,
            - a hub name, of a repository with safetensors.
        dtype: of the weights, float32 unless given, in which the arrays are emulated; "auto": as they were saved.
        config: of :func:`load_config`, where it was read before.
        hub: where on the hub or in its cache, as in transformers' `from_pretrained` (`revision`, `cache_dir`, `token`,
            `local_files_only`, …).

    Raises:
        FileNotFoundError: nothing is there, or there is no network to ask the hub.
        ValueError: a converted model, which loses its arrays as a digital one; weights are missing; Mamba in the
            layout of `mamba_ssm`; a file is not as the folder's manifest says
            (:class:`aimc.models.manifest.Damaged`); or a GGUF
            (:class:`aimc.models.gguf.GgufError`) or llama2.c file is damaged or of an unknown kind.
        OSError: as transformers raises it, of a damaged folder.
        aimc.models.gguf.MissingGguf: what reads GGUF files is not installed.
    """
    options = _options(source, hub)
    place = place_of(source, options)
    require_intact(place, *CONFIG, *WEIGHTS)
    require_plain_names(place)
    config = load_config(source, **options) if config is None else config
    if is_converted(config):
        raise ValueError(
            f"{source}: a converted model, which would lose its arrays or tiles as a digital one; load it with"
            " aimc.from_pretrained"
        )
    if (checkpoint := llama2c.find_checkpoint(source)) is not None:
        model: Any = llama2c.load_model(checkpoint)
        return model if dtype == "auto" else model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    if (file := gguf.find_file(source)) is not None:
        return gguf.load_model(file, dtype=dtype, config=config)
    if options.get("local_files_only"):  # where peft is installed, transformers asks for an adapter, too
        options.setdefault("adapter_kwargs", {"local_files_only": True})
    with quiet_libraries():
        # Tensors of another shape are let through, and refused below by name.
        told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, config=config, dtype=dtype, **{**options, **told}
            )
        except (ValueError, KeyError, ZeroDivisionError, OverflowError) as error:  # sizes that do not go together
            with naming_config(source):
                raise error
    model, info = loaded
    require_no_adapter(model, source)
    if other := sorted(info["mismatched_keys"]):
        name, in_file, in_model = other[0]
        raise ValueError(
            f"{source}: {name} is {tuple(in_file)} in the file and {tuple(in_model)} in the model that its config.json"
            " describes, so it would be random; give the config that belongs to the weights"
        )
    if unused := sorted(info["unexpected_keys"]):
        warnings.warn(
            f"{source}: {len(unused)} weights of the file have no place in the model that its config.json describes"
            f" (first: {unused[0]}), and are left out",
            stacklevel=2,
        )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{source}: {len(missing)} weights are not in the file (first: {missing[0]}), so they would be random; give"
            " a whole causal language model"
        )
    return model


def load_tokenizer(source: str | Path, **hub: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a source of :func:`load_pretrained`.

    Raises:
        FileNotFoundError, ValueError, OSError, aimc.models.gguf.MissingGguf: as there, of the tokenizer.
    """
    if (found := _file_of(source)) is not None:
        reader, file = found
        return reader.load_tokenizer(file)
    options = _options(source, hub)
    require_intact(place_of(source, options), *TOKENIZER)
    with quiet_libraries():
        return AutoTokenizer.from_pretrained(source, **options)


def load_config(source: str | Path, **hub: Any) -> PretrainedConfig:
    """The config of a source of :func:`load_pretrained`; a converted model's, too.

    Raises:
        FileNotFoundError, ValueError, OSError, aimc.models.gguf.MissingGguf: as there, of the config.
    """
    if (found := _file_of(source)) is not None:
        reader, file = found
        return reader.load_config(file)
    options = _options(source, hub)
    place = place_of(source, options)
    require_intact(place, *CONFIG)
    with quiet_libraries(), naming_config(source):
        if (file := Path(place, "config.json")).is_file():  # before anything is made of its numbers
            require_possible_sizes(_object_in(file), source)
        config = AutoConfig.from_pretrained(source, **options)
        require_possible_sizes(config, source)
        require_plain_weights(config, source)
    if not options["trust_remote_code"]:
        say_code_is_ignored(config, source)
    return config


def _object_in(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, which transformers tells."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def find_model_file(source: str | Path) -> Path | None:
    """The single file, GGUF or llama2.c, that a source means; None: it is a folder of transformers, or a hub name.

    Raises:
        aimc.models.gguf.GgufError: a folder that holds several GGUF files.
    """
    found = _file_of(source)
    return None if found is None else found[1]


def _file_of(source: str | Path) -> tuple[Any, Path] | None:
    """The module that reads the single file which a source means, and the file; None: there is no such file."""
    if (checkpoint := llama2c.find_checkpoint(source)) is not None:
        return llama2c, checkpoint
    file = gguf.find_file(source)
    return None if file is None else (gguf, file)


def _options(source: str | Path, hub: dict[str, Any]) -> dict[str, Any]:
    """The options with which transformers looks for a source: in earlier downloads only, where the hub does not
    answer. Nobody looks for what it cannot read."""
    hub.setdefault("trust_remote_code", False)  # or transformers asks at the terminal
    mamba.refuse_raw(source)
    if find_model_file(source) is not None or Path(source).exists() or hub.get("local_files_only"):
        return dict(hub)
    cache = {name: hub[name] for name in CACHE_OPTIONS if hub.get(name)}
    return dict(hub) if require_reachable(source, **cache) else {**hub, "local_files_only": True}
