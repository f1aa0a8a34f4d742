"""A pretrained digital model and its tokenizer, by whatever a user has of it: a folder that transformers wrote, a hub
name, a GGUF file, a llama2.c checkpoint, or a folder that holds one of these."""

from __future__ import annotations

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

from aimc.models import gguf, llama2c


def load_pretrained(source: str | Path, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A digital causal language model in float32, in evaluation mode, and its tokenizer.

    Args:
        source: folder with safetensors, hub name, GGUF file, llama2.c checkpoint, or a folder that holds one of the
            last two.
        options: of transformers' `from_pretrained`, for folders and hub names.

    Raises:
        ValueError: damaged, of an architecture that is not known, or several files where one is meant.
        OSError: nothing there.
        aimc.models.gguf.MissingGguf: a GGUF file, and the package `gguf` is not installed.
    """
    return pretrained_model(source, **options).eval(), pretrained_tokenizer(source, **options)


def pretrained_config(source: str | Path, **options: Any) -> PretrainedConfig:
    """The architecture alone; see :func:`load_pretrained`."""
    if file := gguf.find_gguf(source):
        return gguf.load_config(file)
    if checkpoint := llama2c.find_checkpoint(source):
        return llama2c.load_config(checkpoint)
    return AutoConfig.from_pretrained(str(source), **options)


def pretrained_model(source: str | Path, **options: Any) -> PreTrainedModel:
    """The model alone; see :func:`load_pretrained`."""
    if file := gguf.find_gguf(source):
        return gguf.load_model(file)
    if checkpoint := llama2c.find_checkpoint(source):
        return llama2c.load_model(checkpoint)
    return AutoModelForCausalLM.from_pretrained(str(source), **{"dtype": torch.float32, **options})


def pretrained_tokenizer(source: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer alone; see :func:`load_pretrained`."""
    if file := gguf.find_gguf(source):
        return gguf.load_tokenizer(file)
    if checkpoint := llama2c.find_checkpoint(source):
        return llama2c.load_tokenizer(checkpoint)
    return AutoTokenizer.from_pretrained(str(source), **options)
