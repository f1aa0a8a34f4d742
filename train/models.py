"""The digital model of a run, and its folder on disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import aimc
from aimc.hardware import Hardware
from aimc.models import llama2c
from aimc.models.arrays import CONFIG_KEY
from aimc.models.families import attention_layers
from aimc.static.config import Static
from aimc.static.install import MissingAihwkit
from aimc.static.tiles import STATIC_KEY

from .errors import RunError
from .schema import DataConfig, ModelConfig, StaticConfig


def digital_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """The pretrained model, or a fresh GPT-2 architecture.

    Raises:
        RunError: it cannot be loaded.
    """
    if config.source is not None:
        return load_digital(config.source)
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=config.n_positions,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def require_convertible(model: PreTrainedModel) -> None:
    """Check that the model's attention can go onto arrays at all, before anything is trained.

    Raises:
        RunError: it cannot.
    """
    try:
        attention_layers(model)
    except ValueError as error:
        raise RunError(str(error)) from error


def onto_arrays(model: PreTrainedModel, hardware: Hardware) -> str:
    """:func:`aimc.convert`, in place; returns its report.

    Raises:
        RunError: the model's attention cannot go onto these arrays.
    """
    try:
        return str(aimc.convert(model, hardware))
    except ValueError as error:
        raise RunError(str(error)) from error


def onto_tiles(model: PreTrainedModel, static: StaticConfig) -> str:
    """Linear layers onto static tiles, in place; returns the report of :func:`aimc.convert`.

    Raises:
        RunError: the tiles cannot be made, or aihwkit is not installed.
    """
    try:
        tiles = Static(rpu_config=static.preset, head=static.head, embeddings=static.embeddings)
        return str(aimc.convert(model, None, static=tiles))
    except (ValueError, MissingAihwkit) as error:
        raise RunError(str(error)) from error


def context_of(data: DataConfig, model: PretrainedConfig, stride: int | None) -> int:
    """Tokens a sequence: `data.context`, or as many as the model has positions.

    Raises:
        RunError: more than that, or a stride that would leave tokens out.
    """
    positions = getattr(model, "max_position_embeddings", None)
    context = data.context or positions
    if context is None:
        raise RunError(
            f"data.context=null: a {model.model_type} model names no longest text; set data.context, 256 for example"
        )
    if positions is not None and context > positions:
        raise RunError(
            f"data.context={context}: the model has {positions} positions, so longer sequences cannot be read; set"
            f" data.context={positions} or less"
        )
    if stride is not None and stride > context:
        raise RunError(
            f"stride={stride}: windows of {context} tokens that far apart leave tokens out; set it to {context} or less"
        )
    return context


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, model: PretrainedConfig, source: str) -> None:
    """Check that the model knows every token id that the tokenizer can make.

    Raises:
        RunError: it does not.
    """
    if len(tokenizer) > model.vocab_size:
        raise RunError(
            f"{source}: its tokenizer makes token ids up to {len(tokenizer) - 1}, outside the model's vocabulary of"
            f" {model.vocab_size}; put the model's own tokenizer beside it"
        )


def load_digital(source: str) -> PreTrainedModel:
    """A pretrained causal language model from a folder, the hub or a llama2.c checkpoint, in float32.

    Raises:
        RunError: it cannot be loaded.
    """
    checkpoint = llama2c.find_checkpoint(source)
    try:
        if checkpoint is not None:
            return llama2c.load_model(checkpoint)
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    except Exception as error:  # missing, truncated, no network: the library raises a different kind for each
        raise RunError(
            f"model.source={source}: cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]}); check the"
            " path or the network"
        ) from error


def load_analog(folder: Path) -> PreTrainedModel:
    """A converted model from its folder, in float32.

    Raises:
        RunError: it cannot be loaded.
    """
    try:
        return aimc.from_pretrained(folder, dtype=torch.float32)
    except (ValueError, OSError, MissingAihwkit) as error:
        raise RunError(str(error)) from error


def load_any(folder: str) -> PreTrainedModel:
    """A digital or converted model, whichever the folder holds.

    Raises:
        RunError: it cannot be loaded.
    """
    config_file = Path(folder) / "config.json"
    if not config_file.exists():
        raise RunError(
            f"checkpoint={folder}: no model there (no config.json); give a folder such as checkpoints/shipped/finetuned"
        )
    try:
        converted = bool({CONFIG_KEY, STATIC_KEY} & json.loads(config_file.read_text(encoding="utf-8")).keys())
    except ValueError as error:
        raise RunError(f"checkpoint={folder}: config.json is damaged ({error}); use another copy") from error
    return load_analog(Path(folder)) if converted else load_digital(folder)
