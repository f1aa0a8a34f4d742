"""The K/V arrays of all layers as a transformers cache: what `model.generate` fills token by token."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, LinearAttentionLayer

from aimc.nn.attention import GainCellAttention
from aimc.ops.decode.arrays import KVArrays

_log = logging.getLogger(__name__)


class GainCellLayer(CacheLayerMixin):
    """One layer of a :class:`GainCellCache`: it is filled by the layer's :class:`GainCellAttention`, which knows the
    hardware.

    Args:
        refresh_every: as for :class:`GainCellCache`.
    """

    def __init__(self, refresh_every: int | None = None):
        super().__init__()
        self.refresh_every = refresh_every
        self.arrays: KVArrays | None = None
        self._handed_on = False  # keys were handed on and not yet written

    def open(self, attention: GainCellAttention, key: Tensor) -> KVArrays:
        """The arrays, made at the first token.

        Raises:
            ValueError: they belong to other hardware, another chip, or another batch.
        """
        if self.arrays is None:
            self.lazy_initialization(key, key)
            self.arrays = attention.new_arrays(key)
            self.arrays.refresh_every = self.refresh_every
        n_tokens, window = self.get_seq_length() + key.shape[2], attention._hardware.array.window
        if n_tokens > window and key.shape[2] > 1:  # a prompt; that text which is being written wraps is no surprise
            _say_that_tokens_are_gone(n_tokens, window)
        self._handed_on = False
        self.arrays.check_continues(attention.machine, attention.chip, key)
        return self.arrays

    def close(self) -> None:
        """The pass is over, or has failed: what was handed on and not written is forgotten."""
        self._handed_on = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Part of transformers' interface; cells are allocated in :meth:`open`."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The new keys and values, unchanged: the attention writes them, through its scalers and converters.

        Raises:
            TypeError: those of the pass before were never written, because the model is digital.
        """
        if self._handed_on:
            raise TypeError(
                "a GainCellCache was given to a digital layer, which writes nothing to it, so earlier tokens would be"
                " forgotten; use transformers' DynamicCache, or put the model on arrays with aimc.convert"
            )
        self._handed_on = True
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens seen so far; the arrays hold the last W of them."""
        return 0 if self.arrays is None else self.arrays.n_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The whole text, from its first token: window and slots belong to the operator."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """-1: a ring buffer takes any number of tokens."""
        return -1

    def reset(self) -> None:
        """Forget everything, the noise's seed included."""
        self.arrays, self._handed_on = None, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row `beam_idx[b]` of the batch becomes row b."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch."""
        if self.arrays is not None:
            self.arrays.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row of the batch `repeats` times."""
        if self.arrays is not None:
            self.batch_select_indices(torch.arange(self.arrays.n_batch).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: a cell that was overwritten cannot be put back.

        Raises:
            NotImplementedError: unless there is nothing to remove.
        """
        if tokens_to_remove:
            raise NotImplementedError(
                "tokens cannot be taken back out of gain cells: what they have overwritten is gone; use a decoding"
                " method that only goes forward (greedy, sampling, beam search), not assisted or speculative decoding"
            )

    def offload(self) -> None:
        """Refused; see :meth:`prefetch`."""
        raise NotImplementedError(
            "gain-cell arrays stay on their device: they do not grow, so there is nothing to win by offloading them"
        )

    def prefetch(self) -> None:
        """Nothing to fetch: arrays stay on their device."""


