"""How gain cells meet Hugging Face: the attention and mask functions, and loading a converted model from its folder.

Any layer whose attention goes through transformers' attention interface calls :func:`_attention` when the model's
implementation is `gain_cell`; that calls the child module `gain_cell` of the layer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedModel
from transformers import logging as hf_logging
from transformers.utils import cached_file

from aimc.config import ConfigError, Hardware
from aimc.nn.attention import GainCellAttention

IMPLEMENTATION = "gain_cell"
"""Name of the attention implementation, and of the child module that it calls."""
CONFIG_KEY = "aimc"
"""Where the hardware stands in `config.json`."""
_UNSUPPORTED = ("softcap", "s_aux", "sinks", "position_bias", "alibi")
"""Keywords of the attention interface that would change the result and that the arrays cannot honour."""


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """query `[B, H, T, D]`, key and value `[B, H_kv, T, D]`, mask `[B, T]` with 1 for tokens; returns `[B, T, H, D]`.

    `scaling` is part of the query scaler and attention dropout has no counterpart in the arrays; both are left out.
    """
    offending = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if offending:
        raise NotImplementedError(
            f"the gain-cell arrays cannot do {', '.join(offending)}; leave this layer digital or choose another model"
        )
    if key.shape[2] != query.shape[2]:
        raise NotImplementedError(
            f"{query.shape[2]} queries against {key.shape[2]} keys: a digital key/value cache would bypass the arrays' cells; call with use_cache=False"
        )
    if attention_mask is not None and attention_mask.ndim != 2:
        raise NotImplementedError(
            "the arrays attend causally within their window; give a 2-D attention_mask [batch, tokens] instead of a prepared one"
        )
    padding = None if attention_mask is None else ~attention_mask.bool()
    arrays = module.get_submodule(IMPLEMENTATION)
    out = arrays(query, key, value, key_padding=padding)
    return out.transpose(1, 2), None


def _mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The user's 2-D mask, unchanged: causality and window belong to the operator."""
    return attention_mask


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)


def gain_cell_layers(model: nn.Module) -> Iterator[tuple[str, GainCellAttention]]:
    """Name and module of every converted layer, in order."""
    for name, module in model.named_modules():
        if isinstance(module, GainCellAttention):
            yield name, module


def is_digital(model: nn.Module) -> bool:
    """Whether no layer of the model runs on arrays."""
    return next(gain_cell_layers(model), None) is None


def hardware_of(model: PreTrainedModel) -> Hardware:
    """The hardware that a converted model runs on.

    Raises:
        ValueError: the model is not converted.
    """
    for _, layer in gain_cell_layers(model):
        return layer.hardware
    raise ValueError(f"this {type(model).__name__} has no gain-cell layer; call aimc.convert(model, hardware) first")


def set_hardware(model: PreTrainedModel, hardware: Hardware) -> None:
    """Put a converted model on other hardware, keeping its weights and scalers.

    Raises:
        ValueError: the model is not converted.
    """
    hardware_of(model)
    for _, layer in gain_cell_layers(model):
        layer.hardware = hardware
    setattr(model.config, CONFIG_KEY, hardware.to_dict())


def set_chip(model: PreTrainedModel, seed: int | None) -> None:
    """Choose the chip whose mismatch and column errors the model meets; None: chip 0."""
    for _, layer in gain_cell_layers(model):
        layer.chip_seed = seed


def set_generator(model: PreTrainedModel, generator: torch.Generator | None) -> None:
    """Choose the source of write and read noise; None: torch's global generator."""
    for _, layer in gain_cell_layers(model):
        layer.generator = generator


def from_pretrained(path: str | Path, **kwargs: Any) -> PreTrainedModel:
    """A converted model from the folder (or hub repository) that `save_pretrained` wrote: weights, scalers and hardware.

    Args:
        path: folder or hub name.
        kwargs: passed to transformers' `from_pretrained`.

    Raises:
        FileNotFoundError: no such folder, or files are missing in it.
        ValueError: it holds a plain digital model, is truncated, or was written for another hardware version.
    """
    from aimc.conversion import convert

    path = str(path)
    try:
        config_file = cached_file(path, "config.json")
    except OSError as error:
        raise FileNotFoundError(
            f"{path}: no model there (no config.json); give a folder written by save_pretrained, or a hub name and a network"
        ) from error
    data = json.loads(Path(str(config_file)).read_text(encoding="utf-8")).get(CONFIG_KEY)
    if data is None:
        raise ValueError(
            f"{path}: a digital model, without gain-cell hardware in its config.json; load it with transformers and call aimc.convert"
        )
    try:
        hardware = Hardware.from_dict(data)
    except ConfigError as error:
        raise ValueError(f"{path}/config.json: {error}") from error
    kwargs.setdefault("dtype", torch.float32)
    kwargs.setdefault("attn_implementation", "sdpa")
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # it would warn that the scalers are unexpected: they are loaded below
    try:
        model = AutoModelForCausalLM.from_pretrained(path, **kwargs)
        scalers = _scaler_tensors(path)
    except Exception as error:
        raise ValueError(
            f"{path}: its weights cannot be read ({type(error).__name__}: {str(error).splitlines()[0]}); the folder is incomplete or damaged, use another copy"
        ) from error
    finally:
        hf_logging.set_verbosity(verbosity)
    convert(model, hardware)
    expected = {name for name, _ in model.named_parameters() if f".{IMPLEMENTATION}." in name}
    if expected != set(scalers):
        missing = sorted(expected ^ set(scalers))
        raise ValueError(
            f"{path}: the scalers do not fit the model (first: {missing[0]}); the folder is incomplete or from another version, convert again"
        )
    model.load_state_dict(scalers, strict=False)  # exactly the scalers, checked above; the other weights are in place
    return model


def _scaler_tensors(path: str) -> dict[str, Tensor]:
    """The tensors of the scalers, from one safetensors file or from shards."""
    from safetensors import safe_open

    index = cached_file(path, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    names = sorted(set(json.loads(Path(index).read_text())["weight_map"].values())) if index else ["model.safetensors"]
    scalers = {}
    for name in names:
        with safe_open(cached_file(path, name), framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a dict)
                if f".{IMPLEMENTATION}." in key:
                    scalers[key] = tensors.get_tensor(key)
    return scalers
