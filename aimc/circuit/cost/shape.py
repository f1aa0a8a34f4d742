"""The sizes of a decoder that its cost depends on, from numbers or from a Hugging Face config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

_MATRICES = {
    **dict.fromkeys(("gpt2", "gpt_neox", "gptj", "opt", "phi", "starcoder2", "nemotron"), 2),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "olmo2", "granite", "smollm3"), 3
    ),
}
"""Matrices of the MLP by model type: up and down, or a gate as well."""
_NAMES = {
    "layers": ("num_hidden_layers", "n_layer"),
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
    """L, attention layers, one after another."""
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

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"{f.name}={value!r}: a model has a whole number of them, at least one; give a positive int"
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
    def projection_macs(self) -> int:
        """Digital multiply-accumulates per token of the q, k, v and output projections, all layers: L·2·hidden·(H +
        H_kv)·D."""
        return self.layers * 2 * self.hidden * (self.query_heads + self.kv_heads) * self.head_size

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
        layer = [*attention, *[(self.hidden, self.mlp_width)] * up, (self.mlp_width, self.hidden)]
        return layer * self.layers + ([(self.hidden, self.vocabulary)] if head else [])

    def attention_macs(self, tokens: int) -> int:
        """Multiply-accumulates per token of both attention products over so many keys, all layers: what the arrays take
        over."""
        return self.layers * self.query_heads * 2 * self.head_size * tokens

    def kv_values(self, tokens: int) -> int:
        """Stored keys and values of so many tokens, all layers: what a digital machine reads per token."""
        return self.layers * self.kv_heads * 2 * self.head_size * tokens

    @classmethod
    def from_config(cls, config: Any, **overrides: int) -> ModelShape:
        """The shape of a Hugging Face model.

        Args:
            config: a decoder's config object (`model.config`) or the mapping of its `config.json`, of GPT-2's or
                Llama's kind.
            overrides: fields that are known better.

        Raises:
            ValueError: a size is missing, sizes do not divide, or the model is a mixture of experts, whose MLP is not
                counted.
        """
        for name in _EXPERTS:
            if (_get(config, name) or 1) > 1:
                raise ValueError(
                    f"config.{name}={_get(config, name)}: which experts a token takes decides its cost, and that is not"
                    " counted; build ModelShape by hand with the width that a token sees"
                )
        shape: dict[str, int] = {
            name: _need(config, name, overrides) for name in ("layers", "query_heads", "hidden", "vocabulary")
        }
        shape["kv_heads"] = _get(config, "num_key_value_heads") or shape["query_heads"]
        shape["head_size"] = overrides.get("head_size") or _get(config, "head_dim") or _head_size(shape)
        gpt2 = _get(config, "n_embd") is not None
        if gpt2 and _first(config, _NAMES["mlp_width"]) is None:
            shape["mlp_width"] = 4 * shape["hidden"]  # n_inner=None means that
        else:
            shape["mlp_width"] = _need(config, "mlp_width", overrides)
        shape["mlp_matrices"] = overrides.get("mlp_matrices") or (2 if gpt2 else _matrices(config))
        return cls(**(shape | overrides))


def _matrices(config: Any) -> int:
    kind = _get(config, "model_type")
    if kind not in _MATRICES:
        raise ValueError(
            f"config.model_type={kind!r}: whether its MLP has a gate is not known here, and that is a third of its"
            " cost; give it by hand, ModelShape.from_config(config, mlp_matrices=2) (up, down) or 3 (gate, up, down)"
        )
    return _MATRICES[kind]


def _get(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _first(config: Any, names: tuple[str, ...]) -> Any:
    return next((value for name in names if (value := _get(config, name)) is not None), None)


def _need(config: Any, field: str, overrides: Mapping[str, int]) -> int:
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
