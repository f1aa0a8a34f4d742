"""Models in llama.cpp's GGUF files as plain transformers models, weights in float32, with their tokenizers.

The reading is transformers' own (`gguf_file=`), which needs the package `gguf`. What it leaves in the model, a mark of
a quantised model that can be neither saved nor cast, is taken off: weights are dequantised once, and the model is like
any other.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
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

MAGIC = b"GGUF"
INSTALL = "pip install 'aimc[gguf]'"


class MissingGguf(ImportError):
    """A GGUF file is to be read, and the package that knows its layout is not installed."""

    def __init__(self) -> None:
        super().__init__(f"a GGUF file is read by the package gguf, which is not installed; run: {INSTALL}")


def find_gguf(source: str | Path) -> Path | None:
    """The GGUF file that a source means: the file itself, or the only one in a folder without config.json; else None.

    Raises:
        ValueError: a folder with several.
    """
    path = Path(source)
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise ValueError(
            f"{path}: {len(found)} GGUF files ({', '.join(file.name for file in found)}), and a model is one of them;"
            " name the file"
        )
    return found[0] if found else None


def load_config(file: str | Path) -> PretrainedConfig:
    """The architecture in a file's header.

    Raises:
        ValueError: no GGUF file, cut short, or of an architecture that transformers does not read.
        MissingGguf: the package is not installed.
    """
    with _reading(file) as where:
        return _unmarked(AutoConfig.from_pretrained(**where))


def load_model(file: str | Path) -> PreTrainedModel:
    """The causal language model in a file, in float32; raises as :func:`load_config`."""
    with _reading(file) as where:
        read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        # A model of its own: what the loader hangs onto the one that it has read makes it refuse to be saved or cast.
        config = _unmarked(read.config)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        model.tie_weights()
        model.generation_config = read.generation_config
        return model.eval()


def load_tokenizer(file: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a file; raises as :func:`load_config`."""
    with _reading(file) as where:
        return AutoTokenizer.from_pretrained(**where)


def _unmarked(config: PretrainedConfig) -> PretrainedConfig:
    """Without the mark of a quantised model."""
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


@contextmanager
def _reading(file: str | Path) -> Iterator[dict[str, Any]]:
    """Where transformers finds the file; whatever a damaged one raises, on one line."""
    path = Path(file)
    if importlib.util.find_spec("gguf") is None:
        raise MissingGguf
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a GGUF file")
    with path.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{path}: not a GGUF file (it does not begin with GGUF); use another copy")
    try:
        yield {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    except Exception as error:  # the reader has no kind of its own: a cut file ends in whatever comes first
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        what = (
            "transformers does not read this architecture; use a file of another, or the model's safetensors"
            if "not supported" in reason
            else "the file is damaged or cut short; use another copy"
        )
        raise ValueError(f"{path}: cannot be read ({reason}); {what}") from error
