"""GGUF files, llama.cpp's format of (mostly quantised) weights, as plain transformers models with their tokenizers.

transformers reads them; here stands what it does not say. Source of the format: github.com/ggml-org/ggml,
`docs/gguf.md`.
"""

from __future__ import annotations

import copy
import importlib.util
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from aimc.models.hub import quiet_libraries

INSTALL = "pip install 'aimc[gguf]'"
"""What installs all that a GGUF file is read with."""
SUFFIX = ".gguf"
_SCALED_ROTARY = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors by which llama.cpp scales rotary positions, as of Llama 3.1 and Phi-3; see `convert_hf_to_gguf.py` there."""


_DIGITS_APART = ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b")
"""Byte-level vocabularies whose text is cut before and after every digit and then as GPT-2's; see `llama-vocab.cpp`
there."""


class MissingGguf(ImportError):
    """A GGUF file is to be read, and what reads it is not installed."""


class GgufError(ValueError):
    """A GGUF file, or a folder of them, that makes no model."""


@dataclass(frozen=True, slots=True)
class _Header:
    """What stands before a file's weights."""

    architecture: str
    metadata: dict[str, Any]
    tensors: tuple[str, ...]


def find_file(source: str | Path) -> Path | None:
    """The GGUF file that a source means: a `.gguf` file, or the only one in a folder without config.json; else None.

    Raises:
        GgufError: the folder holds several.
    """
    path = Path(source)
    if not path.is_dir():
        return path if path.suffix.lower() == SUFFIX else None
    if (path / "config.json").exists():
        return None
    found = sorted(file for file in path.iterdir() if file.suffix.lower() == SUFFIX)
    if len(found) > 1:
        raise GgufError(
            f"{path}: it holds {len(found)} GGUF files ({', '.join(file.name for file in found)}), so which one is"
            " meant cannot be known; give the path of one file"
        )
    return found[0] if found else None


def load_config(file: str | Path) -> PretrainedConfig:
    """The architecture that a file's metadata describe.

    Raises:
        FileNotFoundError: no such file.
        GgufError: the file is no GGUF, truncated or damaged, or of an architecture that transformers does not read, or
            its rotary positions are scaled, which transformers would drop.
        MissingGguf: the packages that read it are not installed.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, so there is no model to load; give the path of a GGUF file")
    _require_readers(path)
    return copy.deepcopy(_read(path)[1])


def load_model(
    file: str | Path, *, dtype: torch.dtype | str = torch.float32, config: PretrainedConfig | None = None
) -> PreTrainedModel:
    """The causal language model of a file, its weights unpacked: an ordinary dense model, in evaluation.

    It can be trained, converted and saved as any other: nothing of it says that it was a GGUF file.

    Args:
        file: path.
        dtype: of the unpacked weights.
        config: of :func:`load_config`, where it was read before.

    Raises:
        FileNotFoundError, GgufError, MissingGguf: as :func:`load_config`; also where the file lacks weights.
    """
    path = Path(file)
    config = load_config(path) if config is None else config
    from transformers import GgufConfig  # there, or load_config had refused

    try:
        with quiet_libraries():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                config=config,
                dtype=dtype,
                # Otherwise they stay packed where a kernel is found, and the model can be neither trained nor saved.
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
            )
    except Exception as error:  # each architecture and kind of damage raises its own
        raise GgufError(f"{path}: its weights cannot be read ({_told(error)}); use another copy or model") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise GgufError(
            f"{path}: {len(missing)} weights are not in the file (first: {missing[0]}), so they would be random; it is"
            " one of several parts or incomplete, use a whole copy"
        )
    return model


def load_tokenizer(file: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a file.

    Raises:
        FileNotFoundError, GgufError, MissingGguf: as :func:`load_config`; also where the file holds none that
            transformers knows.
    """
    path = Path(file)
    load_config(path)  # whatever is wrong with the file as a whole is told first
    try:
        with quiet_libraries():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # as above
        raise GgufError(
            f"{path}: its tokenizer cannot be read ({_told(error)}); use a file with one, or the model's safetensors"
            " folder"
        ) from error
    backend = tokenizer.backend_tokenizer
    splits_as_gpt2 = isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel)
    if splits_as_gpt2 and _read(path)[0].metadata.get("tokenizer.ggml.pre") in _DIGITS_APART:
        # What transformers takes for a name that it does not know, which joins a space to the digit behind it.
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def _require_readers(path: Path) -> None:
    """Raises :class:`MissingGguf` where one of the packages that transformers needs for it is missing or too old."""
    missing = next((name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        raise MissingGguf(f"{path}: GGUF files are read with {missing}, which is not installed; run: {INSTALL}")
    if not hasattr(transformers, "GgufConfig"):
        raise MissingGguf(
            f"{path}: GGUF files are read with a newer transformers than {transformers.__version__}; run: {INSTALL}"
        )


def _read(path: Path) -> tuple[_Header, PretrainedConfig]:
    """What a file says of its model."""
    state = path.stat()
    return _read_once(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=8)
def _read_once(path: Path, size: int, modified_ns: int) -> tuple[_Header, PretrainedConfig]:
    """Once for a file as it is: with a vocabulary of 50,000 it takes seconds."""
    header = _header(path, size)
    try:
        with quiet_libraries():
            config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # transformers has no kind of error for it
        raise GgufError(
            f"{path}: a GGUF file of the architecture {header.architecture!r}, of which transformers"
            f" {transformers.__version__} makes no model ({_told(error)}); give the model's safetensors folder or hub"
            " name, or try a newer transformers"
        ) from error
    _require_plain_rotary(path, header, config)
    vars(config).pop("_model_name_or_path", None)  # the name in the file, which no other config has
    return header, config


def _header(path: Path, size: int) -> _Header:
    """The file's metadata, without its weights, which must all be there."""
    from transformers.integrations.gguf import GgufHeader, read_gguf_metadata

    with path.open("rb") as start:
        if start.read(4) != b"GGUF":
            raise GgufError(f"{path}: it does not begin as a GGUF file does; it is another format or damaged")
    try:
        metadata, names = read_gguf_metadata(str(path))
    except (ValueError, struct.error, IndexError, OverflowError, MemoryError) as error:
        raise GgufError(
            f"{path}: its header cannot be read ({_told(error)}); the file of {size} bytes is truncated or damaged, use"
            " another copy"
        ) from error
    try:
        known = GgufHeader.from_file(str(path))
    except ValueError:  # a kind of block that only the older of transformers' two readers knows; that one will tell
        return _Header(metadata["general.architecture"], metadata, names)
    needed = max((known.data_start + tensor.offset + tensor.nbytes for tensor in known.tensors), default=0)
    if size < needed:
        raise GgufError(
            f"{path}: its header asks for {needed} bytes, found {size} bytes; the file is truncated, use another copy"
        )
    return _Header(known.architecture, metadata, names)


def _require_plain_rotary(path: Path, header: _Header, config: PretrainedConfig) -> None:
    """Refuse scaled rotary positions that did not arrive in the config: the model would be another one."""
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") != "default":
        return
    scaling = header.metadata.get(f"{header.architecture}.rope.scaling.type", "none")
    found = next((name for name in _SCALED_ROTARY if name in header.tensors), None)
    if found is None and scaling == "none":
        return
    raise GgufError(
        f"{path}: its rotary positions are scaled ({found or scaling}), which transformers drops when it reads a GGUF"
        " file, so the model would be another one; give the model's safetensors folder or hub name"
    )


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')}"
