"""Softmax attention with one fused projection, through transformers' attention interface.

Query heads come first in the projection, then all key heads, then all value heads: the layout in which both models were
published (flash-attn's `MHA`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from aimc.models.recurrent.fresh import end_of_branch


class FusedAttention(nn.Module):
    """Causal self-attention; weights `Wqkv` and `out_proj`.

    Args:
        config: of the model.
        layer_idx: its number.
        n_kv_heads: key and value heads, a divisor of the query heads.
        rotary_dim: features of a head that turn with the position, from the first; 0: none.
    """

    is_causal = True

    def __init__(
        self,
        config: Any,
        layer_idx: int,
        *,
        n_kv_heads: int,
        rotary_dim: int,
        qkv_bias: bool = True,
        out_bias: bool = True,
    ):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.n_heads, self.n_kv_heads, self.rotary_dim = config.num_attention_heads, n_kv_heads, rotary_dim
        self.head_dim = config.hidden_size // self.n_heads
        self.num_key_value_groups = self.n_heads // n_kv_heads  # asked for by the interface's functions
        self.scaling = self.head_dim**-0.5
        features = (self.n_heads + 2 * n_kv_heads) * self.head_dim
        self.Wqkv = nn.Linear(config.hidden_size, features, bias=qkv_bias)
        self.out_proj = end_of_branch(nn.Linear(config.hidden_size, config.hidden_size, bias=out_bias))

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """`[B, T, E]` to `[B, T, E]`, and the attention weights where the implementation gives them."""
        heads = self.Wqkv(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H + 2·H_kv, T, D]
        query, key, value = heads.split([self.n_heads, self.n_kv_heads, self.n_kv_heads], dim=1)
        if position_embeddings is not None and self.rotary_dim:
            query, key = _turned(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )  # [B, T, H, D]
        return self.out_proj(output.flatten(-2)), weights


def _turned(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys `[B, H, T, D]` with their first features turned; cos and sin `[B, T, turned]`."""
    n = cos.shape[-1]
    turned = apply_rotary_pos_emb(query[..., :n], key[..., :n], cos, sin)
    still = query[..., n:], key[..., n:]
    return torch.cat([turned[0], still[0]], dim=-1), torch.cat([turned[1], still[1]], dim=-1)


def rotary(position_ids: Tensor, dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines `[B, T, dim]` of the angles position / base^(2i/dim) (RoFormer, arXiv 2104.09864), both halves
    alike; None where nothing turns.

    Args:
        position_ids: `[B, T]`, whole or, for interpolated positions, fractions.
        dim: features that turn.
    """
    if not dim:
        return None
    at = torch.arange(0, dim, 2, dtype=torch.float32, device=position_ids.device)
    angles = position_ids[..., None].float() * base ** (-at / dim)  # [B, T, dim / 2]
    both = torch.cat([angles, angles], dim=-1)
    return both.cos().to(dtype), both.sin().to(dtype)
