"""Sizes of a StripedHyena model, by the names of the published `config.json`."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig

from aimc.models.auto import register_model
from aimc.models.recurrent.names import layer_types


class StripedHyenaConfig(PreTrainedConfig):
    """A StripedHyena model; the defaults are StripedHyena-Hessian-7B (configs/7b-sh-32k-v0.1.yml of its repository).

    What speaks of kernels and parallel training (`use_flash_attn`, `model_parallel_size`, …) is kept and has no effect.

    Raises:
        ValueError: sizes that do not fit together, or a variant that was never published with weights; the message
            names the field.
    """

    model_type: ClassVar[str] = "stripedhyena"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "max_position_embeddings": "max_seqlen",
        "intermediate_size": "inner_mlp_size",
        "tie_word_embeddings": "tie_embeddings",
    }

    vocab_size: int = 32000
    """Tokens."""
    hidden_size: int = 4096
    """Width E, and channels of the long convolutions."""
    num_layers: int = 32
    """Layers."""
    attn_layer_idxs: list[int] | tuple[int, ...] | None = None
    """Numbers of the layers with attention in place of a convolution; None: every second, from 1 on."""
    num_attention_heads: int = 32
    """Query heads; the projections of a convolution are interleaved by as many."""
    proj_groups: int = 4
    """Query heads that share a key and a value head."""
    inner_mlp_size: int = 14336
    """Width of the gated feed-forward network."""
    mlp_activation: str = "silu"
    """Activation of its gate."""
    state_size: int = 2
    """Complex modes a channel."""
    short_filter_length: int = 3
    """Taps of the convolution before the gates."""
    short_filter_bias: bool = True
    """Whether that has a bias."""
    max_pole_radius: float | None = None
    """Poles beyond it are pulled back to it while computing; None: as they are. 1.0 while training from scratch, for
    beyond that a kernel grows without bound."""
    column_split_hyena: bool = True
    """Whether gates and values lie head by head in the projection; False: one after the other."""
    hyena_filter_groups: int = 1
    """Channels that share a filter; only 1 was published."""
    qkv_proj_bias: bool = False
    mha_out_proj_bias: bool = False
    smeared_gqa: bool = False
    """Not supported: no weights were published with it."""
    rotary_emb_base: float = 500000.0
    """Base of the rotary angles."""
    use_interpolated_rotary_pos_emb: bool = False
    """Whether positions are divided by `rotary_emb_scaling_factor`."""
    rotary_emb_scaling_factor: float = 1.0
    max_seqlen: int | None = 32768
    """Longest text in tokens that the model was built for; None: no limit."""
    eps: float = 1e-5
    """Of the norms."""
    final_norm: bool = True
    """Whether there is one before the head."""
    tie_embeddings: bool = False
    """Whether the head's weights are the embedding's."""
    dropout: float = 0.0
    """Dropout of embedding and residual branches while training; attention has none."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""
    use_cache: bool = True
    """Whether a pass keeps states, keys and values for the next tokens."""
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for usual, own in self.attribute_map.items():  # given by transformers' names
            if usual in kwargs:
                setattr(self, own, kwargs.pop(usual))
        if self.attn_layer_idxs is None:
            self.attn_layer_idxs = range(1, self.num_layers, 2)  # type: ignore[assignment]
        self.attn_layer_idxs = sorted(self.attn_layer_idxs)  # type: ignore[arg-type]
        for follows in ("layer_types", "hyena_layer_idxs", "num_filters"):
            kwargs.pop(follows, None)
        self.layer_types = layer_types(self.num_layers, self.attn_layer_idxs, "attn_layer_idxs")
        self._check()
        super().__post_init__(**kwargs)
        register_model(self.model_type)

    def _check(self) -> None:
        for whole, part in (("hidden_size", "num_attention_heads"), ("num_attention_heads", "proj_groups")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{whole}={getattr(self, whole)}: not a multiple of {part}={getattr(self, part)}, so heads would"
                    " differ; change one of them"
                )
        for name, published, other in (
            ("hyena_filter_groups", 1, "channels that share a filter"),
            ("smeared_gqa", False, "key and value heads that are repeated before the cache"),
        ):
            if (value := getattr(self, name)) != published:
                raise ValueError(f"{name}={value}: {other} are not emulated, and no weights have them; use {published}")

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads a layer."""
        return self.num_attention_heads // self.proj_groups
