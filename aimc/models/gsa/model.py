"""The model: blocks of slots and a gated MLP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from aimc.models.gsa.arrays import SlotArrays
from aimc.models.gsa.cache import SlotLayer, cache_of_slots
from aimc.models.gsa.config import GSAConfig
from aimc.models.gsa.memory import Memory, chunked, empty_memory, recurrent
from aimc.models.recurrent.decoder import CausalHead


class GatedSlotAttention(nn.Module):
    """Projections, slots, norm, projection: queries, keys and values through SiLU, as in the paper.

    `cells` is None, or the gain cells that the slots are in.
    """

    def __init__(self, config: GSAConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        width, n_gates = config.hidden_size, config.num_attention_heads * config.num_slots
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.f_proj = nn.Linear(width, n_gates, bias=False)
        self.norm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.cells: SlotArrays | None = None
        if config.slot_cells is not None:
            self.cells = SlotArrays.from_record(config.slot_cells, config, layer_idx)

    def forward(self, hidden: Tensor, padding: Tensor | None = None, cache: SlotLayer | None = None) -> Tensor:
        """`[B, T, hidden]` to the same; `padding` `[B, T]`, True where a token is none."""
        q, k, v, log_gate = self.operands(hidden, padding)
        memory = (cache and cache.memory) or empty_memory(k, self.config.num_slots)
        if self.cells is not None:
            out, memory = self.cells(q, k, v, log_gate, memory)
        else:
            out, memory = self.read(q, k, v, log_gate, memory)
        if cache is not None:
            cache.keep(memory, q.shape[2])
        out = out.transpose(1, 2).flatten(2).to(hidden.dtype)  # [B, T, hidden]
        return self.o_proj(self.norm(F.silu(out)))

    def operands(self, hidden: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values `[B, H, T, D]` and log gates `[B, H, T, m]`, in float32: a product of many gates
        near 1 needs it."""
        n_heads = self.config.num_attention_heads

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (n_heads, -1)).transpose(1, 2).float()

        q, k, v = (heads(F.silu(proj(hidden))) for proj in (self.q_proj, self.k_proj, self.v_proj))
        log_gate = F.logsigmoid(heads(self.f_proj(hidden))) / self.config.gate_normaliser
        if padding is not None:
            log_gate = log_gate.masked_fill(padding[:, None, :, None], 0.0)
        return q, k, v, log_gate

    def read(self, q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The slots in digital."""
        with torch.autocast(q.device.type, enabled=False):
            if q.shape[2] == 1:
                return recurrent(q, k, v, log_gate, memory)
            return chunked(q, k, v, log_gate, memory, self.config.chunk_size)


class GatedMLP(nn.Module):
    """`down(SiLU(gate(x))·up(x))`."""

    def __init__(self, config: GSAConfig):
        super().__init__()
        self.gate_proj, self.up_proj = (
            nn.Linear(config.hidden_size, config.intermediate_size, bias=False) for _ in range(2)
        )
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[B, T, hidden]` to the same."""
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class GSABlock(nn.Module):
    """One layer."""

    def __init__(self, config: GSAConfig, layer_idx: int):
        super().__init__()
        self.attn_norm, self.mlp_norm = (nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps) for _ in range(2))
        self.attn = GatedSlotAttention(config, layer_idx)
        self.mlp = GatedMLP(config)

    def forward(self, hidden: Tensor, padding: Tensor | None, cache: SlotLayer | None) -> Tensor:
        """`[B, T, hidden]` to the same."""
        hidden = hidden + self.attn(self.attn_norm(hidden), padding, cache)
        return hidden + self.mlp(self.mlp_norm(hidden))


class GSAPreTrainedModel(PreTrainedModel):
    """How its weights begin, and what transformers asks of a model."""

    config: GSAConfig
    config_class = GSAConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _no_split_modules = ["GSABlock"]
    _is_stateful = True
    _keep_in_fp32_modules_strict = ["cells"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)


class GSAModel(GSAPreTrainedModel):
    """The decoder without its head."""

    def __init__(self, config: GSAConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(GSABlock(config, number) for number in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Tokens `[B, T]`, which follow those in the cache, to hidden states `[B, T, hidden]`; padding, 0 in
        `attention_mask` `[B, all tokens so far]`, writes nothing. A cache is handed back as the config says, and never
        in training."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids and inputs_embeds: a text is given once; pass exactly one of them")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = (self.config.use_cache and not self.training) if use_cache is None else use_cache
        caches: list[SlotLayer] | list[None] = [None] * len(self.layers)
        if use_cache or past_key_values is not None:
            past_key_values = DynamicCache(config=self.config) if past_key_values is None else past_key_values
            caches = cache_of_slots(past_key_values, len(self.layers))
        padding = None if attention_mask is None else ~attention_mask[:, -hidden.shape[1] :].bool()
        states = [hidden]
        for layer, cache in zip(self.layers, caches, strict=True):
            hidden = layer(hidden, padding, cache)
            states.append(hidden)
        hidden = self.norm(hidden)
        states[-1] = hidden  # as transformers' own: the last is behind the final norm
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,  # type: ignore[arg-type]
            past_key_values=past_key_values if use_cache else None,
            hidden_states=tuple(states) if output_hidden_states else None,  # type: ignore[arg-type]
        )


class GSAForCausalLM(CausalHead, GSAPreTrainedModel, GenerationMixin):
    """The language model. In `attention_mask`, 0 is padding, which writes nothing."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: GSAConfig):
        super().__init__(config)
        self.model = GSAModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
