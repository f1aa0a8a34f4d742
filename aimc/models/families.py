"""Which layers of a model can go onto arrays: two tokens are sent through it, and what reaches the attention interface
is looked at.

That finds heads, sizes and windows as the model uses them, whatever its family calls them, and it finds out a model
that computes its attention elsewhere. Settings that only show in longer texts are asked for by name.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from aimc.models.modes import evaluating

FAMILIES = {
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX (Pythia)",
    "opt": "OPT",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma 2",
    "phi3": "Phi-3",
}
"""Model type to name, of the families that are tested; others are accepted by what they do."""
HYBRIDS = {
    "lfm2": "LFM2",
    "jamba": "Jamba",
    "bamba": "Bamba",
    "falcon_h1": "Falcon-H1",
    "zamba2": "Zamba2",
    "qwen3_next": "Qwen3-Next",
    "h3": "H3",
    "stripedhyena": "StripedHyena",
}
"""Likewise, of families whose other layers, or other halves of layers, have a state instead of attention and stay as
they are."""
STATE_LAYERS = ("conv", "linear_attention", "moe", "mlp")
"""Kinds of layers, in a config's `layer_types`, that have no attention."""
ATTENTION_LAYERS = ("full_attention", "sliding_attention", "hybrid")
"""Kinds that have one; a hybrid has a state beside it."""
DROPOUTS = ("attn_pdrop", "attention_dropout", "attention_probs_dropout_prob", "attn_dropout")
"""What the families call the dropout of attention weights."""
PROBE = "gain_cell_probe"
"""Name of the attention implementation while the two tokens pass."""
TRIAL_TOKENS = 2


_BLOCKED_SETTINGS: tuple[tuple[str, Callable[[Any], bool], str, str], ...] = (
    (
        "is_encoder_decoder",
        bool,
        "an encoder-decoder attends to another text than its own past",
        "use a decoder-only model",
    ),
    (
        "add_cross_attention",
        bool,
        "the arrays attend to the model's own past only",
        "use a decoder without cross-attention",
    ),
    *(
        (
            name,
            test,
            "ALiBi adds a bias to every score, and the arrays' charge has none",
            "use a model with learned or rotary positions",
        )
        for name, test in (
            ("alibi", bool),
            ("use_alibi", bool),
            ("position_embedding_type", lambda value: value == "alibi"),
        )
    ),
    (
        "attn_logit_softcapping",
        lambda value: value is not None,
        "the arrays do not soft-cap their scores",
        (
            "set config.attn_logit_softcapping=None before loading (from_pretrained(name, config=config)) and check the"
            " digital model's perplexity"
        ),
    ),
    (
        "is_causal",
        lambda value: value is False,
        "the arrays hold a token's past only, not its future",
        "use a causal decoder",
    ),
    (
        "use_bidirectional_attention",
        bool,
        "the arrays hold a token's past only, not its future",
        "use a causal decoder",
    ),
    (
        "num_slots",
        bool,
        "its memory is slots that every token writes again, and the arrays of attention hold a token a slot",
        "put the slots into cells, aimc.models.gsa.put_on_cells(model, hardware)",
    ),
    (
        "num_kv_shared_layers",
        bool,
        "layers that share keys and values have no arrays of their own",
        "use a model whose layers share none",
    ),
)
"""Setting of a config, whether a value of it is refused, why, and what to do."""
_WINDOW_ONLY = "the arrays attend to a window of the newest tokens, to nothing else"
_PLAIN_LAYERS = "use a model whose layers see all of their past, or a sliding window of it"


@dataclass(slots=True, kw_only=True, eq=False)
class AttentionLayer:
    """One self-attention layer, as its two tokens reached the attention interface."""

    name: str
    """Full name of the module in its model."""
    module: nn.Module
    index: int
    """Layer of the model, counted from 0."""
    n_heads: int
    """H, query heads."""
    n_kv_heads: int
    """Key and value heads, each shared by `n_heads / n_kv_heads` query heads."""
    head_size: int
    """D, features of a query, a key and a value."""
    sliding_window: int | None
    """Tokens that the layer sees, itself included; None: all."""
    keywords: dict[str, Any] = field(default_factory=dict)
    """What else the module tells the attention interface."""


