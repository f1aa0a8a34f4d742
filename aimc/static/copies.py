"""A model on the tiles of another: a copy of it put on tiles, and what the tiles of a model are."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from aimc.models.conversion import convert
from aimc.static.config import Static, as_static
from aimc.static.tiles import calibrate_input_ranges, require_static, static_layers


def on_tiles(model: PreTrainedModel, static: Any, batches: Sequence[Tensor]) -> PreTrainedModel:
    """A copy of the model with its linear layers on tiles and their input ranges measured on `batches`; no training."""
    whole = copy.deepcopy(model)
    convert(whole, as_static(static))
    calibrate_input_ranges(whole, batches)
    return whole


def static_of(model: PreTrainedModel) -> Static:
    """What puts another model of the same architecture on the same tiles.

    Raises:
        ValueError: no static tiles.
    """
    require_static(model)
    configs = {name: copy.deepcopy(layer.tiles[0].rpu_config) for name, layer in static_layers(model)}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    names = {id(layer): name for name, layer in static_layers(model)}
    return Static(
        rpu_config=next(iter(configs.values())),
        layers=[name for name in configs if name not in (names.get(id(head)), names.get(id(embedding)))],
        overrides=configs,
        head=id(head) in names,
        embeddings=id(embedding) in names,
    )
