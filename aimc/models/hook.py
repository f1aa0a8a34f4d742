"""How gain cells meet Hugging Face: the attention and mask functions, and the hooks that bring the cache.

Any layer whose attention goes through transformers' attention interface calls :func:`_attention` when the model's
implementation is `gain_cell`; that calls the child module `gain_cell` of the layer. A layer without that child stays
digital.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from aimc.models.arrays import gain_cell_layers
from aimc.models.families import PROBE
from aimc.models.mark import REFUSAL
from aimc.nn.attention import GainCellAttention
from aimc.nn.cache import GainCellCache

IMPLEMENTATION = "gain_cell"
"""Name of the attention implementation, and of the child module that it calls."""
UNSUPPORTED = {
    "softcap": "soft-capping of the scores",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "position biases",
    "alibi": "ALiBi biases",
}
"""Keywords of the attention interface that would change the result and that the arrays cannot honour."""


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """query `[B, H, T, D]`, key and value `[B, H_kv, T, D]`, mask `[B, all tokens so far]` with 1 for tokens; returns
    `[B, T, H, D]`.

    `scaling` is part of the scalers and attention dropout has no counterpart in the arrays; both are left out.
    """
    if attention_mask is not None and attention_mask.ndim != 2:
        raise NotImplementedError(
            "the arrays attend causally within their window; give a 2-D attention_mask [batch, tokens] instead of a"
            " prepared one"
        )
    attention = getattr(module, IMPLEMENTATION, None)
    if attention is None:
        return _digital_attention(module, query, key, value, attention_mask, **kwargs)
    offending = [f"{name} ({what})" for name, what in UNSUPPORTED.items() if kwargs.get(name) is not None]
    if offending:
        raise NotImplementedError(
            f"the gain-cell arrays cannot do {', '.join(offending)}; choose another model, or switch it off in the"
            " model's config"
        )
    if key.shape[2] != query.shape[2]:
        raise TypeError(
            f"{query.shape[2]} queries against {key.shape[2]} keys: a digital key/value cache would bypass the arrays'"
            " cells; call with past_key_values=aimc.GainCellCache(model), or with use_cache=False"
        )
    n_tokens = query.shape[2]
    padding = None if attention_mask is None else ~attention_mask[:, -n_tokens:].bool()
    query, key, value = _as_autocast((query, key, value))
    return attention(query, key, value, key_padding=padding).transpose(1, 2), None


def _as_autocast(states: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """As `scaled_dot_product_attention` takes its inputs under autocast on a GPU: in autocast's dtype. Rotary positions
    leave float32 behind, with which the kernels take ten times as long. A CPU's operator computes in float32 anyway."""
    if not states[0].is_cuda or not torch.is_autocast_enabled("cuda"):
        return states
    dtype = torch.get_autocast_dtype("cuda")
    query, key, value = (x.to(dtype) if x.dtype == torch.float32 else x for x in states)
    return query, key, value


def _digital_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Softmax attention of a layer that stays digital: transformers' own, with the causal mask that it usually gets
    ready-made."""
    n_queries, n_keys = query.shape[2], key.shape[2]
    at = torch.arange(n_keys, device=query.device)
    rows = at[n_keys - n_queries :, None]
    visible = at <= rows
    if kwargs.get("sliding_window") is not None:
        visible = visible & (rows - at < kwargs["sliding_window"])
    visible = visible[None, None]
    if attention_mask is not None:
        visible = visible & attention_mask[:, None, None, -n_keys:].bool() | (
            at == rows
        )  # a row of padding sees itself: no empty softmax
    output, _ = sdpa_attention_forward(module, query, key, value, visible, **kwargs)
    return output, None


def _mask(
    *args: Any, attention_mask: Tensor | None = None, allow_is_causal_skip: bool = True, **kwargs: Any
) -> Tensor | None:
    """The user's 2-D mask, unchanged: causality and window belong to the operator."""
    # Something is laid over the causal mask. While compiling, transformers cannot look whether texts are packed, and
    # always says so.
    if not allow_is_causal_skip and not torch.compiler.is_compiling():
        raise NotImplementedError(
            "the arrays attend to all of a text's past within their window, so several texts packed into one row (told"
            " by position_ids that start again) or blocks that see their future cannot be told apart; give each text a"
            " row of its own, with an attention_mask"
        )
    return attention_mask


for _name in (IMPLEMENTATION, REFUSAL):  # with aimc, a model may be made from a config that asks for the second
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, _mask)


def attach_cache(model: PreTrainedModel) -> None:
    """Let the decoder of a model find its gain-cell cache: hooks around the module that owns the layers, whatever calls
    it."""
    decoder = _decoder(model)
    before = decoder.register_forward_pre_hook(_take_cache, with_kwargs=True)
    after = decoder.register_forward_hook(_put_cache_back, always_call=True)
    decoder._gain_cell_hooks = (before, after)  # type: ignore[assignment]
    decoder._gain_cell_arrays = _arrays_in(decoder)  # type: ignore[assignment]


