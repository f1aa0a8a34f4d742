"""The digital model of a run, and its folder on disk."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import aimc
from aimc.hardware import Hardware
from aimc.models import llama2c
from aimc.models.checkpoint import _hub_answers
from aimc.models.families import attention_layers
from aimc.models.substrates import substrates
from aimc.static.config import Static
from aimc.static.install import MissingAihwkit

from .errors import RunError

if TYPE_CHECKING:
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


def static_from(static: StaticConfig) -> Static:
    """The library's configuration of static tiles."""
    return Static(rpu_config=static.preset, head=static.head, embeddings=static.embeddings)


def onto_tiles(model: PreTrainedModel, static: StaticConfig) -> str:
    """Linear layers onto static tiles, in place; returns the report of :func:`aimc.convert`.

    Raises:
        RunError: the tiles cannot be made, or aihwkit is not installed.
    """
    try:
        return str(aimc.convert(model, static_from(static)))
    except (ValueError, MissingAihwkit) as error:
        raise RunError(str(error)) from error


def context_of(data: DataConfig, model: PretrainedConfig) -> int:
    """Tokens a sequence: `data.context`, or as many as the model has positions.

    Raises:
        RunError: more than that, or neither is known.
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


@cache
def where(source: str) -> dict[str, bool]:
    """The options with which transformers looks for `source`: only in earlier downloads where the hub does not answer.

    It is asked once a command, shortly; the library's own client would try for half a minute, aloud.
    """
    if Path(source).exists():
        return {}
    try:
        return {} if _hub_answers(source) else {"local_files_only": True}
    except FileNotFoundError:  # a path, not a name
        return {"local_files_only": True}


def _not_there(source: str, setting: str, error: Exception) -> RunError:
    if isinstance(error, (OSError, ValueError)) and where(source) and not Path(source).exists():
        return RunError(
            f"{setting}={source}: no model there: no such folder, the hub does not answer, and no earlier download"
            " holds it; check the path or the network"
        )
    reason = next(iter(str(error).splitlines()), "no reason given")
    return RunError(
        f"{setting}={source}: cannot be loaded ({type(error).__name__}: {reason}); check the path or the network"
    )


def config_of(source: str, setting: str = "model.source") -> PretrainedConfig:
    """The config of a digital model, from a folder, the hub or a llama2.c checkpoint.

    Raises:
        RunError: there is none, or it is that of a converted model.
    """
    try:
        checkpoint = llama2c.find_checkpoint(source)
        config = AutoConfig.from_pretrained(source, **where(source)) if checkpoint is None else None
    except Exception as error:  # missing, damaged, no network: the library raises a different kind for each
        raise _not_there(source, setting, error) from error
    if config is None:
        assert checkpoint is not None
        return _of_llama2c(llama2c.load_config, checkpoint, source, setting)
    if is_converted(config.to_dict()):
        raise RunError(
            f"{setting}={source}: a converted model, whose gain-cell arrays or static tiles a digital model has not;"
            " read as one it would lose them without a word, and whatever is compared with it would be wrong; give the"
            " folder of the digital model, such as checkpoints/shipped/digital"
        )
    return config


def _of_llama2c(load: Any, checkpoint: Path, source: str, setting: str) -> Any:
    try:
        return load(checkpoint)
    except Exception as error:  # truncated, or another layout
        raise _not_there(source, setting, error) from error


def is_converted(config: dict[str, Any]) -> bool:
    """Whether a `config.json` tells of gain-cell arrays or static tiles."""
    return any(config.get(substrate.record_key) is not None for substrate in substrates())


def load_digital(source: str, setting: str = "model.source") -> PreTrainedModel:
    """A pretrained causal language model from a folder, the hub or a llama2.c checkpoint, in float32.

    Args:
        source: folder or hub name.
        setting: what the user calls it.

    Raises:
        RunError: it cannot be loaded, or is a converted one.
    """
    config = config_of(source, setting)
    checkpoint = llama2c.find_checkpoint(source)
    if checkpoint is not None:
        return _of_llama2c(llama2c.load_model, checkpoint, source, setting)
    quiet = {"adapter_kwargs": {"local_files_only": True}} if where(source) else {}  # peft would ask, too
    try:
        return AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=torch.float32, **where(source), **quiet
        )
    except Exception as error:  # as above
        raise _not_there(source, setting, error) from error


def load_tokenizer(source: str, setting: str = "model.source") -> PreTrainedTokenizerBase:
    """The tokenizer of a pretrained model.

    Raises:
        RunError: it cannot be loaded.
    """
    checkpoint = llama2c.find_checkpoint(source)
    try:
        if checkpoint is not None:
            return llama2c.load_tokenizer(checkpoint)
        return AutoTokenizer.from_pretrained(source, **where(source))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{setting}={source}: its tokenizer cannot be loaded ({str(error).splitlines()[0]}); give a folder that"
            " holds one, or check the network"
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
        converted = is_converted(json.loads(config_file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise RunError(f"checkpoint={folder}: config.json is damaged ({error}); use another copy") from error
    return load_analog(Path(folder)) if converted else load_digital(folder, "checkpoint")
