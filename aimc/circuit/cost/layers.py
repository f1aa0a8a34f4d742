"""Which layers of a decoder have attention, and how far back each sees, from what Hugging Face configs say of it.

Understood, the first that a config has (an object's attributes, or the keys of its `config.json`):

- a word a layer: `layer_types`, `layers_block_type`, `attention_layers`, `block_types` (repeated), of Qwen, Gemma,
  Jamba, Zamba, GPT-Neo, RecurrentGemma;
- a letter a layer: `hybrid_override_pattern`, where `*` is attention, of Nemotron-H;
- numbers of the layers with attention: `full_attn_idxs`, `attn_layer_indices`, `hybrid_layer_ids`, of LFM2, Bamba,
  Zamba 2;
- a period: `attn_layer_period` with `attn_layer_offset`, `full_attention_interval`, of Jamba, Qwen3-Next;
- which layers slide: `sliding_window_pattern` (a number, or letters of which L slides) of Gemma 3, Cohere 2, EXAONE 4;
  `max_window_layers` (from that layer on) of Qwen;
- nothing: all layers have attention, and all slide if there is a window, as in GPT-2, Llama, Mistral.

The window is `sliding_window`, `attention_window_size` or `window_size`, of chunked attention `attention_chunk_size`;
`use_sliding_window=False` switches it off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

LISTS = ("layer_types", "layers_block_type", "attention_layers", "block_types")
INDICES = ("full_attn_idxs", "attn_layer_indices", "hybrid_layer_ids")
WINDOWS = ("sliding_window", "attention_window_size", "window_size")
FULL = ("full_attention", "attention", "global", "hybrid")
SLIDING = ("sliding_attention", "local", "hybrid_sliding")
CHUNKED = "chunked_attention"
NONE = ("linear_attention", "mamba", "mamba2", "recurrent", "conv", "mlp", "moe")
"""Words for a layer that has no attention of queries and keys."""
_ALTERNATING = ("gemma2",)
"""Model types whose every second layer slides, which their older `config.json` does not say."""


def attention_windows(config: Any, layers: int) -> dict[int, int | None]:
    """Layers with attention, by number from 0, and the tokens that each sees at most, itself included; None: all.

    Args:
        config: a decoder's config object, or the mapping of its `config.json`.
        layers: of the decoder.

    Raises:
        ValueError: a word for a layer that is not known here, a list that does not fit the layers, a layer that slides
            in a config without a window, or no layer with attention.
    """
    kinds = _kinds(config, layers)
    if len(kinds) < layers:
        raise ValueError(f"the config describes {len(kinds)} layers and has {layers}; make both agree")
    found = {i: _window(config, kind) for i, kind in enumerate(kinds[:layers]) if kind not in NONE}
    if not found:
        raise ValueError(f"none of the {layers} layers has attention, so there is nothing for arrays to do")
    return found


def get(config: Any, name: str) -> Any:
    """A setting; None where the config has none of that name."""
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _kinds(config: Any, layers: int) -> Sequence[str]:
    """A word a layer."""
    for name in LISTS:
        words = get(config, name)
        if isinstance(words, (list, tuple)) and words and all(isinstance(word, str) for word in words):
            if name == "block_types":
                words = [words[i % len(words)] for i in range(layers)]
                local = get(config, "attention_window_size") is not None
                return ["sliding_attention" if word == "attention" and local else word for word in words]
            return words
    if pattern := get(config, "hybrid_override_pattern"):
        return ["attention" if letter == "*" else "mamba" for letter in pattern]
    has_attention = _has_attention(config)
    slides = _slides(config)
    return [
        "mamba" if not has_attention(i) else "sliding_attention" if slides(i) else "full_attention"
        for i in range(layers)
    ]


def _has_attention(config: Any) -> Callable[[int], bool]:
    for name in INDICES:
        if (indices := get(config, name)) is not None:
            return set(indices).__contains__
    if period := get(config, "attn_layer_period"):
        offset = get(config, "attn_layer_offset") or 0
        return lambda i: i % period == offset
    if period := get(config, "full_attention_interval"):
        return lambda i: (i + 1) % period == 0
    return lambda i: True


def _slides(config: Any) -> Callable[[int], bool]:
    if _length(config) is None:
        return lambda i: False
    pattern = get(config, "sliding_window_pattern")
    if isinstance(pattern, str) and pattern:
        return lambda i: pattern[i % len(pattern)] == "L"
    if pattern is None and get(config, "model_type") in _ALTERNATING:
        pattern = 2
    if pattern:
        return lambda i: (i + 1) % pattern != 0
    first = get(config, "max_window_layers") if get(config, "use_sliding_window") is not None else None
    return lambda i: first is None or i >= first


def _length(config: Any) -> int | None:
    if get(config, "use_sliding_window") is False:
        return None
    return next((value for name in WINDOWS if (value := get(config, name)) is not None), None)


def _window(config: Any, kind: str) -> int | None:
    if kind in FULL:
        return None
    if kind not in SLIDING and kind != CHUNKED:
        raise ValueError(
            f"the config has a layer of {kind!r}: how many keys it reads is not known here, and its cost depends on it;"
            " build ModelShape by hand with its windows"
        )
    length = get(config, "attention_chunk_size") if kind == CHUNKED else _length(config)
    if length is None:
        raise ValueError(
            f"the config has a layer of {kind!r} and no window among {', '.join(WINDOWS)}, attention_chunk_size: how"
            " many keys it reads decides its cost; set it in the config"
        )
    return length
