"""The layers of an H3 model."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu, glu
from transformers.cache_utils import Cache

from aimc.models.h3.config import H3Config
from aimc.models.h3.state_space import DiagonalStateSpace, ShiftStateSpace
from aimc.models.recurrent.attention import FusedAttention
from aimc.models.recurrent.cache import state_in
from aimc.models.recurrent.fresh import end_of_branch
from aimc.models.recurrent.layer import ResidualLayer
from aimc.models.recurrent.names import ATTENTION


class H3Mixer(nn.Module):
    """q · diagonal(shift(k) · v), and a projection (arXiv 2212.14052, algorithm 1, with one channel a head).

    The shift lets a token meet the one before it, the diagonal state space remembers what they were, and q asks for it:
    multiplicative gates in place of attention's products between tokens.
    """

    def __init__(self, config: H3Config, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        width = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.shift = ShiftStateSpace(width, config.state_size)
        self.diagonal = DiagonalStateSpace(width, config.state_size)
        self.output_linear = end_of_branch(nn.Linear(width, width))

    def forward(
        self, hidden_states: Tensor, padding_mask: Tensor | None = None, past_key_values: Cache | None = None
    ) -> Tensor:
        """`[B, T, E]` to `[B, T, E]`; padding (0 in `padding_mask` `[B, T]`) leaves no trace in the states."""
        q, k, v = (project(hidden_states).mT.float() for project in (self.q_proj, self.k_proj, self.v_proj))
        if padding_mask is not None:
            real = padding_mask[:, None].to(k.dtype)
            k, v = k * real, v * real  # [B, E, T]
        n_tokens, state, window = k.shape[-1], state_in(past_key_values, self.layer_idx), k
        if past_key_values is not None:
            window = past_key_values.update_conv_state(
                k, self.layer_idx, conv_kernel_size=self.shift.n_states
            )  # [B, E, up to N + T]
        k = self.shift(window, n_tokens)
        y, state = self.diagonal(k * v, state, keep_state=past_key_values is not None)
        if past_key_values is not None and state is not None:
            past_key_values.update_recurrent_state(state, self.layer_idx)
        return self.output_linear((q * y).mT.to(hidden_states.dtype))


class S4DMixer(nn.Module):
    """A diagonal state space alone, a GELU, and a projection with a gate of its own output (S4D, arXiv 2206.11893).

    Its kernel is the same whatever the text says: what H3's gates are there to change.
    """

    def __init__(self, config: H3Config, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.diagonal = DiagonalStateSpace(config.hidden_size, config.state_size)
        self.output_linear = end_of_branch(nn.Linear(config.hidden_size, 2 * config.hidden_size))

    def forward(
        self, hidden_states: Tensor, padding_mask: Tensor | None = None, past_key_values: Cache | None = None
    ) -> Tensor:
        """`[B, T, E]` to `[B, T, E]`; padding (0 in `padding_mask` `[B, T]`) leaves no trace in the state."""
        u = hidden_states.mT.float()
        if padding_mask is not None:
            u = u * padding_mask[:, None].to(u.dtype)
        y, state = self.diagonal(u, state_in(past_key_values, self.layer_idx), keep_state=past_key_values is not None)
        if past_key_values is not None and state is not None:
            past_key_values.update_recurrent_state(state, self.layer_idx)
        return glu(self.output_linear(gelu(y).mT.to(hidden_states.dtype)))


class H3Mlp(nn.Module):
    """Two projections with a GELU between."""

    def __init__(self, config: H3Config):
        super().__init__()
        assert config.intermediate_size is not None  # the config has filled it in
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = end_of_branch(nn.Linear(config.intermediate_size, config.hidden_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[B, T, E]` to `[B, T, E]`."""
        return self.fc2(gelu(self.fc1(hidden_states), approximate="tanh"))


class H3Layer(ResidualLayer):
    """Norm and mixer (state spaces or attention), norm and feed-forward network, each on its residual branch."""

    def __init__(self, config: H3Config, layer_idx: int):
        super().__init__()
        self.has_attention = config.layer_types[layer_idx] == ATTENTION
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mixer: nn.Module
        if self.has_attention:
            self.mixer = FusedAttention(
                config, layer_idx, n_kv_heads=config.num_attention_heads, rotary_dim=config.rotary_dim
            )
        else:
            self.mixer = (H3Mixer if config.gated else S4DMixer)(config, layer_idx)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = H3Mlp(config)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def norms(self) -> tuple[nn.Module, nn.Module]:
        return self.norm1, self.norm2

    def attention(self) -> nn.Module:
        return self.mixer

    def mixed(self, normed: Tensor, padding_mask: Tensor | None, past_key_values: Cache | None) -> Tensor:
        return self.mixer(normed, padding_mask, past_key_values)
