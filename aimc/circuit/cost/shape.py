"""The sizes of a decoder that its cost depends on, from numbers or from a Hugging Face config."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from aimc.circuit.cost.layers import attention_windows, get
from aimc.hardware.checks import check_fields

_MATRICES = {
    **dict.fromkeys(("gpt2", "gpt_neox", "gptj", "opt", "phi", "starcoder2", "nemotron"), 2),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "olmo2", "granite", "smollm3"), 3
    ),
}
"""Matrices of the MLP by model type: up and down, or a gate as well."""
_WITHOUT_ROTARY = ("gpt2", "opt")
"""Those of them whose positions are not rotary."""
_ROTARY = ("rope_parameters", "rope_theta", "rope_scaling", "rotary_dim", "rotary_pct", "rotary_emb_base")
"""What only configs with rotary positions have."""
_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "query_heads": ("num_attention_heads", "n_head"),
    "hidden": ("hidden_size", "n_embd"),
    "mlp_width": ("intermediate_size", "ffn_dim", "n_inner"),
    "vocabulary": ("vocab_size",),
}
"""Field to what Hugging Face configs call it."""
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(slots=True, kw_only=True)
class ModelShape:
    """Layers, heads and widths of one decoder; the defaults of the sizes are GPT-2 small's."""

    layers: int = 12
    """L, layers of the decoder, one after another, each with an MLP."""
    attention_layers: int | None = None
    """Layers with attention, each with four projections, on arrays or digital; None: all of them. What the others do
    instead (state space, linear attention, convolution) is not counted."""
    windows: list[int | None] | None = None
    """Of each attention layer on arrays, in order: tokens that it sees at most, itself included (its sliding window);
    None for a layer that sees all of the arrays. None instead of the list: every layer with attention is on arrays and
    sees all. Attention that stays digital is not in the list, and not charged."""
    query_heads: int = 12
    """H, per layer."""
    kv_heads: int = 12
    """H_kv, per layer: pairs of K and V arrays. Divides `query_heads`; `query_heads / kv_heads` heads read the same
    arrays in turn."""
    head_size: int = 64
    """D, features of a head."""
    hidden: int = 768
    """Width of the residual stream."""
    mlp_width: int = 3072
    """Width of the MLP."""
    mlp_matrices: int = 2
    """Matrices of the MLP: 2 (up, down) or 3 (gate, up, down)."""
    vocabulary: int = 50257
    """Rows of the LM head."""
    rotary: bool = False
    """Whether positions turn queries and keys behind their projections, so that what follows (centring, balance,
    rotation of `Hardware.features`) cannot be folded into the weights. Where only some layers do that, it is counted in
    all."""

    def __post_init__(self) -> None:
        check_fields(self)
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ValueError(
                    f"{f.name}={value!r}: a model has a whole number of them, at least one; give a positive int"
                )
        if self.n_attention > self.layers:
            raise ValueError(
                f"attention_layers={self.attention_layers}: the model has layers={self.layers} in all; give no more"
            )
        if self.windows is not None and not (
            1 <= len(self.windows) <= self.n_attention and all(w is None or w >= 1 for w in self.windows)
        ):
            raise ValueError(
                f"windows={self.windows}: one entry for each attention layer on arrays, 1 to {self.n_attention} of"
                " them, and each sees at least one token; give positive numbers, None where no window slides"
            )
        if self.query_heads % self.kv_heads:
            raise ValueError(
                f"query_heads={self.query_heads}, kv_heads={self.kv_heads}: every K/V head serves equally many query"
                " heads; give kv_heads that divides query_heads"
            )

    @property
    def group(self) -> int:
        """Query heads that share one pair of arrays."""
        return self.query_heads // self.kv_heads

    @property
    def n_attention(self) -> int:
        """Layers with attention, on arrays or digital."""
        return self.layers if self.attention_layers is None else self.attention_layers

    @property
    def n_on_arrays(self) -> int:
        """Layers whose attention is on arrays."""
        return self.n_attention if self.windows is None else len(self.windows)

    def held(self, tokens: int) -> Counter[int]:
        """How many of so many tokens a layer holds, to the number of layers on arrays that hold as many."""
        if self.windows is None:
            return Counter({tokens: self.n_attention})
        return Counter(tokens if window is None else min(tokens, window) for window in self.windows)

    @property
    def projection_macs(self) -> int:
        """Digital multiply-accumulates per token of the q, k, v and output projections of all layers
        with attention, each 2·hidden·(H + H_kv)·D."""
        return self.n_attention * 2 * self.hidden * (self.query_heads + self.kv_heads) * self.head_size

    @property
    def mlp_macs(self) -> int:
        """Digital multiply-accumulates per token of the MLPs, all layers."""
        return self.layers * self.mlp_matrices * self.hidden * self.mlp_width

    @property
    def lm_head_macs(self) -> int:
        """Digital multiply-accumulates per token of the LM head."""
        return self.hidden * self.vocabulary

    @property
    def digital_macs(self) -> int:
        """Multiply-accumulates per token that stay digital; each has its own weight."""
        return self.projection_macs + self.mlp_macs + self.lm_head_macs

    def linear_layers(self, *, head: bool = False) -> list[tuple[int, int]]:
        """`(in_features, out_features)` of q, k, v and output projections and of the MLPs of all layers, and of the LM
        head if asked for."""
        queries, keys, up = self.query_heads * self.head_size, self.kv_heads * self.head_size, self.mlp_matrices - 1
        attention = [(self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden)]
        mlp = [*[(self.hidden, self.mlp_width)] * up, (self.mlp_width, self.hidden)]
        head_layer = [(self.hidden, self.vocabulary)] if head else []
        return attention * self.n_attention + mlp * self.layers + head_layer

    def attention_macs(self, tokens: int) -> int:
        """Multiply-accumulates per token of both attention products over so many keys, or a layer's window: what the
        arrays take over."""
        return self.query_heads * 2 * self.head_size * sum(n * count for n, count in self.held(tokens).items())

    def kv_values(self, tokens: int) -> int:
        """Stored keys and values of so many tokens, or a layer's window: what a digital machine in place of the arrays
        reads per token."""
        return self.kv_heads * 2 * self.head_size * sum(n * count for n, count in self.held(tokens).items())

    @classmethod
    def from_config(cls, config: Any, *, on_arrays: Collection[int] | None = None, **overrides: Any) -> ModelShape:
        """The shape of a Hugging Face model.

        Args:
            config: a decoder's config object (`model.config`) or the mapping of its `config.json`, of GPT-2's or
                Llama's kind. Which layers have attention, and how far back each sees, is read as
                :mod:`aimc.circuit.cost.layers` says.
            on_arrays: numbers of the layers whose attention is on arrays; None: all that have attention.
            overrides: fields that are known better. With another number of `layers` than the config has, the first of
                them count.

        Raises:
            ValueError: a size is missing, sizes do not divide, layers are of an unknown kind or have no attention, or
                the model is a mixture of experts, whose MLP is not counted.
        """
        for name in _EXPERTS:
            if (get(config, name) or 1) > 1:
                raise ValueError(
                    f"config.{name}={get(config, name)}: which experts a token takes decides its cost, and that is not"
                    " counted; build ModelShape by hand with the width that a token sees"
                )
        shape: dict[str, Any] = {
            name: _need(config, name, overrides) for name in ("layers", "query_heads", "hidden", "vocabulary")
        }
        shape["kv_heads"] = get(config, "num_key_value_heads") or shape["query_heads"]
        shape["head_size"] = overrides.get("head_size") or get(config, "head_dim") or _head_size(shape)
        gpt2 = get(config, "n_embd") is not None
        if gpt2 and _first(config, _NAMES["mlp_width"]) is None:
            shape["mlp_width"] = 4 * shape["hidden"]  # n_inner=None means that
        else:
            shape["mlp_width"] = _need(config, "mlp_width", overrides)
        shape["rotary"] = _rotary(config)
        shape["mlp_matrices"] = overrides.get("mlp_matrices") or (2 if gpt2 else _matrices(config))
        return cls(**(_attention(config, shape["layers"], on_arrays) | shape | overrides))


