"""What a decoder of attention and state layers does around its layers: positions, masks, its limit of length, head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_recurrent_attention_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from aimc.models.recurrent.cache import StateCache, fill, new_cache
from aimc.models.recurrent.names import ATTENTION, STATE


@dataclass(slots=True)
class Frame:
    """What every layer of a pass is given."""

    masks: dict[str, Any]
    """By kind of layer: the attention implementation's mask, and `[B, T]` with 0 for padding (None: there is none)."""
    position_ids: Tensor
    """`[B, T]`."""


def frame(
    config: Any,
    embeds: Tensor,
    attention_mask: Tensor | dict[str, Tensor | None] | None,
    position_ids: Tensor | None,
    cache: Cache | None,
) -> Frame:
    """Positions and masks of new tokens `[B, T, E]` that follow those in the cache.

    Raises:
        ValueError: more tokens than the model was built for.
    """
    has_attention = ATTENTION in config.layer_types
    counts = has_attention or isinstance(cache, StateCache)  # transformers' own, without attention, counts no tokens
    seen = cache.get_seq_length() if cache is not None and counts else 0
    n_tokens, most = seen + embeds.shape[1], config.max_position_embeddings
    if most is not None and n_tokens > most:
        raise ValueError(
            f"a text of {n_tokens} tokens, but {type(config).__name__}.max_position_embeddings={most}: the model was"
            " built for no longer one; shorten the text, or load the model with a larger max_position_embeddings and"
            " check its perplexity"
        )
    if isinstance(cache, StateCache):
        cache.seen = n_tokens
    if position_ids is None:
        position_ids = torch.arange(seen, n_tokens, device=embeds.device)[None]
    if isinstance(attention_mask, dict):  # `generate` has made them, for a compiled graph
        return Frame(attention_mask, position_ids)
    given: dict[str, Any] = {
        "config": config,
        "inputs_embeds": embeds,
        "attention_mask": attention_mask,
        "past_key_values": cache,
        "position_ids": position_ids,
    }
    masks: dict[str, Any] = {STATE: create_recurrent_attention_mask(**given)}
    if has_attention:
        masks[ATTENTION] = create_causal_mask(**given)
    return Frame(masks, position_ids)


class Backbone(PreTrainedModel):
    """The pass through embedding, layers and norm. Its heirs say what those are."""

    def parts(self) -> tuple[nn.Module, nn.Module, nn.ModuleList, nn.Module]:
        """Embedding, its dropout, layers, last norm."""
        raise NotImplementedError

    def turned(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines of the rotary positions, see :func:`aimc.models.recurrent.attention.rotary`."""
        raise NotImplementedError

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Tokens `[B, T]`, which follow those in the cache, to hidden states `[B, T, E]`.

        Raises:
            ValueError: more tokens than `max_position_embeddings`, or not one of `input_ids` and `inputs_embeds`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give one of input_ids and inputs_embeds: they are two forms of the same tokens")
        embedding, dropout, layers, norm = self.parts()
        hidden_states = embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = new_cache(self.config)
        elif type(past_key_values) is DynamicCache and not past_key_values.layers:
            fill(past_key_values, self.config)
        around = frame(self.config, hidden_states, attention_mask, position_ids, past_key_values)
        turned = self.turned(around.position_ids, hidden_states.dtype)
        hidden_states = dropout(hidden_states)
        for layer, kind in zip(layers, self.config.layer_types, strict=True):
            hidden_states = layer(
                hidden_states,
                attention_mask=around.masks[kind],
                position_embeddings=turned,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=norm(hidden_states), past_key_values=past_key_values)


class CausalHead:
    """The pass of a decoder with a head over the vocabulary; before `PreTrainedModel` among the bases, whose
    `base_model_prefix` names the decoder."""

    def _prepare_cache_for_generation(
        self: Any, generation_config: Any, model_kwargs: dict[str, Any], *args: Any
    ) -> Any:
        """Transformers' own, or :class:`StateCache` where that could not count tokens."""
        kinds = getattr(self.config, "layer_types", (ATTENTION,))
        if ATTENTION not in kinds and generation_config.use_cache:
            model_kwargs.setdefault("past_key_values", new_cache(self.config))
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)  # type: ignore[misc]

    @can_return_tuple
    def forward(
        self: Any,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Tokens `[B, T]` to logits `[B, T, V]`, and with labels the loss; as of any causal model of transformers."""
        outputs = self.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.get_output_embeddings()(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
