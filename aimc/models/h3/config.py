"""Sizes of an H3 model."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig

from aimc.models.auto import register_model
from aimc.models.recurrent.names import layer_types


class H3Config(PreTrainedConfig):
    """An H3 model; the defaults are the published one with 125 M parameters.

    Raises:
        ValueError: sizes that do not fit together; the message names the field.
    """

    model_type: ClassVar[str] = "h3"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 50264
    """Tokens: GPT-2's 50257, filled up to a multiple of 8."""
    hidden_size: int = 768
    """Width E, and channels of the state spaces."""
    num_hidden_layers: int = 12
    """Layers."""
    attention_layers: list[int] | tuple[int, ...] = (6,)
    """Numbers of the layers with attention in place of state spaces; may be empty."""
    num_attention_heads: int = 12
    """Heads of those."""
    gated: bool = True
    """Whether the state spaces stand between gates; False: each is a plain S4D layer (arXiv 2206.11893), which mixes
    tokens by their distance alone."""
    rotary_dim: int = 0
    """Features of a head that turn with the position; 0: none, for the state spaces know the order."""
    rotary_base: float = 10000.0
    """Base of the rotary angles."""
    intermediate_size: int | None = None
    """Width of the feed-forward network; None: 4·hidden_size."""
    state_size: int = 64
    """N: taps of the shift state space, and half as many complex modes of the diagonal one."""
    max_position_embeddings: int | None = 2048
    """Longest text in tokens that the model was trained on; None: no limit, for nothing in it depends on one."""
    layer_norm_epsilon: float = 1e-5
    """Of the layer norms."""
    embd_pdrop: float = 0.0
    """Dropout behind the embedding while training (published: 0.1)."""
    resid_pdrop: float = 0.0
    """Dropout of the residual branches while training; attention has none."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""
    use_cache: bool = True
    """Whether a pass keeps states, keys and values for the next tokens."""
    tie_word_embeddings: bool = True
    """Whether the head's weights are the embedding's."""
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.attention_layers = sorted(self.attention_layers)
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        kwargs.pop("layer_types", None)  # of a saved config: it follows from the above
        self.layer_types = layer_types(self.num_hidden_layers, self.attention_layers, "attention_layers")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size}: not a multiple of num_attention_heads={self.num_attention_heads}, so"
                " heads would differ in size; change one of them"
            )
        head_size = self.hidden_size // self.num_attention_heads
        if self.rotary_dim % 2 or not 0 <= self.rotary_dim <= head_size:
            raise ValueError(
                f"rotary_dim={self.rotary_dim}: features turn in pairs, and a head has {head_size}; give an even number"
                f" up to {head_size}"
            )
        if self.state_size < 2 or self.state_size % 2:
            raise ValueError(
                f"state_size={self.state_size}: a complex mode stands for two states; give an even number from 2 on"
            )
        super().__post_init__(**kwargs)
        register_model(self.model_type)


SIZES: dict[str, dict[str, Any]] = {
    "125m": {},
    "355m": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "attention_layers": (8, 16)},
    "1.3b": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "attention_layers": (8, 16)},
    "2.7b-3attn": {
        "hidden_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "attention_layers": (8, 16, 24),
    },
    "2.7b-2attn-rotary": {
        "hidden_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "attention_layers": (10, 21),
        "rotary_dim": 64,
    },
}
"""The published models, as github.com/HazyResearch/H3 (examples/README.md) gives them."""


def published(size: str, **changes: Any) -> H3Config:
    """The config of a published model.

    Args:
        size: one of :data:`SIZES`.
        changes: other values of its fields.

    Raises:
        ValueError: no such size.
    """
    if size not in SIZES:
        raise ValueError(f"size={size!r}: no H3 model of that size was published; use one of {', '.join(SIZES)}")
    return H3Config(**{**SIZES[size], **changes})
