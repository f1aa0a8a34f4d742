"""A residual layer whose mixer is attention in some layers and a recurrence in the others."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer


class ResidualLayer(GradientCheckpointingLayer):
    """Norm and mixer, norm and feed-forward network, each on its residual branch. Its heirs say what those are, under
    the names that their checkpoints have."""

    has_attention: bool
    mlp: nn.Module
    dropout: nn.Module

    def norms(self) -> tuple[nn.Module, nn.Module]:
        """In front of the mixer and of the feed-forward network."""
        raise NotImplementedError

    def attention(self) -> nn.Module:
        """Where :attr:`has_attention`."""
        raise NotImplementedError

    def mixed(self, normed: Tensor, padding_mask: Tensor | None, past_key_values: Cache | None) -> Tensor:
        """What the recurrence gives, `[B, T, E]`, everywhere else."""
        raise NotImplementedError

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """`[B, T, E]` to `[B, T, E]`."""
        before_mixer, before_mlp = self.norms()
        normed = before_mixer(hidden_states)
        if self.has_attention:
            mixed, _ = self.attention()(
                hidden_states=normed,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        else:
            mixed = self.mixed(normed, attention_mask, past_key_values)
        hidden_states = hidden_states + self.dropout(mixed)
        return hidden_states + self.dropout(self.mlp(before_mlp(hidden_states)))
