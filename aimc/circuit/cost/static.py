"""What the products of static tiles cost: energy, time and area of a token's passes through crossbars, from published
chips.

The published figures are of whole cores, measured: crossbar, input pulse modulators (DACs), ADCs and the digital
scaling behind them together. No breakdown of them into converters and array is known here, so none is given.

Sources:
    [K22] R. Khaddam-Aljameh et al., "HERMES-Core: a 1.59-TOPS/mm2 PCM on 14-nm CMOS in-memory compute core using
    300-ps/LSB linearized CCO-based ADCs", IEEE Journal of Solid-State Circuits 57 (2022): 256 × 256, 256 ADCs, 1.008
    TOPS, 10.5 TOPS/W, 1.59 TOPS/mm2.
    [L23] M. Le Gallo et al., "A 64-core mixed-signal in-memory compute chip based on phase-change memory for deep
    neural network inference", Nature Electronics (2023): 64 cores of 256 × 256, 8-bit inputs and outputs; 63.1 TOPS at
    9.76 TOPS/W with one read phase, 16.1 TOPS at 2.48 TOPS/W with four.
    [H14] M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC (2014): 0.1 pJ for a 32-bit
    addition in 45 nm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from aimc.hardware.checks import check_fields

OPERATIONS_PER_MAC = 2
"""A multiply and an add, as the field counts operations."""


@dataclass(slots=True, kw_only=True)
class TileParameters:
    """One crossbar with all that it needs for a matrix-vector product."""

    n_inputs: int = 256
    """Rows of the crossbar."""
    n_outputs: int = 256
    """Columns, each with an ADC."""
    mvm_energy_j: float = 0.0
    """Energy of one matrix-vector product of the whole tile, converters and digital scaling included, in joule."""
    mvm_latency_s: float = 0.0
    """Its time, in second."""
    area_m2: float = 0.0
    """Area of a tile with its converters, in square metre; 0 where none is published."""
    partial_sum_energy_j: float = 0.0
    """Energy of one digital addition, where several tiles share an output, in joule."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("n_inputs", "n_outputs"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)}: a crossbar has at least one; give 256 for a published one"
                )
        for name in ("mvm_energy_j", "mvm_latency_s", "area_m2", "partial_sum_energy_j"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: no product costs less than nothing; give 0 or more")


@dataclass(slots=True, kw_only=True)
class StaticCost:
    """Cost of one token's passes through static tiles."""

    energy_j: dict[str, float] = field(default_factory=dict)
    """By part: `tiles` and `partial sums`, in joule a token."""
    latency_s: float = 0.0
    """Time of a token from the first layer to the last, one layer after the other, in second."""
    mvm_latency_s: float = 0.0
    """Time of one layer, in second: the pace at which tokens of different texts can follow each other."""
    area_m2: float = 0.0
    """All tiles, in square metre."""
    n_tiles: int = 0
    """Crossbars."""
    n_macs: int = 0
    """Multiply-accumulates that the model asks for, a token; the crossbars do more where they are not full."""
    utilisation: float = 0.0
    """Share of the crossbars' cells that hold weights."""

    @property
    def total_energy_j(self) -> float:
        """Joule a token."""
        return sum(self.energy_j.values())

    @property
    def energy_per_mac_j(self) -> float:
        """Joule a multiply-accumulate that the model asks for."""
        return self.total_energy_j / self.n_macs

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of one text, which waits for each of its tokens; attention and digital parts not counted."""
        return 1 / self.latency_s if self.latency_s else math.inf

    @property
    def pipelined_tokens_per_s(self) -> float:
        """Tokens a second of many texts, one in each layer."""
        return 1 / self.mvm_latency_s if self.mvm_latency_s else math.inf

    @property
    def tokens_per_j(self) -> float:
        """Tokens a joule."""
        return 1 / self.total_energy_j if self.total_energy_j else math.inf


def hermes_core() -> TileParameters:
    """The single core, as published [K22]."""
    return _tile(tops=1.008, tops_per_w=10.5, tops_per_mm2=1.59)


def hermes_chip(read_phases: int = 1) -> TileParameters:
    """One of the 64 cores of the whole chip [L23], one read phase (fast) or four (precise); area of the single core
    [K22].

    Raises:
        ValueError: another number of phases.
    """
    published = {1: (63.1, 9.76), 4: (16.1, 2.48)}
    if read_phases not in published:
        raise ValueError(f"read_phases={read_phases}: the chip was measured with 1 and with 4; use one of these")
    tops, tops_per_w = published[read_phases]
    parameters = _tile(tops=tops / 64, tops_per_w=tops_per_w)
    parameters.area_m2 = hermes_core().area_m2
    return parameters


def static_cost(
    layers: tuple[int, int] | Sequence[tuple[int, int]], parameters: TileParameters, *, n_steps: int | None = None
) -> StaticCost:
    """Cost of one token through layers on static tiles. A tile that is partly used costs as much as a full one.

    Args:
        layers: `(in_features, out_features)` of each layer, or of a single one.
        parameters: of the tiles.
        n_steps: products that follow each other; None: all of them, one layer after the other. Fewer where layers share
            their input (a Llama's q, k and v).

    Raises:
        ValueError: no layer, a size below one, or steps that layers cannot have.
    """
    shapes: list[tuple[int, int]] = [layers] if layers and isinstance(layers[0], int) else list(layers)  # type: ignore[list-item, arg-type]
    if not shapes or any(size < 1 for shape in shapes for size in shape):
        raise ValueError(f"layers={shapes}: each needs (in_features, out_features), both at least 1")
    steps = len(shapes) if n_steps is None else n_steps
    if not 1 <= steps <= len(shapes):
        raise ValueError(f"n_steps={n_steps}: {len(shapes)} layers are passed in 1 to {len(shapes)} steps")
    n_tiles, n_sums, n_macs = 0, 0, 0
    for n_in, n_out in shapes:
        tiles_in = math.ceil(n_in / parameters.n_inputs)
        n_tiles += tiles_in * math.ceil(n_out / parameters.n_outputs)
        n_sums += (tiles_in - 1) * n_out
        n_macs += n_in * n_out
    return StaticCost(
        energy_j={"tiles": n_tiles * parameters.mvm_energy_j, "partial sums": n_sums * parameters.partial_sum_energy_j},
        latency_s=steps * parameters.mvm_latency_s,
        mvm_latency_s=parameters.mvm_latency_s,
        area_m2=n_tiles * parameters.area_m2,
        n_tiles=n_tiles,
        n_macs=n_macs,
        utilisation=n_macs / (n_tiles * parameters.n_inputs * parameters.n_outputs),
    )


def _tile(*, tops: float, tops_per_w: float, tops_per_mm2: float | None = None, size: int = 256) -> TileParameters:
    """From figures as they are published: tera-operations a second, per watt and per square millimetre, of one full
    crossbar."""
    operations = OPERATIONS_PER_MAC * size * size
    return TileParameters(
        n_inputs=size,
        n_outputs=size,
        mvm_energy_j=operations / (tops_per_w * 1e12),
        mvm_latency_s=operations / (tops * 1e12),
        area_m2=0.0 if tops_per_mm2 is None else tops / tops_per_mm2 * 1e-6,
        partial_sum_energy_j=0.1e-12,
    )
