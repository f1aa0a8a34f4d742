"""A pretrained digital model by its source: a folder, a hub name, a GGUF file or a llama2.c checkpoint. Its config, its
weights, its tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from aimc.models import llama2c
from aimc.models.checkpoint import is_converted
from aimc.models.gguf import find_gguf
from aimc.models.hub import hub_answers, quiet_libraries
from aimc.models.pretrained import pretrained_config, pretrained_model, pretrained_tokenizer

from .errors import RunError


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A pretrained model's tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    digest: str | list[str] | None
    """What tells it from others of the same name; None: nothing but the name is known."""


def config_of(source: str, setting: str = "model.source") -> PretrainedConfig:
    """The config of a digital model.

    Raises:
        RunError: there is none, or it is that of a converted model.
    """
    with _told(source, setting):
        config = pretrained_config(source, **where(source))
    if is_converted(config):
        raise RunError(
            f"{setting}={source}: a converted model, whose gain-cell arrays or static tiles a digital model has not;"
            " read as one it would lose them without a word, and whatever is compared with it would be wrong; give the"
            " folder of the digital model, such as checkpoints/shipped/digital"
        )
    return config


def load_digital(source: str, setting: str = "model.source") -> PreTrainedModel:
    """A pretrained causal language model, in float32.

    Args:
        source: folder, hub name, GGUF file or llama2.c checkpoint.
        setting: what the user calls it.

    Raises:
        RunError: it cannot be loaded, or is a converted one.
    """
    config = config_of(source, setting)
    quiet = {"adapter_kwargs": {"local_files_only": True}} if where(source) else {}  # peft would ask, too
    with _told(source, setting):
        return pretrained_model(source, config=config, **where(source), **quiet)


def vocabulary_of(source: str, setting: str = "model.source") -> Vocabulary:
    """The tokenizer of a pretrained model.

    Raises:
        RunError: it cannot be loaded.
    """
    try:
        checkpoint = llama2c.find_checkpoint(source)
        if checkpoint is not None:
            files = sorted(checkpoint.parent.glob("tok*.bin"))
            return Vocabulary(llama2c.load_tokenizer(checkpoint), [_sha256(file) for file in files])
        tokenizer = pretrained_tokenizer(source, **where(source))
    except (OSError, ValueError, ImportError) as error:
        raise RunError(
            f"{setting}={source}: its tokenizer cannot be loaded ({str(error).splitlines()[0]}); give a folder that"
            " holds one, or check the network"
        ) from error
    file = find_gguf(source) or Path(source) / "tokenizer.json"
    return Vocabulary(tokenizer, _sha256(file) if file.exists() else None)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@cache
def where(source: str) -> dict[str, bool]:
    """The options with which transformers looks for `source`: only in earlier downloads where the hub does not answer.

    It is asked once a command, shortly; the library's own client would try for half a minute, aloud.
    """
    if Path(source).exists():
        return {}
    try:
        return {} if hub_answers(source) else {"local_files_only": True}
    except FileNotFoundError:  # a path, not a name
        return {"local_files_only": True}


@contextmanager
def _told(source: str, setting: str) -> Iterator[None]:
    """Whatever goes wrong with a source on one line: missing, damaged, no network; the library raises a different kind
    for each."""
    try:
        with quiet_libraries():
            yield
    except Exception as error:
        if not Path(source).exists() and where(source):
            raise RunError(
                f"{setting}={source}: no model there: no such folder, the hub does not answer, and no earlier download"
                " holds it; check the path or the network"
            ) from error
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise RunError(
            f"{setting}={source}: cannot be loaded ({type(error).__name__}: {reason}); check the path or the network"
        ) from error
