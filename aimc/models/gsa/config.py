"""Sizes of a Gated Slot Attention model, and the gain cells that its slots may be in."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from aimc.models.auto import register_model


class GSAConfig(PreTrainedConfig):
    """A decoder of `num_hidden_layers` blocks: slots, then a gated MLP, each behind an RMS norm.

    Args:
        vocab_size: tokens.
        hidden_size: width of the residual stream; a multiple of `num_attention_heads`.
        num_hidden_layers: blocks.
        num_attention_heads: H; each has a key and a value memory of its own.
        num_slots: m, slots of each memory. The state of a layer is `2·m·hidden_size` numbers, however long the text.
        intermediate_size: width of the MLP; None: 8/3 of `hidden_size`, rounded up to a multiple of 32.
        gate_normaliser: τ; the gate is `sigmoid(f)^(1/τ)`, so that a slot starts out forgetting slowly (8 in the
            paper).
        max_position_embeddings: longest text that is meant; nothing depends on it, there are no positions.
        chunk_size: tokens that the parallel form takes at once.
        slot_cells: gain cells that the slots are in, as :func:`aimc.models.gsa.put_on_cells` wrote them; None: digital.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    model_type = "gsa"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 1024,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 4,
        num_slots: int = 64,
        intermediate_size: int | None = None,
        gate_normaliser: float = 8.0,
        max_position_embeddings: int = 2048,
        chunk_size: int = 16,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-5,
        tie_word_embeddings: bool = True,
        use_cache: bool = True,
        slot_cells: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        for name, value in (
            ("num_slots", num_slots),
            ("num_attention_heads", num_attention_heads),
            ("chunk_size", chunk_size),
        ):
            if value < 1:
                raise ValueError(f"{name}={value}: a memory needs at least one; give a positive number")
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size={hidden_size}: heads are equally wide, so it must be a multiple of"
                f" num_attention_heads={num_attention_heads}"
            )
        if gate_normaliser <= 0:
            raise ValueError(
                f"gate_normaliser={gate_normaliser}: a gate is sigmoid(f)^(1/gate_normaliser); give a number above 0,"
                " 8 is usual"
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_slots = num_slots
        self.intermediate_size = intermediate_size or -(-(8 * hidden_size // 3) // 32) * 32
        self.gate_normaliser = gate_normaliser
        self.max_position_embeddings = max_position_embeddings
        self.chunk_size = chunk_size
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.slot_cells = slot_cells
        super().__init__(**{"tie_word_embeddings": tie_word_embeddings} | kwargs)
        register_model(self.model_type)

    @property
    def head_dim(self) -> int:
        """D, features of a key and a value."""
        return self.hidden_size // self.num_attention_heads
