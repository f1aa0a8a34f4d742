"""A tiny random model of every tested family."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from aimc.models import families

FAMILIES = list(families.FAMILIES)
VOCABULARY, POSITIONS, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_SIZE = 64, 32, 32, 2, 4, 2, 8
SLIDING_WINDOW = 8
"""Tokens that Gemma 2's first layer sees."""
ACTIVATION_GAIN = 12.0
"""On the attention's projections: at their initial size scores are almost equal, and the softmax a mean."""

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_POSITIONS = {"max_position_embeddings": POSITIONS}
_GROUPED = _COMMON | _POSITIONS | {"num_key_value_heads": KV_HEADS, "intermediate_size": 48, "pad_token_id": None}
_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_positions": POSITIONS,
        "n_embd": HIDDEN,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "gpt_neox": _COMMON | _POSITIONS | {"intermediate_size": 48},
    "opt": _COMMON | _POSITIONS | {"ffn_dim": 48, "word_embed_proj_dim": HIDDEN, "dropout": 0.0, "pad_token_id": 1},
    "llama": _GROUPED,
    "mistral": _GROUPED | {"sliding_window": None},
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": HEAD_SIZE},
    "gemma2": _GROUPED
    | {
        "head_dim": HEAD_SIZE,
        "query_pre_attn_scalar": HEAD_SIZE,
        "attn_logit_softcapping": None,
        "sliding_window": SLIDING_WINDOW,
    },
    "phi3": _GROUPED | {"sliding_window": None},
}
_PROJECTIONS = (
    "c_attn",
    "c_proj",
    "query_key_value",
    "dense.",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "out_proj",
    "qkv_proj",
)


def tiny_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Two layers of 4 heads (2 K/V heads where the family groups them) of 8 features, 64 tokens, no dropout, in
    evaluation.

    Args:
        family: one of :data:`FAMILIES`, or another model type together with all its sizes in `overrides`.
        overrides: fields of its config.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **(_SIZES.get(family, {}) | overrides))
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=overrides.get("attn_implementation"), dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and any(projection in name for projection in _PROJECTIONS) and "mlp" not in name:
                parameter.mul_(ACTIVATION_GAIN)
    return model


def ids(seed: int = 3, batch: int = 2, length: int = POSITIONS) -> torch.Tensor:
    """Random tokens `[batch, length]`, none of them special."""
    return torch.randint(2, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def n_kv_heads(family: str) -> int:
    """K/V heads of :func:`tiny_model`."""
    return _SIZES[family].get("num_key_value_heads", HEADS)
