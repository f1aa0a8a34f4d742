"""The models that are trained from scratch, by the name of their family: one function each, all of the same sizes.

`model.family` chooses; what a family does not have (heads of Mamba) it does not read. Each imports what it needs when
it is called, so that the schema of the configs knows the names without the models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .schema import ModelConfig

Maker = Callable[["ModelConfig", dict[str, Any]], "PreTrainedModel"]
"""A fresh model from the sizes of a run, and from what its config takes of the tokenizer."""


def fresh(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model of `config.family` with random weights from torch's global generator."""
    of_tokenizer = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return FAMILIES[config.family](config, of_tokenizer)


def _gpt2(config: ModelConfig, of_tokenizer: dict[str, Any]) -> PreTrainedModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            **of_tokenizer,
            n_positions=config.n_positions,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_inner=config.n_inner,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=0.0,
        )
    )


def _mamba(config: ModelConfig, of_tokenizer: dict[str, Any]) -> PreTrainedModel:
    """Mamba has no heads, no MLP and no dropout; its width inside is twice `n_embd`."""
    from transformers import MambaConfig, MambaForCausalLM

    sizes = MambaConfig(
        **of_tokenizer,
        pad_token_id=of_tokenizer["eos_token_id"],
        hidden_size=config.n_embd,
        num_hidden_layers=config.n_layer,
        state_size=config.n_state,
        initializer_range=0.02,  # of the embedding, which is the head too: with 0.1 a fresh model guesses unevenly
    )
    sizes.max_position_embeddings = config.n_positions  # not Mamba's own: it says on what texts it was trained
    return MambaForCausalLM(sizes)


def _gsa(config: ModelConfig, of_tokenizer: dict[str, Any]) -> PreTrainedModel:
    from aimc.models.gsa import GSAConfig, GSAForCausalLM

    return GSAForCausalLM(
        GSAConfig(
            **of_tokenizer,
            pad_token_id=of_tokenizer["eos_token_id"],
            hidden_size=config.n_embd,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_slots=config.n_slots,
            intermediate_size=config.n_inner,
            max_position_embeddings=config.n_positions,
        )
    )


FAMILIES: dict[str, Maker] = {"gpt2": _gpt2, "mamba": _mamba, "gsa": _gsa}
"""By name, as `model.family` has it."""
