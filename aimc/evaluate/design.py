"""A design: circuit, arrays and unit costs together, with one parameter changed by its path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from aimc.circuit import GainCell, to_cost, to_hardware
from aimc.circuit.cost.attention import Cost, attention_cost
from aimc.circuit.cost.converters import longest_pulses
from aimc.circuit.cost.parameters import CostParameters
from aimc.circuit.cost.shape import ModelShape
from aimc.hardware import ConfigError, Hardware, Noise, presets

Change = str | Callable[["Design", Any], "Design"]
"""A path such as `cell.capacitance_f` or `hardware.readout.n_levels`; or what makes a design of a design and a value,
for what changes together."""

WRITTEN = dict.fromkeys(
    ("hardware.leakage.token_time_s", "hardware.leakage.step_latency_s"),
    "what latency comes of: pulses, levels, write_latency_s, …",
)
"""What every design works out itself, and what to change in its place."""
WRITTEN_BY_CELL = {
    "hardware.cell": "the circuit, cell.…",
    "hardware.leakage.tau_s": "cell.leak_conductance_s, cell.capacitance_f or the write transistor",
    "hardware.leakage.target_v": "cell.leak_target_v or cell.hold_v",
    **{
        f"hardware.noise.{name}": "cell.capacitance_f, temperature_k or sizes"
        for name in ("write_v", "read_qk", "read_av")
    },
    **{
        f"hardware.noise.{name}": "sizes or Pelgrom coefficients of the transistors"
        for name in ("mismatch_gain", "mismatch_offset_v", "tau_spread")
    },
    "hardware.input_dac.inl": "cell.read_line_time_s",
    **{
        f"costs.{name}": "sizes, biases or cell.pulse_max_s"
        for name in ("read_energy_qk_j", "read_energy_av_j", "read_pulse_s", "pulse_max_s")
    },
    **{f"costs.{name}": "the circuit's sizes and capacitances" for name in ("write_energy_j", "cell_area_m2")},
}
"""What a circuit decides."""


@dataclass(slots=True, kw_only=True)
class Design:
    """What a designer holds in the hand."""

    cell: GainCell | None = None
    """The circuit; None: the polynomial in `hardware.cell`, and the read energies in `costs`."""
    hardware: Hardware = field(default_factory=presets.gain_cell_cmos)
    """Sizes, levels, and column errors; what the circuit says replaces what stands here."""
    costs: CostParameters = field(default_factory=CostParameters)
    """Unit costs. The clock is its `pulse_max_s / (pulse_levels − 1)`; of a circuit, its own longest pulse ÷ the same,
    so a converter of more levels has longer pulses."""
    degree: int = 3
    """Of the polynomial that stands for the circuit."""
    noise: bool = True
    """Whether anything random is emulated; False: for what a parameter does to the deterministic cell alone."""

    def changed(self, change: Change, value: Any) -> Design:
        """This design with one thing changed.

        Raises:
            ConfigError: a path that leads nowhere or to what :meth:`realised` writes itself, or a value that is
                refused.
        """
        if callable(change):
            return change(self, value)
        self._check_own(change)
        return _replaced(self, change.split("."), value, change)

    def _check_own(self, path: str) -> None:
        """Refuse to change what the rest of the design decides: the sweep would be flat, and say nothing of it."""
        for written, instead in (WRITTEN | (WRITTEN_BY_CELL if self.cell is not None else {})).items():
            if path == written or path.startswith(f"{written}."):
                raise ConfigError(
                    f"parameter {path!r}: the design works it out, so that a change would be lost; change {instead}"
                )

    def realised(self, shape: ModelShape, window_fill: int | None = None) -> tuple[Hardware, Cost]:
        """The machine that a model of this shape runs on, and what it costs.

        A token takes as long as attention in all layers (the digital rest not counted, as published), so slower pulses
        also leak longer.

        Args:
            shape: of the model.
            window_fill: tokens in the arrays, as for :func:`aimc.circuit.attention_cost`.

        Raises:
            ConfigError: refreshed cells, whose perplexity a parallel pass does not know.
        """
        costs, cell = self.costs, self.cell
        if costs.refresh_interval_s is not None:
            raise ConfigError(
                f"costs.refresh_interval_s={costs.refresh_interval_s:g}: a perplexity is measured in parallel passes,"
                " whose cells are never refreshed, so it would not belong to this cost; leave it None here, and look"
                " at refreshes with aimc.GainCellCache(model, refresh_every=…)"
            )
        phi_pulse_s = None
        if cell is not None:
            pulse_s, phi_pulse_s = longest_pulses(self.hardware, replace(costs, pulse_max_s=cell.pulse_max_s))
            costs = replace(to_cost(replace(cell, pulse_max_s=pulse_s), costs), pulse_max_s=cell.pulse_max_s)
            cell = replace(cell, pulse_max_s=pulse_s)
        cost = attention_cost(shape, self.hardware, costs, window_fill)
        hardware = replace(self.hardware, leakage=replace(self.hardware.leakage, token_time_s=cost.latency_s.total))
        if cell is not None:
            hardware = to_hardware(
                cell, hardware, degree=self.degree, head_size=shape.head_size, phi_pulse_s=phi_pulse_s
            )
        return (hardware if self.noise else replace(hardware, noise=Noise())), cost


def _replaced(owner: Any, path: list[str], value: Any, whole: str) -> Any:
    """A copy of nested dataclasses in which the field at the end of the path is another."""
    name, *rest = path
    known = [f.name for f in fields(owner)] if is_dataclass(owner) else []
    if name not in known:
        if owner is None and whole.startswith("cell."):
            raise ConfigError(
                f"parameter {whole!r}: this design has no circuit; give one, Design(cell=aimc.circuit.silicon_cell())"
            )
        has = f"it has {', '.join(known)}" if known else "it has no parts"
        raise ConfigError(f"parameter {whole!r}: {type(owner).__name__} has no field {name!r}; {has}")
    return replace(owner, **{name: _replaced(getattr(owner, name), rest, value, whole) if rest else value})
