"""A pretrained digital model by its source, as `aimc.models.pretrained` reads it: its config, its weights, its
tokenizer, and every failure on one line with the setting's name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from aimc.models import gguf, mamba, pretrained
from aimc.models.checkpoint import is_converted
from aimc.models.hub import hub_answers
from aimc.models.manifest import Damaged

from .errors import RunError
from .fetch import how_to_get


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
        config = pretrained.load_config(source, **where(source))
    if is_converted(config):
        raise RunError(
            f"{setting}={source}: a converted model, whose gain-cell arrays or static tiles a digital model has not;"
            " read as one it would lose them without a word, and whatever is compared with it would be wrong; give the"
            " folder of the digital model, such as checkpoints/shipped/digital"
        )
    return config


def load_digital(source: str, setting: str = "model.source") -> PreTrainedModel:
    """A pretrained causal language model, in float32, whose MLPs' activation is computed in one pass.

    Args:
        source: as of :func:`aimc.load_pretrained`.
        setting: what the user calls it.

    Raises:
        RunError: it cannot be loaded, or is a converted one.
    """
    config = in_one_pass(config_of(source, setting))
    with _told(source, setting):
        return pretrained.load_pretrained(source, config=config, **where(source))


def in_one_pass(config: PretrainedConfig) -> PretrainedConfig:
    """A config, in place, whose activation is GPT-2's as one operation of PyTorch's, where it was the same function as
    transformers writes it out, in eight passes over a model's widest tensors."""
    for name in ("activation_function", "hidden_act"):
        if getattr(config, name, None) == "gelu_new":
            setattr(config, name, "gelu_pytorch_tanh")
    return config


def is_model_file(source: str, setting: str) -> bool:
    """Whether a source is a single file, GGUF or llama2.c, or a folder that holds one.

    Raises:
        RunError: a folder that holds several.
    """
    with _told(source, setting):
        return pretrained.find_model_file(source) is not None


def vocabulary_of(source: str, setting: str = "model.source") -> Vocabulary:
    """The tokenizer of a pretrained model.

    Raises:
        RunError: it cannot be loaded.
    """
    try:
        file = pretrained.find_model_file(source)
        tokenizer = pretrained.load_tokenizer(source, **where(source))
    except (gguf.GgufError, gguf.MissingGguf, mamba.RawMamba, Damaged) as error:
        raise RunError(f"{setting}={error}") from error
    except (OSError, ValueError) as error:
        raise RunError(
            f"{setting}={source}: its tokenizer cannot be loaded ({str(error).splitlines()[0]}); give a folder that"
            " holds one, or check the network"
        ) from error
    return Vocabulary(tokenizer, _digest(source, file, tokenizer))


def _digest(source: str, file: Path | None, tokenizer: PreTrainedTokenizerBase) -> str | list[str] | None:
    """Of the tokenizer's own file, or, where it is inside a file of gigabytes, of what was read from that."""
    if file is None:
        own = Path(source) / "tokenizer.json"
        return _sha256(own.read_bytes()) if own.exists() else None
    if file.suffix.lower() != gguf.SUFFIX:
        return [_sha256(part.read_bytes()) for part in sorted(file.parent.glob("tok*.bin"))]
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return _sha256(tokenizer.backend_tokenizer.to_str().encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@cache
def where(source: str) -> dict[str, Any]:
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
        yield
    except (gguf.GgufError, gguf.MissingGguf, mamba.RawMamba, Damaged) as error:  # these say file and remedy
        raise RunError(f"{setting}={error}") from error
    except Exception as error:
        if not Path(source).exists() and where(source):
            raise RunError(
                f"{setting}={source}: no model there: no such folder, the hub does not answer, and no earlier download"
                f" holds it; {how_to_get(source) or 'check the path or the network'}"
            ) from error
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise RunError(
            f"{setting}={source}: cannot be loaded ({type(error).__name__}: {reason}); check the path or the network"
        ) from error
