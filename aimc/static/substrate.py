"""Static tiles as a substrate: the linear layers of a model go onto them, come back from a record, and leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from aimc.models.arrays import gain_cell_layers
from aimc.models.report import ConversionReport
from aimc.models.substrates import register
from aimc.static.config import Static
from aimc.static.layers import StaticPlan, layers_of, plan, put_in_place, rebuild, take_out
from aimc.static.tiles import STATIC_KEY, TILES, has_static, is_aihwkits_own, static_layers


@dataclass(slots=True)
class TilesPlan:
    """Layers on tiles, not yet in the model."""

    made: StaticPlan

    def put(self, model: PreTrainedModel, report: ConversionReport) -> None:
        """Replace the layers, and list every module with weights of its own: gain cell, static tile or digital."""
        put_in_place(model, self.made)
        for name, layer in static_layers(model):
            kind, n_tiles = type(layer.tiles[0].rpu_config).__name__, len(layer.tiles)
            tiles = f"{n_tiles} {'tile' if n_tiles == 1 else 'tiles'} ({kind})"
            report.static[name] = f"{layer.in_features} × {layer.out_features} on {tiles}"
        report.elsewhere = {
            name: type(module).__name__ for name, module in model.named_modules() if is_aihwkits_own(module)
        }
        analog = [*report.static, *report.elsewhere, *(name for name, _ in gain_cell_layers(model))]
        report.digital = [
            name
            for name, module in model.named_modules()
            if _has_weights(module) and not any(f"{name}.".startswith(f"{part}.") for part in analog)
        ]
        report.notes += self.made.notes


class StaticTiles:
    """The substrate that a :class:`aimc.static.Static` asks for."""

    config_type = Static
    record_key = STATIC_KEY
    child = TILES

    def is_under(self, model: PreTrainedModel) -> bool:
        """Whether any layer is on static tiles."""
        return has_static(model)

    def plan(self, model: PreTrainedModel, config: Static, skip_layers: frozenset[int] | None) -> TilesPlan:
        """Build the layers on tiles; see :func:`aimc.static.layers.plan`, whose errors it raises."""
        return TilesPlan(plan(model, config))

    def take_out(self, model: PreTrainedModel) -> None:
        """The digital layers again."""
        take_out(model)

    def read_record(self, record: Any) -> tuple[dict[str, Any], bool]:
        """The configuration of each layer, and whether head and embedding were parted.

        Raises:
            ValueError: of an unknown version, or damaged.
            MissingAihwkit: aihwkit is not installed.
        """
        return layers_of(record), bool(record.get("parted"))

    def rebuild(self, model: PreTrainedModel, read: tuple[dict[str, Any], bool]) -> None:
        """The same layers on tiles of the same configurations; they come back not programmed."""
        rebuild(model, read[0], parted=read[1])

    def finish(self, model: PreTrainedModel, read: tuple[dict[str, Any], bool]) -> None:
        """Nothing more: what was programmed is not saved."""


register(StaticTiles())


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None
