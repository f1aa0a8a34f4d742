"""The vectors of a :class:`aimc.nn.features.FeatureMap`, and statistics behind it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aimc.calibrate.moments import LayerMoments
from aimc.models.arrays import gain_cell_layers
from aimc.nn.features import FeatureMap

Parts = dict[str, Tensor]
"""Query `[B, H, T, D]`, key and value `[B, H_kv, T, D]`, and perhaps output, by name."""


def feature_maps(model: PreTrainedModel) -> dict[int, FeatureMap]:
    """The map of each layer on arrays that has one, by the layer's number in the model."""
    return {layer.layer: layer.features for _, layer in gain_cell_layers(model) if layer.features is not None}


def by_feature(parts: Parts) -> Parts:
    """Query, key and value as :class:`Moments` tells their features apart, `[B, H_kv·D, T, 1]`: the queries of all
    heads that read a K/V head together."""
    query = parts["query"].unflatten(1, (parts["key"].shape[1], -1)).flatten(2, 3)
    return {
        part: x.transpose(2, 3).flatten(1, 2)[..., None]
        for part, x in (("query", query), ("key", parts["key"]), ("value", parts["value"]))
    }


def in_front(maps: Mapping[int, FeatureMap], number: int, parts: Parts) -> Parts:
    """The parts of a digital layer :func:`by_feature`, in front of its map; nothing of a layer without one.

    Raises:
        ValueError: the layer has other heads than the one on arrays.
    """
    if number not in maps:
        return {}
    _require_heads(number, maps[number], parts["key"])
    return by_feature(parts)


@torch.no_grad()
def set_features(features: FeatureMap, found: LayerMoments) -> None:
    """Centres of keys and values, and how much more the queries vary in a feature than the keys.

    Args:
        features: of a layer; changed in place.
        found: moments of :func:`by_feature`.
    """
    shape = features.key_centre.shape
    features.key_centre.copy_(found["key"].mean.view(shape))
    features.value_centre.copy_(found["value"].mean.view(shape))
    spread = found["query"].std / found["key"].std.clamp(min=1e-6)
    features.key_scale.copy_(spread.clamp(min=1e-6).sqrt().view(shape))


def behind(maps: Mapping[int, FeatureMap], number: int, parts: Parts) -> Parts:
    """The parts of a digital layer as the scalers of the layer on arrays meet them; those of a layer without a map as
    they are.

    Raises:
        ValueError: the layer has other heads than the one on arrays.
    """
    if number not in maps:
        return parts
    features = maps[number]
    _require_heads(number, features, parts["key"])
    at = features.key_centre.device
    (query, key, value), _ = features.before(*(parts[part].to(at) for part in ("query", "key", "value")))
    return {"query": query, "key": key, "value": value, "output": features.undone(parts["output"].to(at))}


def _require_heads(number: int, features: FeatureMap, key: Tensor) -> None:
    (n_heads, size), (_, found, _, found_size) = features.key_centre.shape, key.shape
    if (found, found_size) != (n_heads, size):
        raise ValueError(
            f"layer {number}: the reference has {found} K/V heads of {found_size} features where the model has"
            f" {n_heads} of {size}; use the digital model that this one was converted from"
        )