def attention_layers(model: PreTrainedModel) -> list[AttentionLayer]:
    """Every self-attention layer of a decoder, in order. The model is unchanged afterwards; hooks on it have seen two
    tokens pass.

    Raises:
        TypeError: not a transformers model.
        ValueError: attention that gain-cell arrays cannot stand in for; the message names the setting and its value.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"a {type(model).__name__} is no transformers PreTrainedModel, whose attention could be found; pass the"
            " model itself"
        )
    _check_config(model)
    if len(without_attention(model)) == getattr(model.config, "num_hidden_layers", None):
        _refuse(
            model,
            f"none of its {model.config.num_hidden_layers} layers has attention, so nothing would be replaced",
            "use a hybrid with attention in some layers, or measure it as the digital model that it is",
        )
    trial = _try_two_tokens(model)
    if not trial.calls:
        _refuse(
            model,
            "nothing reached transformers' attention interface, so nothing would be replaced",
            "pass the whole decoder",
        )
    names = {id(module): name for name, module in model.named_modules()}
    layers = [
        _described(model, names[id(module)], module, tensors, keywords) for module, tensors, keywords in trial.calls
    ]
    _check_indices(model, layers)
    _check_masks(model, layers, trial.masks)
    return layers


def layer_number(name: str, attention: nn.Module) -> int | None:
    """The layer of an attention module, from 0, as it says itself; of a copy of a block with tied weights (Zamba2's say
    -1), as its full name says. None: neither does."""
    index = getattr(attention, "layer_idx", None)
    if isinstance(index, int) and index < 0:
        index = next((int(part) for part in name.split(".") if part.isdigit()), None)
    return index if isinstance(index, int) else None


def without_attention(model: PreTrainedModel) -> list[int]:
    """Layers of a hybrid that have a state, or nothing, instead of attention, by their numbers."""
    types = getattr(model.config, "layer_types", None) or []
    return [number for number, kind in enumerate(types) if kind in STATE_LAYERS]


def attention_dropout(model: PreTrainedModel) -> str | None:
    """Name and value of the setting that drops attention weights out, if it is not zero."""
    values = ((name, getattr(model.config, name, None)) for name in DROPOUTS)
    return next((f"{name}={value}" for name, value in values if value), None)


def _check_config(model: PreTrainedModel) -> None:
    configs = [
        ("config", model.config),
        ("config.attn_config", getattr(model.config, "attn_config", None)),
    ]  # the second is MPT's
    for where, config in configs:
        for name, is_refused, why, remedy in _BLOCKED_SETTINGS:
            if config is not None and is_refused(value := getattr(config, name, None)):
                _refuse(model, f"{where}.{name}={value!r}: {why}", remedy)
    types = set(getattr(model.config, "layer_types", None) or [])
    # Where a class has a cache of its own, its states cannot stand in one cache with the arrays.
    shares_cache = getattr(model, "_supports_default_dynamic_cache", lambda: True)()
    if own := sorted(types - {*ATTENTION_LAYERS, *(STATE_LAYERS if shares_cache else ())}):
        _refuse(model, f"config.layer_types has {', '.join(own)}: {_WINDOW_ONLY}", _PLAIN_LAYERS)
    if model.main_input_name != "input_ids":
        _refuse(model, f"main_input_name={model.main_input_name!r}: it reads no tokens", "use a causal language model")
    if model.config.get_text_config(decoder=True) is not model.config:
        parts = ", ".join(sorted(model.config.sub_configs))
        _refuse(
            model,
            f"config.sub_configs={parts}: a model of several parts",
            "convert a text-only checkpoint of the language model",
        )
    for flag, supported in (
        # Of hybrids the class says no, for its other layers; whether attention comes through is tried below.
        ("_supports_attention_backend", model._supports_attention_backend or bool(types - {*ATTENTION_LAYERS[:2]})),
        ("_can_set_attn_implementation()", model._can_set_attn_implementation()),
    ):
        if supported:
            continue
        _refuse(
            model,
            f"its class has {flag}={supported}: it computes attention itself, not through transformers' attention"
            " interface",
            f"use a model that does, for example {', '.join(FAMILIES.values())}",
        )


@dataclass(slots=True)
class _Trial:
    """What reached the two interfaces, in order."""

    calls: list[tuple[nn.Module, tuple[Tensor, Tensor, Tensor], dict[str, Any]]] = field(default_factory=list)
    masks: list[dict[str, Any]] = field(default_factory=list)


_TRIAL: ContextVar[_Trial] = ContextVar("trial")


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    given = {name: value for name, value in kwargs.items() if value is not None}
    _TRIAL.get().calls.append((module, (query, key, value), given))
    return (
        query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]),
        None,
    )  # [B, T, H, D of the values]


def _mask(*args: Any, **kwargs: Any) -> None:
    _TRIAL.get().masks.append(kwargs)


AttentionInterface.register(PROBE, _attend)
AttentionMaskInterface.register(PROBE, _mask)


def _try_two_tokens(model: PreTrainedModel) -> _Trial:
    """A pass without cache, dropout or gradient; the attention gives zeros."""
    device = next(model.parameters()).device
    trial = _Trial()
    before, token = model.config._attn_implementation, _TRIAL.set(trial)
    try:
        model.set_attn_implementation(PROBE)
        with evaluating(model), torch.no_grad():
            model(input_ids=torch.zeros(1, TRIAL_TOKENS, dtype=torch.long, device=device), use_cache=False)
    except Exception as error:  # it is somebody's code; whatever it raises, it could not be tried
        reason = str(error).splitlines()[0] if str(error) else "no message"
        raise ValueError(
            f"{_describe(model)}: a trial with {TRIAL_TOKENS} tokens failed ({type(error).__name__}: {reason}), so"
            " nothing is known of its attention; pass a causal language model that takes input_ids alone"
        ) from error
    finally:
        model.set_attn_implementation(before)
        _TRIAL.reset(token)
    return trial


def _described(
    model: PreTrainedModel,
    name: str,
    module: nn.Module,
    tensors: tuple[Tensor, Tensor, Tensor],
    keywords: dict[str, Any],
) -> AttentionLayer:
    query, key, value = tensors
    is_causal = keywords.get("is_causal", getattr(module, "is_causal", None))
    if is_causal is not True:
        _refuse(
            model,
            f"{name}.is_causal={is_causal}: the arrays hold a token's past only, not its future",
            "use a causal decoder",
        )
    if not query.shape[3] == key.shape[3] == value.shape[3]:
        _refuse(
            model,
            f"{name}: queries and keys of {query.shape[3]} features, values of {value.shape[3]} (latent attention):"
            " both arrays of a head have the same number of columns",
            "use a model whose keys and values have one head size",
        )
    if not query.shape[2] == key.shape[2] == value.shape[2] == TRIAL_TOKENS or query.shape[1] % key.shape[1]:
        _refuse(
            model,
            f"{name}: {TRIAL_TOKENS} tokens became queries {list(query.shape)} and keys {list(key.shape)}: no attention"
            " of tokens to their own past",
            "use a decoder with plain self-attention",
        )
    index = layer_number(name, module)
    if index is None:
        _refuse(
            model,
            f"{name}.layer_idx={getattr(module, 'layer_idx', None)}: cells and caches belong to numbered layers",
            "use a decoder that numbers its layers",
        )
    return AttentionLayer(
        name=name,
        module=module,
        index=index,
        n_heads=query.shape[1],
        n_kv_heads=key.shape[1],
        head_size=query.shape[3],
        sliding_window=keywords.get("sliding_window"),
        keywords=keywords,
    )


def _check_indices(model: PreTrainedModel, layers: list[AttentionLayer]) -> None:
    found, n_layers = [layer.index for layer in layers], model.config.num_hidden_layers
    shared = [layer.name for layer in layers if layer.module.layer_idx < 0]  # type: ignore[operator]
    if twice := [name for name in shared if shared.count(name) > 1]:
        _refuse(
            model,
            f"{twice[0]} is called more than once in a pass: an attention block that several layers share, and arrays"
            " belong to one layer",
            "use a model whose layers have an attention of their own",
        )
    if found != [i for i in range(n_layers) if i not in without_attention(model)]:
        _refuse(
            model,
            f"config.num_hidden_layers={n_layers}, but a pass calls the attention of layers {found}: layers without"
            " attention, called twice, or with a second attention",
            "use a decoder whose every layer has one self-attention",
        )


def _check_masks(model: PreTrainedModel, layers: list[AttentionLayer], masks: list[dict[str, Any]]) -> None:
    """Two tokens are too few to tell a mask by its entries: go by what the layers are called, and by how the masks were
    asked for."""
    if any(not asked.get("allow_is_causal_skip", True) for asked in masks):
        _refuse(model, f"it lays something over the causal mask: {_WINDOW_ONLY}", _PLAIN_LAYERS)
    types = getattr(model.config, "layer_types", None) or []
    told = {layer.sliding_window for layer in layers if layer.sliding_window is not None}
    masked = {asked["local_size"] for asked in masks if asked.get("local_size") is not None}
    lost = [
        layer.name
        for layer in layers
        if types and types[layer.index] == "sliding_attention" and layer.sliding_window is None
    ]
    if (
        lost or not told <= masked or not (types or masked <= told)
    ):  # with layer types, there may be a mask that no layer asks for
        _refuse(
            model,
            f"config.sliding_window={getattr(model.config, 'sliding_window', None)}: its masks have windows of"
            f" {sorted(masked)} tokens, its layers tell the attention interface {sorted(told)}, so it is unknown which"
            " the arrays should have",
            "load the model with config.sliding_window=None, if its texts are shorter than that",
        )


def _describe(model: PreTrainedModel) -> str:
    return f"{type(model).__name__} (model_type={getattr(model.config, 'model_type', '')!r})"


def _refuse(model: PreTrainedModel, why: str, remedy: str) -> NoReturn:
    raise ValueError(f"{_describe(model)} cannot go onto gain-cell arrays: {why}; {remedy}")
