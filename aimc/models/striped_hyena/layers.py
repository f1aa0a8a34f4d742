"""The layers of a StripedHyena model, with the published names of their weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache

from aimc.models.recurrent.attention import FusedAttention
from aimc.models.recurrent.cache import state_in
from aimc.models.recurrent.fresh import end_of_branch
from aimc.models.recurrent.kept import kept
from aimc.models.recurrent.layer import ResidualLayer
from aimc.models.recurrent.modal import modal_filter
from aimc.models.recurrent.names import ATTENTION
from aimc.models.recurrent.precise import PreciseParameters
from aimc.models.striped_hyena.config import StripedHyenaConfig


class StripedHyenaNorm(nn.Module):
    """scale · x / (rms(x) + eps), computed in float32."""

    def __init__(self, config: StripedHyenaConfig):
        super().__init__()
        self.eps = config.eps
        self.scale = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[..., E]` to `[..., E]`."""
        x = hidden_states.float()
        rms = x.square().mean(-1, keepdim=True).sqrt()
        return (self.scale * (x / (rms + self.eps))).to(hidden_states.dtype)


class StripedHyenaMlp(nn.Module):
    """A gated feed-forward network."""

    def __init__(self, config: StripedHyenaConfig):
        super().__init__()
        self.act = ACT2FN[config.mlp_activation]
        self.l1 = nn.Linear(config.hidden_size, config.inner_mlp_size, bias=False)
        self.l2 = nn.Linear(config.hidden_size, config.inner_mlp_size, bias=False)
        self.l3 = end_of_branch(nn.Linear(config.inner_mlp_size, config.hidden_size, bias=False))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[B, T, E]` to `[B, T, E]`."""
        return self.l3(self.act(self.l1(hidden_states)) * self.l2(hidden_states))


class HyenaFilter(PreciseParameters):
    """x2 · (h ∗ (x1 · v) + D · x1 · v), where x2, x1 and v have passed a short convolution each.

    h_t = Re Σ residues·poles^t in float32 is the modal form into which the Hyena operator (arXiv 2302.10866) was
    distilled (Laughing Hyena, arXiv 2310.18780): as a convolution over a text, as a recurrence token by token.
    """

    has_weight_decay = False
    PRECISE = ("poles", "residues")

    def __init__(self, config: StripedHyenaConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.n_heads, self.by_head = config.num_attention_heads, config.column_split_hyena
        self.n_taps, self.max_radius = config.short_filter_length, config.max_pole_radius
        width = config.hidden_size
        self.D = nn.Parameter(torch.zeros(width))
        self.short_filter_weight = nn.Parameter(torch.empty(3 * width, 1, self.n_taps))
        self.short_filter_bias = nn.Parameter(torch.empty(3 * width)) if config.short_filter_bias else None
        self.poles = nn.Parameter(torch.empty(width, config.state_size, 1, 2))
        self.residues = nn.Parameter(torch.empty(width, config.state_size, 1, 2))

    @kept
    def modes(self) -> tuple[Tensor, Tensor]:
        """Poles and residues, `[E, modes]` each, complex128."""
        poles, residues = (torch.view_as_complex(x.squeeze(2).double()) for x in (self.poles, self.residues))
        if self.max_radius is not None:
            poles = poles / (poles.abs() / self.max_radius).clamp(min=1)
        return poles, residues

    def forward(self, z: Tensor, padding_mask: Tensor | None = None, past_key_values: Cache | None = None) -> Tensor:
        """Projections `[B, T, 3·E]` to `[B, T, E]`; padding (0 in `padding_mask` `[B, T]`) leaves no trace in the
        states."""
        z, n_tokens, state = z.mT, z.shape[1], state_in(past_key_values, self.layer_idx)  # [B, 3·E, T]
        if padding_mask is not None:
            z = z * padding_mask[:, None].to(z.dtype)
        window = z
        if past_key_values is not None:
            window = past_key_values.update_conv_state(z, self.layer_idx, conv_kernel_size=self.n_taps)
        short = F.conv1d(F.pad(window, (self.n_taps - 1, 0)), self.short_filter_weight, groups=z.shape[1])
        short = short[..., -n_tokens:]
        if self.short_filter_bias is not None:
            short = short + self.short_filter_bias[:, None]
        if padding_mask is not None:  # the bias again
            short = short * padding_mask[:, None].to(z.dtype)
        x2, x1, v = self._parts(short.float())
        u = x1 * v
        y, state = modal_filter(u, *self.modes(), state, keep_state=past_key_values is not None)
        if past_key_values is not None and state is not None:
            past_key_values.update_recurrent_state(state, self.layer_idx)
        return (x2 * (y + self.D.float()[:, None] * u)).mT.to(z.dtype)

    def _parts(self, z: Tensor) -> tuple[Tensor, ...]:
        """Gate after the convolution, gate before it and value, `[B, E, T]` each."""
        if not self.by_head:
            return z.chunk(3, dim=1)
        return tuple(part.flatten(1, 2) for part in z.unflatten(1, (self.n_heads, 3, -1)).unbind(2))


class StripedHyenaLayer(ResidualLayer):
    """Norm and mixer (long convolution or attention), norm and feed-forward network, each on its residual branch."""

    def __init__(self, config: StripedHyenaConfig, layer_idx: int):
        super().__init__()
        self.has_attention = config.layer_types[layer_idx] == ATTENTION
        self.pre_norm, self.post_norm = StripedHyenaNorm(config), StripedHyenaNorm(config)
        if self.has_attention:
            self.inner_mha_cls = FusedAttention(
                config,
                layer_idx,
                n_kv_heads=config.num_key_value_heads,
                rotary_dim=config.hidden_size // config.num_attention_heads,
                qkv_bias=config.qkv_proj_bias,
                out_bias=config.mha_out_proj_bias,
            )
        else:
            self.projections = nn.Linear(config.hidden_size, 3 * config.hidden_size)
            self.filter = HyenaFilter(config, layer_idx)
            self.out_filter_dense = end_of_branch(nn.Linear(config.hidden_size, config.hidden_size))
        self.mlp = StripedHyenaMlp(config)
        self.dropout = nn.Dropout(config.dropout)

    def norms(self) -> tuple[nn.Module, nn.Module]:
        return self.pre_norm, self.post_norm

    def attention(self) -> nn.Module:
        return self.inner_mha_cls

    def mixed(self, normed: Tensor, padding_mask: Tensor | None, past_key_values: Cache | None) -> Tensor:
        return self.out_filter_dense(self.filter(self.projections(normed), padding_mask, past_key_values))
