"""The vectors of a :class:`aimc.nn.features.FeatureMap`, and statistics behind it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from aimc.calibrate.moments import LayerMoments
from aimc.nn.features import FeatureMap

Parts = dict[str, Tensor]
"""Query `[B, H, T, D]`, key and value `[B, H_kv, T, D]`, and perhaps output, by name."""


def by_feature(number: int, parts: Parts) -> Parts:
    """Query, key and value as :class:`Moments` tells their features apart, `[B, H_kv·D, T, 1]`: the queries of all
    heads that read a K/V head together."""
    n_heads = parts["key"].shape[1]
    query = parts["query"].unflatten(1, (n_heads, -1)).flatten(2, 3)
    return {
        part: x.transpose(2, 3).flatten(1, 2)[..., None]
        for part, x in (("query", query), ("key", parts["key"]), ("value", parts["value"]))
    }


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
    (n_heads, size), (_, found, _, found_size) = features.key_centre.shape, parts["key"].shape
    if (found, found_size) != (n_heads, size):
        raise ValueError(
            f"layer {number}: the reference has {found} K/V heads of {found_size} features where the model has"
            f" {n_heads} of {size}; use the digital model that this one was converted from"
        )
    at = features.key_centre.device
    (query, key, value), _ = features.before(*(parts[part].to(at) for part in ("query", "key", "value")))
    return {"query": query, "key": key, "value": value, "output": features.undone(parts["output"].to(at))}
