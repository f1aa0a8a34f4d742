"""The joint view: what a circuit parameter does to perplexity and to energy, latency and area, at once."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aimc.calibrate.statistics import match_statistics
from aimc.circuit import CircuitWarning
from aimc.circuit.cost.attention import Cost
from aimc.circuit.cost.report import si, table
from aimc.circuit.cost.shape import ModelShape
from aimc.evaluate.design import Change, Design
from aimc.evaluate.measurement import Measurement, MeasurementFields, measurement_of
from aimc.evaluate.perplexity import Perplexity, perplexity
from aimc.hardware import ConfigError, Hardware
from aimc.models.arrays import gain_cell_layers, hardware_of, set_hardware


@dataclass(slots=True, kw_only=True)
class Point:
    """One value of the parameter."""

    label: str
    """The value in words."""
    perplexity: Perplexity
    """Of the model on it."""
    cost: Cost
    """Of attention in all layers, per token."""
    hardware: Hardware
    """What it was."""
    warnings: list[str] = field(default_factory=list)
    """What the circuit warns of."""
    on_front: bool = False
    """Whether no other point has both a lower perplexity and less energy."""

    @property
    def energy_j(self) -> float:
        """Energy per token of attention in all layers, joule."""
        return self.cost.energy_j.total


@dataclass(slots=True, kw_only=True)
class Tradeoff:
    """A sweep of one parameter."""

    parameter: str
    """What was changed."""
    points: list[Point] = field(default_factory=list)
    """In the order of the values."""
    refused: dict[str, str] = field(default_factory=dict)
    """Values that no circuit or array can have, and why."""
    digital: float | None = None
    """Perplexity of the digital model, where it was given."""

    @property
    def front(self) -> list[Point]:
        """The Pareto front, by energy."""
        return sorted((point for point in self.points if point.on_front), key=lambda point: point.energy_j)

    def __str__(self) -> str:
        rows = [
            (
                p.label,
                str(p.perplexity),
                *_cost_words(p.cost),
                "●" if p.on_front else "",
                "; ".join(w.partition(":")[0] for w in p.warnings),
            )
            for p in self.points
        ]
        text = table((self.parameter, "perplexity", "energy/token", "latency", "area", "front", "warnings"), rows)
        return "\n".join([text, *(f"{label}: refused, {why}" for label, why in self.refused.items())])


def sweep(
    model: PreTrainedModel,
    tokens: Tensor,
    parameter: Change,
    values: Iterable[Any],
    measurement: Measurement | None = None,
    *,
    design: Design | None = None,
    batches: Sequence[Tensor] = (),
    name: str | None = None,
    unit: str = "",
    digital: float | None = None,
    on_point: Callable[[Point], None] | None = None,
    **fields: Unpack[MeasurementFields],
) -> Tradeoff:
    """Perplexity and cost of a converted model as one parameter of a design changes. The model is left as it is.

    The model was trained on the hardware that it carries. On every other, its keys and values keep their place in the
    range of stored voltages, and with `batches` its scalers are matched, without a gradient, to the statistics that it
    had on its own.

    Args:
        model: converted.
        tokens: int64 `[N]`, the text of the perplexity.
        parameter: path into the design, e.g. `cell.capacitance_f`, `cell.read_v`, `hardware.array.window`,
            `hardware.readout.n_levels`; or a function of (design, value) that gives a design, for what changes together
            (a supply, its read pulse and its write gate).
        values: of the parameter.
        measurement: as for :func:`aimc.perplexity`; None: one chip, the whole text.
        design: where to start; None: the model's own hardware and the published costs.
        batches: token batches for the matching; none: it is left out.
        name: of the parameter; None: its path.
        unit: of the values, to write them with an SI prefix.
        digital: perplexity of the digital model, to be drawn beside.
        on_point: called after each point.
        fields: of the measurement, in place of its own.

    Returns:
        A point a value. Values that are refused are listed with the reason; only if all are, it is an error.

    Raises:
        ValueError: a model that is not converted, a path that leads nowhere, or no value that can be built.
    """
    own = hardware_of(model)
    measurement = measurement_of(measurement, fields)
    design = design or Design(hardware=own)
    shape, fill = shape_of(model), measurement.context or int(model.config.max_position_embeddings)
    result = Tradeoff(
        parameter=name or (parameter if isinstance(parameter, str) else parameter.__name__), digital=digital
    )
    trial = copy.deepcopy(model)
    for value in values:
        label = _label(value, unit)
        try:
            changed = design.changed(parameter, value)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", CircuitWarning)
                hardware, cost = changed.realised(shape, min(fill, changed.hardware.array.window))
        except ValueError as error:  # a ConfigError is one too
            result.refused[label] = str(error)
            continue
        said = [str(w.message) for w in caught if issubclass(w.category, CircuitWarning)]
        moved(trial, model, own, hardware, batches)
        measured = perplexity(trial, tokens, measurement)
        result.points.append(Point(label=label, perplexity=measured, cost=cost, hardware=hardware, warnings=said))
        if on_point is not None:
            on_point(result.points[-1])
    if not result.points:
        reasons = "; ".join(f"{label}: {why}" for label, why in result.refused.items())
        raise ConfigError(f"{result.parameter}: no value can be built ({reasons or 'none was given'}); give others")
    mark_front(result.points)
    return result


def shape_of(model: PreTrainedModel) -> ModelShape:
    """The layers on arrays, of a model whose others are digital; for the cost of attention, so that how large an MLP is
    (of a hybrid, layer by layer another) need not be known."""
    on_arrays = [layer.layer for _, layer in gain_cell_layers(model)]
    return ModelShape.from_config(model.config, on_arrays=on_arrays, mlp_matrices=2, mlp_width=1)


def moved(
    trial: PreTrainedModel, model: PreTrainedModel, own: Hardware, hardware: Hardware, batches: Sequence[Tensor]
) -> None:
    """Put `trial`, a copy of `model`, on other hardware, with the scalers that the model has on its `own`: keys and
    values at the same place in the range of stored voltages and, with `batches`, statistics matched to the model's."""
    set_hardware(trial, hardware)
    old, new = own.storage_dac, hardware.storage_dac
    stretch = (new.v_max - new.v_min) / (old.v_max - old.v_min)
    with torch.no_grad():
        for (_, to), (_, source) in zip(gain_cell_layers(trial), gain_cell_layers(model), strict=True):
            to.load_state_dict(source.state_dict(), strict=False)  # what only one of the two machines has
            for line, given in ((to.memory_key, source.memory_key), (to.memory_value, source.memory_value)):
                if line is not None and given is not None:  # charge over volt
                    line.scale.div_(stretch)
            for scaler in (to.key_scaler, to.value_scaler):
                scaler.scale.mul_(stretch)
                scaler.offset.sub_(old.v_min).mul_(stretch).add_(new.v_min)
    if batches:
        # stored voltages of another range have other statistics, by intent; then q and output alone are matched
        parts = (
            ("query", "key", "value", "output") if stretch == 1.0 and old.v_min == new.v_min else ("query", "output")
        )
        match_statistics(trial, model, batches, parts=parts)


def mark_front(points: list[Point]) -> None:
    """Tell each point whether it is on the Pareto front of perplexity and energy."""
    for point in points:
        point.on_front = math.isfinite(point.perplexity.mean) and not any(
            other.energy_j <= point.energy_j
            and other.perplexity.mean <= point.perplexity.mean
            and (other.energy_j, other.perplexity.mean) != (point.energy_j, point.perplexity.mean)
            for other in points
        )


def _label(value: Any, unit: str) -> str:
    return (
        si(value, unit)
        if isinstance(value, (int, float)) and unit
        else (f"{value:g}" if isinstance(value, float) else str(value))
    )


def _cost_words(cost: Cost) -> tuple[str, str, str]:
    return si(cost.energy_j.total, "J"), si(cost.latency_s.total, "s"), si(cost.area_m2.total, "m²")