class GainCellStateLayer(LinearAttentionLayer, GainCellLayer):  # type: ignore[misc, override]
    """The part of a hybrid layer, whose state space or convolution beside the attention has states of its own: those
    are kept as transformers keeps them.

    Args:
        number_of_states: of the layer that it replaces.
        refresh_every: as for :class:`GainCellCache`.
    """

    is_compileable = False

    def __init__(self, number_of_states: int = 1, refresh_every: int | None = None):
        GainCellLayer.__init__(self, refresh_every)
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Of the arrays with two tensors, of a state by name."""
        (GainCellLayer if args else LinearAttentionLayer).lazy_initialization(self, *args, **kwargs)

    def reset(self) -> None:
        """Forget everything."""
        LinearAttentionLayer.reset(self)
        GainCellLayer.reset(self)

    def reorder_cache(self, beam_idx: Any) -> None:
        """Row `beam_idx[b]` of the batch becomes row b."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Any) -> None:
        """Keep these rows of the batch, of the arrays and of the states."""
        LinearAttentionLayer.reorder_cache(self, indices)
        GainCellLayer.batch_select_indices(self, indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Refused, see :class:`GainCellLayer`."""
        GainCellLayer.crop(self, tokens_to_remove)

    def offload(self) -> None:
        """Refused, see :class:`GainCellLayer`."""
        GainCellLayer.offload(self)

    def prefetch(self) -> None:
        """Nothing to fetch."""


class GainCellCache(Cache):
    """Keys and values of a converted model in leaking cells, one ring buffer per layer and K/V head.

    `model.generate` makes one by itself; make it by hand to continue a text, to let time pass, or to refresh the
    cells::

        cache = GainCellCache(model, refresh_every=64)
        out = model.generate(**inputs, past_key_values=cache)
        cache.wait(1e-3)

    Args:
        model: converted; layers that are digital get a digital cache.
        refresh_every: every so many tokens all cells are read, rounded to the nearest storage level and written again;
            None: never. Without storage levels there is nothing to round to, and a refresh only adds write noise.

    Raises:
        ValueError: the model has no gain-cell layer, or `refresh_every` is below 1.
    """

    def __init__(self, model: nn.Module, *, refresh_every: int | None = None):
        arrays = [module for module in model.modules() if isinstance(module, GainCellAttention)]
        if not arrays:
            raise ValueError(
                f"this {type(model).__name__} has no gain-cell layer; call aimc.convert first, or use transformers'"
                " DynamicCache"
            )
        if refresh_every is not None and refresh_every < 1:
            raise ValueError(f"refresh_every={refresh_every}: must be at least one token; None never refreshes")
        config = model.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
        layers: list[Any] = DynamicCache(config=config).layers
        for attention in arrays:
            usual = layers[attention.layer]
            layers[attention.layer] = (
                GainCellStateLayer(usual.number_of_states, refresh_every)
                if isinstance(usual, LinearAttentionLayer)
                else GainCellLayer(refresh_every)
            )
        super().__init__(layers=layers)

    @property
    def gain_cell_layers(self) -> list[GainCellLayer]:
        """The layers on arrays, in order."""
        return [layer for layer in self.layers if isinstance(layer, GainCellLayer)]

    @classmethod
    @torch.compiler.disable  # a class cannot change inside a graph
    def take_over(cls, cache: Cache, model: nn.Module) -> None:
        """Make an empty digital cache a gain-cell cache, the same object, so that whoever made it can go on with it."""
        cache.__dict__.update(cls(model).__dict__)
        cache.__class__ = cls

    def batch_select_indices(self, indices: Any) -> None:
        """Keep these rows of the batch, in every layer."""
        for layer in self.layers:  # transformers' layers of states have no method for it, but reorder to any rows
            getattr(layer, "batch_select_indices", layer.reorder_cache)(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row of the batch `repeats` times, in every layer."""
        n_batch = max((layer.arrays.n_batch for layer in self.gain_cell_layers if layer.arrays is not None), default=0)
        if n_batch:
            self.batch_select_indices(torch.arange(n_batch).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Refused, see :class:`GainCellLayer`, before any layer has changed.

        Raises:
            NotImplementedError: unless there is nothing to remove.
        """
        for on_arrays in self.gain_cell_layers:
            on_arrays.crop(tokens_to_remove)
        layers: list[Any] = self.layers
        for layer in layers:
            if getattr(layer, "record_past", True):  # a state that records none has nothing to shrink, and says so
                layer.crop(tokens_to_remove)

    def layers_for(self, arrays: list[GainCellAttention]) -> dict[int, GainCellLayer]:
        """The part of each layer on arrays, by its number; a layer may stand there twice (peft keeps the original
        beside its copy).

        Raises:
            ValueError: this cache is of a model with other layers on arrays, or a pass over it was stopped midway.
        """
        mine = {number: layer for number, layer in enumerate(self.layers) if isinstance(layer, GainCellLayer)}
        wanted = {attention.layer for attention in arrays}
        if mine.keys() != wanted:
            raise ValueError(
                f"this cache has arrays for the layers {sorted(mine)}, and the model for {sorted(wanted)}: it was made"
                " for another model; make a new one with aimc.GainCellCache(model)"
            )
        read = {
            layer.get_seq_length()
            for layer in mine.values()
            if layer.arrays is None or layer.arrays.position is None  # fixed arrays count on their device
        }
        if len(read) > 1:
            raise ValueError(
                f"the layers of this cache have read {min(read)} to {max(read)} tokens: a pass over it was stopped"
                " midway, and going on some would read what others have; make a new cache and read the text again"
            )
        return mine

    def wait(self, seconds: float) -> None:
        """Let time pass without a token: all cells leak.

        Raises:
            ValueError: a time that runs backwards.
            ConfigError: the hardware does not know how long a token takes.
        """
        for layer in self.gain_cell_layers:
            if layer.arrays is not None:
                layer.arrays.wait(seconds)

    def fix(self) -> None:
        """From now on one token at a time, in tensors that stay where they are and with the same operations for every
        token, so that a CUDA graph or one compiled graph does for all of them; to be called behind the prompt.

        Nothing is counted on the host then: give the model `position_ids` that are a tensor too, and no
        `attention_mask`. `model.generate` goes on to work, and waits for the device at every token.

        Raises:
            ValueError: the cache is empty, cells are refreshed, tokens are protected or pruned, or not all layers are
                on arrays.
        """
        n_others = sum(type(layer) is not GainCellLayer for layer in self.layers)
        if n_others:
            raise ValueError(
                f"{n_others} of {len(self.layers)} layers of this cache are not on arrays alone, and what they keep"
                " does not stay where it is; put all layers on arrays, or go on without fix()"
            )
        if self.is_empty:
            raise ValueError("nothing has been written to this cache: read the prompt first, and then fix it")
        for layer in self.gain_cell_layers:
            assert layer.arrays is not None  # the layers of a cache are filled together
            layer.arrays.fix()

    @property
    def is_empty(self) -> bool:
        """Whether no layer on arrays has seen a token."""
        return all(layer.arrays is None for layer in self.gain_cell_layers)

    @property
    def n_written(self) -> int:
        """Tokens written to one array so far, and so cell writes per feature, without refreshes."""
        return max((layer.arrays.n_tokens for layer in self.gain_cell_layers if layer.arrays is not None), default=0)

    @property
    def n_bytes(self) -> int:
        """Memory of the layers on arrays between tokens, in byte: a byte a cell where storage levels say all, else that
        of voltages."""
        return sum(layer.arrays.n_bytes for layer in self.gain_cell_layers if layer.arrays is not None)

    @property
    def n_digital(self) -> int:
        """Tokens that the digital memory holds per K/V head, because they are protected."""
        memories = [layer.arrays.memory for layer in self.gain_cell_layers if layer.arrays is not None]
        return max((len(memory.tokens) for memory in memories if memory is not None), default=0)

    @property
    def n_refreshed(self) -> int:
        """Tokens rewritten by refreshes so far, per array."""
        return max((layer.arrays.n_refreshed for layer in self.gain_cell_layers if layer.arrays is not None), default=0)


_SAID: set[int] = set()


def _say_that_tokens_are_gone(n_tokens: int, window: int) -> None:
    """Once per window."""
    if window in _SAID or torch.compiler.is_compiling():
        return
    _SAID.add(window)
    _log.warning(
        "a prompt of %d tokens on arrays of %d slots: the ring buffer has overwritten the first %d, which later tokens"
        " do not see",
        n_tokens,
        window,
        n_tokens - window,
    )