def _attention(config: Any, layers: int, on_arrays: Collection[int] | None) -> dict[str, Any]:
    """Fields that say which layers have attention, where they are not the default."""
    found = attention_windows(config, layers)
    chosen = found if on_arrays is None else on_arrays
    if without := sorted(set(chosen) - set(found)):
        raise ValueError(
            f"on_arrays: layers {without} have no attention; those that have are {sorted(found)}; leave the others out"
        )
    windows = [found[i] for i in sorted(set(chosen))]
    special = len(windows) < len(found) or any(window is not None for window in windows)
    return {
        "attention_layers": len(found) if len(found) < layers else None,
        "windows": windows if special else None,
    }


def _rotary(config: Any) -> bool:
    """Whether queries and keys are turned by their position."""
    for name, said in (
        ("position_embedding_type", lambda kind: kind in ("rope", "rotary")),
        ("use_mem_rope", bool),
        ("alibi", lambda on: not on),
    ):
        if name in config if isinstance(config, Mapping) else hasattr(config, name):
            return said(get(config, name))
    kind = get(config, "model_type")  # older files of known models leave the numbers out
    known = kind in _MATRICES and kind not in _WITHOUT_ROTARY
    return known or any(get(config, name) is not None for name in _ROTARY)


def _matrices(config: Any) -> int:
    kind = get(config, "model_type")
    if kind not in _MATRICES:
        raise ValueError(
            f"config.model_type={kind!r}: whether its MLP has a gate is not known here, and that is a third of its"
            " cost; give it by hand, ModelShape.from_config(config, mlp_matrices=2) (up, down) or 3 (gate, up, down)"
        )
    return _MATRICES[kind]


def _first(config: Any, names: tuple[str, ...]) -> Any:
    return next((value for name in names if (value := get(config, name)) is not None), None)


def _need(config: Any, field: str, overrides: Mapping[str, Any]) -> Any:
    value = overrides.get(field, _first(config, _NAMES[field]))
    if value is None:
        raise ValueError(
            f"{field}: the config has none of {', '.join(_NAMES[field])}, and the cost depends on it; "
            f"give it by hand, ModelShape.from_config(config, {field}=…)"
        )
    return value


def _head_size(shape: Mapping[str, int]) -> int:
    size, rest = divmod(shape["hidden"], shape["query_heads"])
    if rest:
        raise ValueError(
            f"hidden={shape['hidden']}, query_heads={shape['query_heads']}: heads are not equally wide; give"
            " head_size=… by hand"
        )
    return size
