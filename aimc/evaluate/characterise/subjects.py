"""The models that are characterised: by a name of this table, a model type with its sizes, or a checkpoint.

Cost does not depend on what the weights are, so a model is built from its config with random ones, and says so; then it
may also be asked for more positions than it was trained for. A checkpoint is taken as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

RANDOM, TRAINED = "random", "checkpoint"
_TINY: dict[str, Any] = {"vocab_size": 2048, "hidden_size": 128, "num_hidden_layers": 4}
_TINY_MAMBA2: dict[str, Any] = {"num_heads": 8, "head_dim": 32, "n_groups": 1, "state_size": 64}
_TINY_HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256}
TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2_tiny": ("gpt2", {"vocab_size": 2048, "n_embd": 128, "n_layer": 4, "n_head": 4}),
    "mamba_tiny": ("mamba", {**_TINY, "num_hidden_layers": 7}),
    "mamba2_tiny": ("mamba2", {**_TINY, **_TINY_MAMBA2, "num_hidden_layers": 7}),
    "lfm2_tiny": ("lfm2", {**_TINY, **_TINY_HEADS, "full_attn_idxs": [1, 3]}),
    "falcon_h1_tiny": (
        "falcon_h1",
        {**_TINY, **_TINY_HEADS, "mamba_d_ssm": 256, "mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 64},
    ),
    "gpt2": ("gpt2", {}),
    "mamba_130m": ("mamba", {"vocab_size": 50280, "hidden_size": 768, "num_hidden_layers": 24}),
    "mamba2_130m": (
        "mamba2",
        {
            **{"vocab_size": 50288, "hidden_size": 768, "num_hidden_layers": 24, "num_heads": 24, "head_dim": 64},
            **{"n_groups": 1, "state_size": 128, "tie_word_embeddings": True},
        },
    ),
}
"""Name to model type and sizes. The tiny ones have about as many parameters as `model=tiny` (1.1 M)."""
_POSITIONS = ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len", "seq_length")
_ENDS = ("gpt2", "opt", "gpt_neo", "gpt_bigcode", "h3", "stripedhyena")
"""Model types that read no longer text at all: their table of positions ends, or they refuse it."""


class UnknownModel(ValueError):
    """A name that is no model here."""


@dataclass(slots=True, kw_only=True)
class Subject:
    """One model to be built."""

    name: str
    config: PretrainedConfig
    load: Callable[[], PreTrainedModel] | None = None
    """What reads its checkpoint; None: random weights."""

    @property
    def weights(self) -> str:
        """`random` or `checkpoint`."""
        return RANDOM if self.load is None else TRAINED

    @property
    def longest(self) -> int | None:
        """Tokens that it can read at most; None: as many as there are."""
        positions = next((n for name in _POSITIONS if (n := getattr(self.config, name, None))), None)
        return positions if self.load is not None and self.config.model_type in _ENDS else None

    def build(self, *, longest: int, device: str, dtype: torch.dtype, seed: int) -> PreTrainedModel:
        """The model, ready to generate.

        Args:
            longest: tokens that it will be given, the generated ones included; a model with random weights gets as many
                positions.
            device: `cpu` or `cuda`.
            dtype: of its weights.
            seed: of random weights.
        """
        if self.load is not None:
            model = self.load()
        else:
            for name in _POSITIONS:
                if (positions := getattr(self.config, name, None)) is not None and positions < longest:
                    setattr(self.config, name, longest)
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(self.config)
        model.generation_config.eos_token_id = None  # so that it never stops early
        moved: Any = model
        return moved.to(device=device, dtype=dtype).eval()


def subject(name: str) -> Subject:
    """A model by name.

    Args:
        name: of :data:`TABLE`; a model type that transformers or aimc knows, with fields of its config behind a colon
            (`h3:hidden_size=128,num_hidden_layers=4`); or a folder or hub name of a checkpoint.

    Raises:
        UnknownModel: none of these, or fields that make no config.
    """
    if name in TABLE:
        kind, sizes = TABLE[name]
        return Subject(name=name, config=_config(name, kind, sizes))
    if re.fullmatch(r"\w+(:[\w.]+=[^,]+(,[\w.]+=[^,]+)*)?", name) and not Path(name).exists():
        kind, _, fields = name.partition(":")
        return Subject(name=name, config=_config(name, kind, _fields(fields)))
    return checkpoint(name)


def checkpoint(name: str, load: Callable[[], PreTrainedModel] | None = None) -> Subject:
    """A trained model.

    Args:
        name: folder or hub name.
        load: what reads it; None: transformers' own loader.

    Raises:
        UnknownModel: it cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise UnknownModel(
            f"models: {name}: neither a name of {', '.join(TABLE)}, nor a model type, nor a checkpoint that can be read"
            f" ({str(error).splitlines()[0]}); give one of these"
        ) from error
    return Subject(name=name, config=config, load=load or (lambda: AutoModelForCausalLM.from_pretrained(name)))


def of_config(name: str, config: PretrainedConfig) -> Subject:
    """A model with random weights from a config that is at hand."""
    return Subject(name=name, config=config)


def _config(name: str, kind: str, sizes: dict[str, Any]) -> PretrainedConfig:
    _register()
    try:
        return AutoConfig.for_model(kind, **sizes)
    except ValueError as error:
        raise UnknownModel(
            f"models: {name}: {kind!r} is no name of {', '.join(TABLE)} and no model type of this transformers"
            f" ({str(error).splitlines()[0][:80]}…); name one of these, or a folder"
        ) from error
    except TypeError as error:
        raise UnknownModel(
            f"models: {name}: the config of {kind} refuses its fields ({error}); correct them"
        ) from error


def _register() -> None:
    """Let transformers know the architectures of aimc: its models register themselves when they are imported."""
    import aimc.models  # noqa: F401


def _fields(text: str) -> dict[str, Any]:
    """`a=1,b=x` as a mapping, numbers as numbers."""
    found: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, _, value = item.partition("=")
        found[key] = _number(value)
    return found


def _number(text: str) -> Any:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None, "null": None}.get(text.lower(), text)