def detach_cache(model: PreTrainedModel) -> None:
    """Undo :func:`attach_cache`."""
    decoder = _decoder(model)
    for handle in decoder._gain_cell_hooks:  # type: ignore[union-attr]
        handle.remove()
    del decoder._gain_cell_hooks, decoder._gain_cell_arrays


def _decoder(model: PreTrainedModel) -> nn.Module:
    """The module that holds the list of layers: `transformer`, `model`, `model.decoder`, … of a causal language
    model."""
    name = next(name for name, _ in gain_cell_layers(model))
    parts = name.split(".")
    first_number = next(i for i, part in enumerate(parts) if part.isdigit())
    return model.get_submodule(".".join(parts[: first_number - 1]))


def _take_cache(
    decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before a pass: a gain-cell cache in place of none or of an empty digital one (which `generate` makes), each layer
    told its part."""
    _let_go(decoder)  # of what a pass left that was interrupted from the keyboard
    _check_checkpointing(decoder)
    _check_implementation(decoder)
    if args:  # by name, so that the cache is found wherever it stands
        kwargs = dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)) | kwargs
    cache = kwargs.get("past_key_values")
    use_cache = kwargs.get("use_cache")
    if use_cache is None:
        use_cache = decoder.config.use_cache  # type: ignore[union-attr]
    if cache is None and not use_cache:
        return None
    if cache is None:
        cache = GainCellCache(decoder)
    elif type(cache) is DynamicCache and cache.get_seq_length() == 0:
        GainCellCache.take_over(cache, decoder)
    if not isinstance(cache, GainCellCache):
        raise TypeError(
            f"past_key_values is a {_describe(cache)}: a digital key/value cache would bypass the arrays' cells; "
            "use aimc.GainCellCache(model), or leave it out"
        )
    if cache.is_empty:  # a text begins, perhaps with modules that peft has wrapped since the last one
        _remember(decoder, _arrays_in(decoder))
    arrays = _remembered(decoder)
    layers = cache.layers_for(arrays)
    for attention in arrays:
        attention.layer_cache = layers[attention.layer]
    return (), {**kwargs, "past_key_values": cache}


def _check_implementation(decoder: nn.Module) -> None:
    """Refuse a pass that would leave the arrays out without a word."""
    chosen = decoder.config._attn_implementation  # type: ignore[union-attr]
    if chosen not in (IMPLEMENTATION, PROBE):
        raise ValueError(
            f"this model is on arrays, and its attention was set to {chosen!r} since, which computes without them; call"
            f" model.set_attn_implementation({IMPLEMENTATION!r}), or aimc.to_digital(model) for the digital model"
        )


def _check_checkpointing(decoder: nn.Module) -> None:
    """Refuse gradients that would belong to other noise than the loss: checkpointing puts back torch's global generator
    only."""
    if not (decoder.training and any(getattr(module, "gradient_checkpointing", False) for module in decoder.modules())):
        return
    own = (layer for _, layer in gain_cell_layers(decoder) if layer.generator is not None and layer.draws is None)
    if any(layer.machine.noise.is_fresh() for layer in own):
        raise ValueError(
            "gradient checkpointing computes each layer again, and a generator of the model's own would then draw other"
            " noise, so gradients would belong to another pass; call aimc.models.set_generator(model, None) and"
            " seed with torch.manual_seed"
        )


def _put_cache_back(decoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """After a pass, also a failed one: no layer remembers a cache."""
    _let_go(decoder)


def _let_go(decoder: nn.Module) -> None:
    for attention in _remembered(decoder):
        if attention.layer_cache is not None:
            attention.layer_cache.close()
            attention.layer_cache = None


def _arrays_in(decoder: nn.Module) -> list[GainCellAttention]:
    """All layers on arrays: a walk over every module, too long for every token."""
    return [attention for _, attention in gain_cell_layers(decoder)]


def _remembered(decoder: nn.Module) -> list[GainCellAttention]:
    """The layers on arrays as they were when the present text began. A copy of the decoder remembers its own."""
    return decoder._gain_cell_arrays  # type: ignore[return-value]


def _remember(decoder: nn.Module, arrays: list[GainCellAttention]) -> None:
    """Written only where it changes, for a compiled graph would be made anew."""
    before = _remembered(decoder)
    if len(before) != len(arrays) or any(a is not b for a, b in zip(before, arrays, strict=True)):
        decoder._gain_cell_arrays = arrays  # type: ignore[assignment]


def _describe(cache: object) -> str:
    filled = isinstance(cache, Cache) and cache.get_seq_length()
    return f"{type(cache).__name__} of {filled} tokens" if filled else type(cache).__name__
