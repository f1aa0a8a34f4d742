"""The whole chip: attention on gain cells, projections and MLPs on static tiles, and what is left for a digital
unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aimc.circuit.cost.attention import Breakdown, Cost, attention_cost
from aimc.circuit.cost.model import LM_HEAD, digital_rest
from aimc.circuit.cost.parameters import CostParameters
from aimc.circuit.cost.report import si, table
from aimc.circuit.cost.shape import ModelShape
from aimc.circuit.cost.static import StaticCost, TileParameters, hermes_chip, static_cost
from aimc.hardware import Hardware

OTHER = "other linear layers"
"""What is neither the LM head nor on tiles."""
STEPS_PER_ATTENTION, STEPS_PER_MLP = 2, 2
"""Products that follow each other in a layer: q, k and v from one input, output projection; up (and gate), down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipCost:
    """Per token of one sequence."""

    attention: Cost
    """Gain cells, all layers."""
    static: StaticCost
    """Static tiles, all layers on them."""
    rest_energy_j: Breakdown
    """What stays digital, joule per token: the LM head and linear layers that are not on tiles. Norms, embeddings and
    sampling are not counted."""
    rest_latency_s: Breakdown
    """Likewise, second per token."""

    @property
    def energy_j(self) -> float:
        """Joule per token."""
        return self.attention.energy_j.total + self.static.total_energy_j + self.rest_energy_j.total

    @property
    def latency_s(self) -> float:
        """Second per token of one sequence: everything one after the other."""
        return self.attention.latency_s.total + self.static.latency_s + self.rest_latency_s.total

    @property
    def area_m2(self) -> float:
        """Arrays and tiles, square metre; the digital unit is not counted."""
        return self.attention.area_m2.total + self.static.area_m2

    @property
    def tokens_per_s(self) -> float:
        """Of one sequence, which waits for each of its tokens."""
        return 1 / self.latency_s

    @property
    def tokens_per_j(self) -> float:
        """Tokens a joule."""
        return 1 / self.energy_j

    def __str__(self) -> str:
        parts = [
            (
                "attention, gain cells",
                self.attention.energy_j.total,
                self.attention.latency_s.total,
                self.attention.area_m2.total,
            ),
            (
                f"linear layers, {self.static.n_tiles} static tiles",
                self.static.total_energy_j,
                self.static.latency_s,
                self.static.area_m2,
            ),
            *(
                (f"{name}, digital", self.rest_energy_j[name], self.rest_latency_s[name], None)
                for name in self.rest_energy_j
            ),
            ("total", self.energy_j, self.latency_s, self.area_m2),
        ]
        rows = [(name, si(energy, "J"), si(latency, "s"), si(area, "m²")) for name, energy, latency, area in parts]
        text = table(("per token", "energy", "latency", "area"), rows)
        return f"{text}\n{self.tokens_per_s:,.0f} tokens a second of one text, {self.tokens_per_j:,.0f} tokens a joule"


def chip_cost(
    shape: ModelShape,
    hardware: Hardware,
    parameters: CostParameters | None = None,
    tiles: TileParameters | None = None,
    *,
    layers: Sequence[tuple[int, int]] | None = None,
    head_on_tiles: bool = False,
    window_fill: int | None = None,
) -> ChipCost:
    """What a token costs on a whole analog chip.

    Args:
        shape: of the model.
        hardware: of the gain-cell arrays.
        parameters: unit numbers of arrays and digital unit; None: the defaults, the published point.
        tiles: of the static tiles; None: those of the published 64-core chip,
            :func:`aimc.circuit.cost.static.hermes_chip`.
        layers: `(in_features, out_features)` of what is on tiles, without embeddings; None: all projections and MLPs of
            the shape (and its head). Two products of attention and two of an MLP follow each other at most; where only
            MLPs with a gate are on tiles, that counts the gate twice.
        head_on_tiles: whether the LM head is on tiles (it is then part of `layers`, where they are given) or digital.
        window_fill: tokens in the arrays, as for :func:`aimc.circuit.attention_cost`.

    Raises:
        ConfigError, ValueError: as :func:`aimc.circuit.attention_cost` and
            :func:`aimc.circuit.cost.static.static_cost`.
    """
    on_tiles = shape.linear_layers(head=head_on_tiles) if layers is None else list(layers)
    steps = min(len(on_tiles), STEPS_PER_ATTENTION * shape.n_attention + STEPS_PER_MLP * shape.layers + head_on_tiles)
    energy, latency = digital_rest(shape, parameters)
    of_head = 0 if head_on_tiles else shape.lm_head_macs
    macs = {LM_HEAD: of_head, OTHER: shape.digital_macs - of_head - sum(a * b for a, b in on_tiles)}
    if macs[OTHER] < 0:
        raise ValueError(
            f"layers: they hold {-macs[OTHER]:,} weights more than the model's linear layers have; leave embeddings"
            " out, and say head_on_tiles=True if the LM head is among them"
        )
    share = {name: n / shape.lm_head_macs for name, n in macs.items() if n}  # all digital products cost alike
    return ChipCost(
        attention=attention_cost(shape, hardware, parameters, window_fill),
        static=static_cost(on_tiles, tiles or hermes_chip(), n_steps=steps),
        rest_energy_j=Breakdown({name: energy[LM_HEAD] * part for name, part in share.items()}),
        rest_latency_s=Breakdown({name: latency[LM_HEAD] * part for name, part in share.items()}),
    )
