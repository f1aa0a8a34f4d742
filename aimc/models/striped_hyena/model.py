"""StripedHyena as a transformers model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.generation import GenerationMixin
from transformers.modeling_utils import PreTrainedModel

from aimc.models.recurrent.attention import FusedAttention, rotary
from aimc.models.recurrent.decoder import Backbone, CausalHead
from aimc.models.recurrent.fresh import draw_smaller
from aimc.models.recurrent.modal import DT_MAX, DT_MIN, bilinear, diag_lin
from aimc.models.striped_hyena.config import StripedHyenaConfig
from aimc.models.striped_hyena.layers import HyenaFilter, StripedHyenaLayer, StripedHyenaNorm


class StripedHyenaPreTrainedModel(PreTrainedModel):
    """What transformers asks of any model, and fresh weights."""

    config: StripedHyenaConfig
    config_class = StripedHyenaConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _is_stateful = True  # a state cannot give tokens back that were only tried
    _no_split_modules = ["StripedHyenaLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _keep_in_fp32_modules_strict = ["poles", "residues"]
    # Published files have the rotary frequencies, which follow from the config.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq$", r"\.filter\.t$"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": StripedHyenaLayer, "attentions": FusedAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Of fresh models, which were not published: GPT-2's, with its smaller output projections; filters begin as
        H3's diagonal state space does (S4D-Lin, bilinear)."""
        super()._init_weights(module)
        draw_smaller(module, self.config.initializer_range, self.config.num_layers)
        if isinstance(module, StripedHyenaNorm):
            init.ones_(module.scale)
        elif isinstance(module, HyenaFilter):
            init.zeros_(module.D)
            bound = module.n_taps**-0.5  # torch's own, of a convolution with one channel a group
            init.uniform_(module.short_filter_weight, -bound, bound)
            if module.short_filter_bias is not None:
                init.zeros_(module.short_filter_bias)
            poles, residues = _fresh_modes(*module.poles.shape[:2])
            for parameter, values in ((module.poles, poles), (module.residues, residues)):
                init.copy_(parameter, torch.view_as_real(values)[:, :, None])


def _fresh_modes(channels: int, modes: int) -> tuple[Tensor, Tensor]:
    """Poles and residues `[C, modes]` of S4D-Lin with a random read-out."""
    dt = torch.empty(channels).uniform_(math.log(DT_MIN), math.log(DT_MAX)).exp()
    poles, gain = bilinear(dt, torch.complex(*diag_lin(modes)))
    return poles, 2 * gain * torch.randn(channels, modes, dtype=torch.complex64)


class StripedHyenaModel(StripedHyenaPreTrainedModel, Backbone):
    """Embedding, layers, norm; and the head's weights, which were published here."""

    _tied_weights_keys = {"unembed.weight": "embedding_layer.weight"}

    def __init__(self, config: StripedHyenaConfig):
        super().__init__(config)
        self.embedding_layer = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([StripedHyenaLayer(config, number) for number in range(config.num_layers)])
        self.norm = StripedHyenaNorm(config) if config.final_norm else nn.Identity()
        self.unembed = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.embedding_layer

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another embedding in its place."""
        self.embedding_layer = value  # type: ignore[assignment]

    def parts(self) -> tuple[nn.Module, nn.Module, nn.ModuleList, nn.Module]:
        """Embedding, its dropout, layers, last norm."""
        return self.embedding_layer, self.dropout, self.blocks, self.norm

    def turned(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines of the rotary positions."""
        config = self.config
        at = position_ids
        if config.use_interpolated_rotary_pos_emb:
            at = position_ids / config.rotary_emb_scaling_factor
        return rotary(at, config.hidden_size // config.num_attention_heads, config.rotary_emb_base, dtype)


class StripedHyenaForCausalLM(CausalHead, StripedHyenaPreTrainedModel, GenerationMixin):
    """StripedHyena with a head over the vocabulary."""

    _tied_weights_keys = {"backbone.unembed.weight": "backbone.embedding_layer.weight"}

    def __init__(self, config: StripedHyenaConfig):
        super().__init__(config)
        self.backbone = StripedHyenaModel(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.backbone.unembed

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Put another head in its place."""
        self.backbone.unembed = value  # type: ignore[assignment]
