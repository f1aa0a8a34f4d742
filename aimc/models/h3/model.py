"""H3 as a transformers model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.generation import GenerationMixin
from transformers.modeling_utils import PreTrainedModel

from aimc.models.h3.config import H3Config
from aimc.models.h3.layers import H3Layer
from aimc.models.h3.state_space import DiagonalStateSpace, ShiftStateSpace
from aimc.models.recurrent.attention import FusedAttention, rotary
from aimc.models.recurrent.decoder import Backbone, CausalHead
from aimc.models.recurrent.fresh import draw_smaller
from aimc.models.recurrent.modal import DT_MAX, DT_MIN, diag_lin


class H3PreTrainedModel(PreTrainedModel):
    """What transformers asks of any model, and fresh weights."""

    config: H3Config
    config_class = H3Config
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _is_stateful = True  # a state cannot give tokens back that were only tried
    _no_split_modules = ["H3Layer"]
    _skip_keys_device_placement = ["past_key_values"]
    _keep_in_fp32_modules_strict = ["shift", "diagonal"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": H3Layer, "attentions": FusedAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As published: GPT-2's, with its smaller output projections; S4D-Lin for the diagonal state space, and a shift
        whose B takes each input in as it is."""
        super()._init_weights(module)
        draw_smaller(module, self.config.initializer_range, self.config.num_hidden_layers)
        if isinstance(module, ShiftStateSpace):
            init.copy_(module.B, torch.eye(1, module.n_states).expand_as(module.B))
            bound = module.n_states**-0.5
            init.uniform_(module.C, -bound, bound)
            init.normal_(module.D)
        elif isinstance(module, DiagonalStateSpace):
            real, imaginary = diag_lin(module.A_imag.shape[-1])
            init.uniform_(module.log_dt, math.log(DT_MIN), math.log(DT_MAX))
            init.copy_(module.inv_A_real, (-real).log().expand_as(module.inv_A_real))
            init.copy_(module.A_imag, imaginary.expand_as(module.A_imag))
            init.copy_(module.B, torch.tensor([1.0, 0.0]).expand_as(module.B))
            init.normal_(module.C, std=math.sqrt(0.5))
            init.normal_(module.D)


class H3Model(H3PreTrainedModel, Backbone):
    """Embedding, layers, norm."""

    def __init__(self, config: H3Config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.dropout = nn.Dropout(config.embd_pdrop)
        self.layers = nn.ModuleList([H3Layer(config, number) for number in range(config.num_hidden_layers)])
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def parts(self) -> tuple[nn.Module, nn.Module, nn.ModuleList, nn.Module]:
        """Embedding, its dropout, layers, last norm."""
        return self.embed_tokens, self.dropout, self.layers, self.ln_f

    def turned(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines of the rotary positions; None: attention knows none."""
        return rotary(position_ids, self.config.rotary_dim, self.config.rotary_base, dtype)


class H3ForCausalLM(CausalHead, H3PreTrainedModel, GenerationMixin):
    """H3 with a head over the vocabulary."""

    _tied_weights_keys = {"lm_head.weight": "backbone.embed_tokens.weight"}

    def __init__(self, config: H3Config):
        super().__init__(config)
        self.backbone = H3Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
