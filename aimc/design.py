"""A design: circuit, arrays and unit costs together, with one parameter changed by its path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from aimc import presets
from aimc.circuit import GainCell, to_cost, to_hardware
from aimc.circuit.cost import Cost, attention_cost, converter_steps
from aimc.circuit.cost_parameters import CostParameters
from aimc.circuit.model_shape import ModelShape
from aimc.config import ConfigError, Hardware, Noise

Change = str | Callable[["Design", Any], "Design"]
"""A path such as `cell.capacitance_f` or `hardware.readout.n_levels`; or what makes a design of a design and a value, for what changes together."""


@dataclass(slots=True, kw_only=True)
class Design:
    """What a designer holds in the hand."""

    cell: GainCell | None = None
    """The circuit; None: the polynomial in `hardware.cell`, and the read energies in `costs`."""
    hardware: Hardware = field(default_factory=presets.gain_cell_cmos)
    """Sizes, levels, and column errors; what the circuit says replaces what stands here."""
    costs: CostParameters = field(default_factory=CostParameters)
    """Unit costs. The clock is its `pulse_max_s / (pulse_levels − 1)`; of a circuit, its own longest pulse ÷ the same, so a converter of more
    levels has longer pulses."""
    degree: int = 3
    """Of the polynomial that stands for the circuit."""
    noise: bool = True
    """Whether anything random is emulated; False: for what a parameter does to the deterministic cell alone."""

    def changed(self, change: Change, value: Any) -> Design:
        """This design with one thing changed.

        Raises:
            ConfigError: a path that leads nowhere, or a value that is refused.
        """
        return change(self, value) if callable(change) else _replaced(self, change.split("."), value, change)

    def realised(self, shape: ModelShape, window_fill: int | None = None) -> tuple[Hardware, Cost]:
        """The machine that a model of this shape runs on, and what it costs.

        A token takes as long as attention in all layers (the digital rest not counted, as published), so slower pulses also leak longer.

        Args:
            shape: of the model.
            window_fill: tokens in the arrays, as for :func:`aimc.circuit.attention_cost`.
        """
        costs, cell = self.costs, self.cell
        if cell is not None:
            pulse_s = cell.pulse_max_s * converter_steps(self.hardware.input_dac, "input_dac") / (costs.pulse_levels - 1)
            costs = replace(to_cost(replace(cell, pulse_max_s=pulse_s), costs), pulse_max_s=cell.pulse_max_s)
            cell = replace(cell, pulse_max_s=pulse_s)
        cost = attention_cost(shape, self.hardware, costs, window_fill)
        hardware = replace(self.hardware, leakage=replace(self.hardware.leakage, token_time_s=cost.latency_s.total))
        if cell is not None:
            hardware = to_hardware(cell, hardware, degree=self.degree, head_size=shape.head_size)
        return (hardware if self.noise else replace(hardware, noise=Noise())), cost


def _replaced(owner: Any, path: list[str], value: Any, whole: str) -> Any:
    """A copy of nested dataclasses in which the field at the end of the path is another."""
    name, *rest = path
    known = [f.name for f in fields(owner)] if is_dataclass(owner) else []
    if name not in known:
        where = type(owner).__name__
        raise ConfigError(
            f"parameter {whole!r}: {where} has no field {name!r}; " + (f"it has {', '.join(known)}" if known else "it is no part")
        )
    return replace(owner, **{name: _replaced(getattr(owner, name), rest, value, whole) if rest else value})
