"""Kinds of layers, by transformers' names: its caches and aimc's conversion go by them."""

from __future__ import annotations

from collections.abc import Collection

STATE, ATTENTION = "linear_attention", "full_attention"


def layer_types(n_layers: int, attention: Collection[int], setting: str) -> list[str]:
    """The kind of each layer.

    Args:
        attention: numbers of the layers with attention.
        setting: the config's name for them.

    Raises:
        ValueError: a number that is no layer's.
    """
    if unknown := sorted(set(attention) - set(range(n_layers))):
        raise ValueError(
            f"{setting}={list(attention)}: there is no layer {unknown[0]} among {n_layers}, so its attention would be"
            f" lost; give numbers from 0 to {n_layers - 1}"
        )
    return [ATTENTION if number in attention else STATE for number in range(n_layers)]
