"""Architectures that train from scratch: how the sizes of `conf/model/` become a config of each family.

One row a family. Importing this is light; transformers comes with the first config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from .schema import ModelConfig


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of model that `model.family` names."""

    build: Callable[[ModelConfig, Mapping[str, Any]], PretrainedConfig]
    """Its config from the sizes, and from what the tokenizer says (vocabulary, special tokens)."""
    uses: tuple[str, ...] = ()
    """Fields of :class:`train.schema.ModelConfig` beyond those of every family that it has a use for."""


def _gpt2(sizes: ModelConfig, vocabulary: Mapping[str, Any]) -> PretrainedConfig:
    from transformers import GPT2Config

    return GPT2Config(
        **vocabulary,
        n_positions=sizes.n_positions,
        n_embd=sizes.n_embd,
        n_layer=sizes.n_layer,
        n_head=sizes.n_head,
        n_inner=sizes.n_inner,
        resid_pdrop=sizes.dropout,
        embd_pdrop=sizes.dropout,
        attn_pdrop=0.0,
    )


def _h3(sizes: ModelConfig, vocabulary: Mapping[str, Any], *, gated: bool = True) -> PretrainedConfig:
    from aimc.models.h3.config import H3Config

    usual = [sizes.n_layer // 2] if gated else []  # the middle, as in the published model of 12 layers
    return H3Config(
        **vocabulary,
        gated=gated,
        max_position_embeddings=sizes.n_positions,
        hidden_size=sizes.n_embd,
        num_hidden_layers=sizes.n_layer,
        num_attention_heads=sizes.n_head,
        intermediate_size=sizes.n_inner,
        attention_layers=usual if sizes.attention_layers is None else sizes.attention_layers,
        state_size=64 if sizes.n_state is None else sizes.n_state,
        resid_pdrop=sizes.dropout,
        embd_pdrop=sizes.dropout,
    )


def _s4d(sizes: ModelConfig, vocabulary: Mapping[str, Any]) -> PretrainedConfig:
    return _h3(sizes, vocabulary, gated=False)


def _stripedhyena(sizes: ModelConfig, vocabulary: Mapping[str, Any]) -> PretrainedConfig:
    from aimc.models.striped_hyena.config import StripedHyenaConfig

    return StripedHyenaConfig(
        **vocabulary,
        max_seqlen=sizes.n_positions,
        hidden_size=sizes.n_embd,
        num_layers=sizes.n_layer,
        num_attention_heads=sizes.n_head,
        proj_groups=sizes.n_head // (sizes.n_kv_head or sizes.n_head),
        inner_mlp_size=sizes.n_inner or 64 * -(-8 * sizes.n_embd // (3 * 64)),  # 8/3 of the width, as published
        attn_layer_idxs=sizes.attention_layers,
        state_size=2 if sizes.n_state is None else sizes.n_state,
        max_pole_radius=1.0,
        rotary_emb_base=10000.0,  # the published 500,000 is for texts of 32,768 tokens
        tie_embeddings=True,  # as GPT-2 and H3, whose sizes are compared with it
        dropout=sizes.dropout,
    )


def _mamba(sizes: ModelConfig, vocabulary: Mapping[str, Any]) -> PretrainedConfig:
    from transformers import MambaConfig

    config = MambaConfig(
        **vocabulary,
        pad_token_id=vocabulary["eos_token_id"],
        hidden_size=sizes.n_embd,
        num_hidden_layers=sizes.n_layer,
        state_size=16 if sizes.n_state is None else sizes.n_state,
        initializer_range=0.02,  # of the embedding, which is the head too: with 0.1 a fresh model guesses unevenly
    )
    config.max_position_embeddings = sizes.n_positions  # not Mamba's own: it says on what texts it was trained
    return config


def _gsa(sizes: ModelConfig, vocabulary: Mapping[str, Any]) -> PretrainedConfig:
    from aimc.models.gsa.config import GSAConfig

    return GSAConfig(
        **vocabulary,
        pad_token_id=vocabulary["eos_token_id"],
        max_position_embeddings=sizes.n_positions,
        hidden_size=sizes.n_embd,
        num_hidden_layers=sizes.n_layer,
        num_attention_heads=sizes.n_head,
        num_slots=sizes.n_slots or 32,
        intermediate_size=sizes.n_inner,
    )


FAMILIES: dict[str, Family] = {
    "gpt2": Family(_gpt2, uses=("n_inner",)),
    "h3": Family(_h3, uses=("n_inner", "n_state", "attention_layers")),
    "s4d": Family(_s4d, uses=("n_inner", "n_state")),
    "stripedhyena": Family(_stripedhyena, uses=("n_inner", "n_state", "attention_layers", "n_kv_head")),
    "mamba": Family(_mamba, uses=("n_state",)),
    "gsa": Family(_gsa, uses=("n_inner", "n_slots")),
}
"""By name; every one is known to `AutoModelForCausalLM`."""
OPTIONAL = ("n_inner", "n_kv_head", "n_state", "n_slots", "attention_layers")
"""Fields that some families use; null in those that do not."""


def fresh_config(sizes: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The config of a model to train from scratch.

    Raises:
        ValueError: sizes that the family's config refuses.
    """
    vocabulary = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return FAMILIES[sizes.family].build(sizes, vocabulary)
