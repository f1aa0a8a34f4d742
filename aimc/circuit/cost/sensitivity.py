"""Which unknown matters: what happens to the totals when each parameter doubles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from aimc.circuit.cost.model import model_cost
from aimc.circuit.cost.parameters import CostParameters, basis_of, unit_of
from aimc.circuit.cost.report import si, table
from aimc.circuit.cost.shape import ModelShape
from aimc.hardware import Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One parameter, doubled."""

    parameter: str
    value: float
    """Before, in the parameter's unit."""
    basis: str
    """`published`, `derived`, `assumed`, or `given` where it is not the default."""
    energy: float
    """Relative change of the energy: 0.5 is half as much again."""
    latency: float
    """Relative change of the latency."""
    area: float
    """Relative change of the area."""

    @property
    def largest(self) -> float:
        """Size of the largest of the three changes."""
        return max(abs(self.energy), abs(self.latency), abs(self.area))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Effects of all parameters that are set, the largest first."""

    scope: str
    """`attention` or `model`."""
    effects: list[Effect]

    def __iter__(self) -> Iterator[Effect]:
        return iter(self.effects)

    def __str__(self) -> str:
        rows = []
        for effect in self.effects:
            if effect.largest > 0:
                changes = [_percent(change) for change in (effect.energy, effect.latency, effect.area)]
                rows.append((effect.parameter, si(effect.value, unit_of(effect.parameter)), effect.basis, *changes))
        text = table((f"doubled ({self.scope})", "from", "basis", "energy", "latency", "area"), rows)
        idle = [effect.parameter for effect in self.effects if effect.largest == 0]
        return text + (f"\nno effect here: {', '.join(idle)}" if idle else "")


def sensitivity(
    shape: ModelShape,
    hardware: Hardware,
    parameters: CostParameters | None = None,
    window_fill: int | None = None,
    *,
    whole_model: bool = False,
) -> Sensitivity:
    """Relative change of total energy, latency and area as each parameter doubles, the others staying.

    Args:
        shape: of the model.
        hardware: of the arrays.
        parameters: where to start; None: the defaults.
        window_fill: as in :func:`aimc.circuit.attention_cost`.
        whole_model: of attention and the digital rest together; False: of attention alone. The area is the arrays' in
            both.

    Raises:
        ConfigError, ValueError: as :func:`aimc.circuit.attention_cost`.
    """
    start = parameters or CostParameters()

    def totals(p: CostParameters) -> tuple[float, float, float]:
        cost = model_cost(shape, hardware, p, baselines=(), window_fill=window_fill)
        area = cost.attention.area_m2.total
        if whole_model:
            return cost.energy_j, cost.latency_s, area
        return cost.attention.energy_j.total, cost.attention.latency_s.total, area

    before = totals(start)
    effects = []
    for f in fields(start):
        value = getattr(start, f.name)
        if value is None:
            continue
        after = totals(replace(start, **{f.name: 2 * value}))
        energy, latency, area = (_without_rounding(new / old - 1) for new, old in zip(after, before, strict=True))
        basis = basis_of(f.name) if value == f.default else "given"
        effects.append(Effect(parameter=f.name, value=value, basis=basis, energy=energy, latency=latency, area=area))
    effects.sort(key=lambda effect: -effect.largest)
    return Sensitivity(scope="model" if whole_model else "attention", effects=effects)


def _percent(change: float) -> str:
    if change == 0:
        return "–"
    return f"{100 * change:+.1f} %" if abs(change) >= 1e-3 else f"{100 * change:+.1g} %"


def _without_rounding(change: float) -> float:
    return 0.0 if abs(change) < 1e-12 else change
