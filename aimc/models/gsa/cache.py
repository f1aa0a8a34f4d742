"""The slots of all layers in a transformers cache: constant in size, however long the text."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from aimc.models.gsa.memory import Memory


class SlotLayer(CacheLayerMixin):
    """One layer's part: its two memories."""

    is_sliding = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.cumulative_length = 0

    @property
    def memory(self) -> Memory | None:
        """What earlier tokens have left; None: there were none."""
        return None if self.keys is None or self.values is None else Memory(self.keys, self.values)

    def keep(self, memory: Memory, n_tokens: int) -> None:
        """The memory after so many more tokens."""
        self.keys, self.values = memory
        self.dtype, self.device = memory.keys.dtype, memory.keys.device
        self.cumulative_length += n_tokens
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to allocate: the first tokens bring the memory."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Refused: slots hold no tokens.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "this cache holds slots, and no keys and values of single tokens; give a model of attention a cache of its"
            " own, DynamicCache(config=model.config)"
        )

    def get_seq_length(self) -> int:
        """Tokens seen so far."""
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The whole text, from its first token: its mask says which tokens write nothing."""
        return self.cumulative_length + query_length, 0

    def get_max_length(self) -> int:
        """-1: slots take any number of tokens."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = None
        self.cumulative_length, self.is_initialized = 0, False

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch."""
        self.reorder_cache(indices)  # type: ignore[arg-type]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row of the batch `repeats` times."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = (x.repeat_interleave(repeats, dim=0) for x in (self.keys, self.values))

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what a gate has forgotten cannot be put back.

        Raises:
            NotImplementedError: unless there is nothing to remove.
        """
        if tokens_to_remove:
            raise NotImplementedError(
                "tokens cannot be taken back out of slots: what they have replaced is gone; use a decoding method that"
                " only goes forward (greedy, sampling, beam search), not assisted or speculative decoding"
            )


def cache_of_slots(cache: Cache, n_layers: int) -> list[SlotLayer]:
    """The layers of a cache; of an empty one, such as `generate` makes, they are put in place, so that whoever made it
    goes on with it.

    Raises:
        TypeError: it holds another model's text.
    """
    layers: list[Any] = cache.layers
    if not all(isinstance(layer, SlotLayer) for layer in layers) or len(layers) != n_layers:
        if cache.get_seq_length():
            raise TypeError(
                f"past_key_values is a {type(cache).__name__} with {cache.get_seq_length()} tokens of another model;"
                " leave it out, or give the cache that this model handed back"
            )
        cache.layers = layers = [SlotLayer() for _ in range(n_layers)]
        cache.layer_class_to_replicate = None
    return layers
