"""The mark of a converted model in its `config.json`: by it transformers asks aimc for the model, and refuses to load
it where aimc is not there.

An unknown `quant_method` alone only makes transformers warn and load a digital model. An unknown attention
implementation is an error, before any weight is read, whose message repeats the name: so the name says what to do.
"""

from __future__ import annotations

from typing import Any

QUANT_METHOD = "aimc"
"""The quantisation method that aimc is to transformers."""
REFUSAL = "analog hardware: pip install aimc, then import aimc before loading"
"""The attention implementation that the config of a converted model asks for. Only aimc knows it."""


def write_mark(config: Any) -> None:
    """Mark a model's config. One that another quantisation method has marked stays that method's; then only
    :func:`aimc.from_pretrained` makes the analog model again."""
    if getattr(config, "quantization_config", None) is None:
        config.quantization_config = {"quant_method": QUANT_METHOD}
        config.attn_implementation = REFUSAL


def erase_mark(config: Any) -> None:
    """Undo :func:`write_mark`."""
    if is_marked(config):
        del config.quantization_config
    if getattr(config, "attn_implementation", None) == REFUSAL:
        del config.attn_implementation


def is_marked(config: Any) -> bool:
    """Whether a config asks transformers for aimc."""
    quantization = getattr(config, "quantization_config", None)
    return isinstance(quantization, dict) and quantization.get("quant_method") == QUANT_METHOD


def use_own_attention(model: Any) -> None:
    """Transformers' default in place of the name that only refuses; any other choice stays."""
    if model.config._attn_implementation == REFUSAL:
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
