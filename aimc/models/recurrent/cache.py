"""Where states are kept from token to token: transformers' caches, whose states have a constant size."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from aimc.models.recurrent.names import ATTENTION


class StateCache(DynamicCache):
    """The cache of a model without any attention: states of constant size, and how many tokens they have seen, which
    transformers' own leaves to a layer with attention."""

    seen = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen so far."""
        return self.seen

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.seen = 0


def new_cache(config: Any) -> DynamicCache:
    """An empty cache for a model: states, and keys and values where it has attention."""
    return (DynamicCache if ATTENTION in config.layer_types else StateCache)(config=config)


def fill(cache: DynamicCache, config: Any) -> None:
    """Make an empty cache, which was made without a config, that of a model: it stays the caller's own."""
    made = new_cache(config)
    cache.__class__, cache.__dict__ = type(made), made.__dict__


def state_in(cache: Cache | None, layer_idx: int) -> Tensor | None:
    """The recurrent state that a layer has left; None: there is none yet."""
    layer: Any = None if cache is None else cache.layers[layer_idx]
    return None if layer is None else layer.recurrent_states[0]  # zeros after a reset, which is the same
