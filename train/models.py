"""The digital model of a run, and its folder on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import aimc
from aimc.hardware import Hardware
from aimc.models.checkpoint import is_converted
from aimc.models.families import attention_layers
from aimc.static.config import Static
from aimc.static.install import MissingAihwkit
from aimc.static.tiles import has_static

from .errors import RunError
from .pretrained import in_one_pass, is_model_file, load_digital
from .scratch import fresh_config

if TYPE_CHECKING:
    from .schema import ModelConfig, StaticConfig


def digital_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """The pretrained model, or a fresh one of the family.

    Raises:
        RunError: it cannot be loaded, or its sizes do not fit together.
    """
    if config.source is not None:
        return load_digital(config.source)
    try:
        sizes = in_one_pass(fresh_config(config, tokenizer))
    except ValueError as error:
        raise RunError(f"model: {error}") from error
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(sizes)


def require_convertible(model: PreTrainedModel) -> None:
    """Check that the model's attention can go onto arrays at all, before anything is trained.

    Raises:
        RunError: it cannot.
    """
    try:
        attention_layers(model)
    except ValueError as error:
        raise RunError(str(error)) from error


def converted(model: PreTrainedModel, config: Hardware | Static) -> str:
    """:func:`aimc.convert`, in place; returns its report.

    Raises:
        RunError: the model cannot go onto this hardware, or aihwkit is not installed.
    """
    try:
        return str(aimc.convert(model, config))
    except (ValueError, MissingAihwkit) as error:
        raise RunError(str(error)) from error


def rotation_for(model: PreTrainedModel) -> str:
    """The rotation of features that a model's heads have: a Hadamard matrix where their size is a power of two."""
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return "orthogonal" if size & (size - 1) else "hadamard"


def static_from(static: StaticConfig) -> Static:
    """The library's configuration of static tiles."""
    return Static(rpu_config=static.preset, head=static.head, embeddings=static.embeddings)


def load_analog(folder: Path) -> PreTrainedModel:
    """A converted model from its folder, in float32.

    Raises:
        RunError: it cannot be loaded.
    """
    try:
        return aimc.from_pretrained(folder, dtype=torch.float32)
    except (ValueError, OSError, MissingAihwkit) as error:
        raise RunError(str(error)) from error


def digest_of(folder: Path, stage: str) -> str:
    """Which model of a stage stands in a folder, by its weights."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            while part := stream.read(2**24):  # a file may be larger than memory
                digest.update(part)
    return f"{stage}-{digest.hexdigest()[:16]}"


OF_WEIGHTS = (".safetensors", ".gguf", ".bin")
PROBED = 2**20
"""Bytes of a file's beginning and end that tell it from others of its size."""


def digest_of_source(source: Path) -> str:
    """Which weights stand in a file or folder that a model comes from, by the sizes, beginnings and ends of its files:
    read whole at every start, large ones would take a minute."""
    digest = hashlib.sha256()
    files = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.suffix in OF_WEIGHTS)
    for file in files:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            digest.update(f"{file.name} {size}".encode())
            for start in (0, max(size - PROBED, 0)):
                stream.seek(start)
                digest.update(stream.read(PROBED))
    return digest.hexdigest()[:16]


def on_accelerator(model: PreTrainedModel) -> PreTrainedModel:
    """A model that is only measured, moved to the accelerator if there is one; static tiles stay where they are."""
    if has_static(model):
        return model
    return model.to(PartialState().device)  # type: ignore[arg-type]


def load_any(folder: str) -> PreTrainedModel:
    """A digital or converted model, whichever the folder holds, or the digital one of a GGUF or llama2.c file.

    Raises:
        RunError: it cannot be loaded.
    """
    return load_analog(Path(folder)) if is_analog(folder) else load_digital(folder, "checkpoint")


def is_analog(folder: str) -> bool:
    """Whether it is a converted model that :func:`load_any` would load.

    Raises:
        RunError: there is no model, or it is damaged.
    """
    if not (Path(folder) / "config.json").exists():
        if Path(folder).exists() and is_model_file(folder, "checkpoint"):
            return False
        raise RunError(
            f"checkpoint={folder}: no model there (no config.json); give a folder such as checkpoints/shipped/finetuned"
        )
    try:
        return is_converted(folder)
    except ValueError as error:
        raise RunError(f"checkpoint={error}") from error
