"""Bring a model's scalers to where the hardware works, by statistics alone: no gradient.

Source: the adaptation algorithm of N. Leroux et al., Nature Computational Science (2025): per layer and head, mean and
standard deviation of the scaled q, k, v and of the output are matched to those of a reference model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aimc.calibrate.freedoms import behind, feature_maps, in_front, set_features
from aimc.calibrate.moments import LayerMoments, Moments
from aimc.calibrate.observation import Batches, analog_moments, digital_moments
from aimc.models.arrays import gain_cell_layers, hardware_of
from aimc.nn.attention import PARTS, GainCellAttention

LARGEST_STEP = 4.0
"""Most that one iteration multiplies or divides a gain by: statistics of a saturated head say little about how far to
go."""


@dataclass(slots=True, kw_only=True)
class HeadDeviation:
    """How far one head is from its target."""

    layer: int
    """Its number in the model, in which skipped layers count."""
    part: str
    head: int
    mean: float
    """Deviation of the mean, in target standard deviations."""
    std: float
    """Deviation of the standard deviation, relative."""

    @property
    def size(self) -> float:
        """The larger of the two."""
        return max(abs(self.mean), abs(self.std))


@dataclass(slots=True, kw_only=True)
class MatchReport:
    """How the matching went."""

    iterations: int = 0
    """Updates made."""
    tolerance: float = 0.0
    """Deviation below which a head counts as matched."""
    history: list[float] = field(default_factory=list)
    """Largest deviation of any head before each update, and after the last."""
    unmatched: list[HeadDeviation] = field(default_factory=list)
    """Heads still outside the tolerance, worst first."""

    @property
    def converged(self) -> bool:
        """Whether every head met the tolerance."""
        return not self.unmatched

    def __str__(self) -> str:
        head = (
            f"{self.iterations} iterations, largest deviation {self.history[0]:.3f} → {self.history[-1]:.3f} (tolerance"
            f" {self.tolerance})"
        )
        rows = [
            f"  layer {d.layer} {d.part} head {d.head}: mean off by {d.mean:+.3f} σ, spread by {d.std:+.1%}"
            for d in self.unmatched
        ]
        return "\n".join([head, f"{len(rows)} heads did not meet it" if rows else "every head met it", *rows])


def match_statistics(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    batches: Batches,
    *,
    iterations: int = 10,
    damping: float = 0.7,
    tolerance: float = 0.02,
    parts: Sequence[str] = PARTS,
    on_iteration: Callable[[int, float], None] | None = None,
) -> MatchReport:
    """Change the scalers of a converted model until its statistics are those of the reference.

    `a ← a·(σ*/σ)^damping` and `b` so that the mean moves by `damping·(μ* − μ)`, per layer and head, where σ and μ are
    measured on the scaled q, k and v (before the converters) and on the scaled output. Upstream layers move the
    statistics of those downstream, so it is iterated. Deterministic; in a data-parallel run every process must call it,
    each with batches of its own, and all end with the same scalers, to the bit those of one process with all batches.

    Args:
        model: converted; its scalers change in place.
        reference: converted (all parts can be matched), or digital (only `output` has the same unit).
        batches: the same token batches for both, re-iterable (a list, not a generator).
        iterations: most updates; it stops early when all heads are within `tolerance`.
        damping: step towards the target, in (0, 1].
        tolerance: in units of the target standard deviation.
        parts: which scalers to change.
        on_iteration: called with (updates made so far, largest deviation), before the first update and after each.

    Raises:
        ValueError: a model that is not converted, a reference of another shape or with other layers on arrays, settings
            out of range, parts that there are none of or that the reference cannot give, or features to be centred or
            balanced that were never measured.
    """
    hardware_of(model)
    parts = _checked_parts(parts)
    _check_rule(iterations, damping, tolerance)
    analog_reference = next(gain_cell_layers(reference), None) is not None
    if not analog_reference and parts != ("output",):
        raise ValueError(
            "a digital reference has no scaled q, k, v; pass parts=('output',), or a model converted to the linear cell"
        )
    if any(features.lacks_vectors for features in feature_maps(model).values()):
        raise ValueError(
            "features: what centres and balances them was never measured for this model, so it would be matched"
            " without; begin with aimc.initialise_scalers or aimc.calibrate_ranges"
        )
    batches = list(batches)
    target = analog_moments(reference, batches) if analog_reference else _digital_target(model, reference, batches)
    _check_same_shape(model, target)
    report = MatchReport(tolerance=tolerance)
    while True:
        current = analog_moments(model, batches)
        deviations = _deviations(current, target, parts)
        report.history.append(max(d.size for d in deviations))
        report.unmatched = sorted((d for d in deviations if d.size > tolerance), key=lambda d: -d.size)
        if on_iteration is not None:
            on_iteration(report.iterations, report.history[-1])
        if report.converged or report.iterations == iterations:
            return report
        for _, layer in gain_cell_layers(model):
            for part in parts:
                _step(layer, part, current[layer.layer][part], target[layer.layer][part], damping)
        report.iterations += 1


def _checked_parts(parts: Sequence[str]) -> tuple[str, ...]:
    if isinstance(parts, str):
        raise ValueError(f"parts={parts!r}: a sequence of names is needed; give ({parts!r},)")
    known = [part for part in parts if part in PARTS]
    if not parts or len(known) < len(parts) or len(set(known)) < len(known):
        raise ValueError(f"parts={tuple(parts)}: name one or more of {', '.join(PARTS)}, each once")
    return tuple(parts)


def _check_rule(iterations: int, damping: float, tolerance: float) -> None:
    if not isinstance(iterations, int) or isinstance(iterations, bool) or iterations < 0:
        raise ValueError(f"iterations={iterations}: must be a whole number of at least 0; 10 is usual")
    if not 0 < damping <= 1:
        raise ValueError(f"damping={damping}: must be above 0 and at most 1; 0.7 is usual")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance={tolerance}: must be a finite number of at least 0; 0.02 is usual")


def _digital_target(model: PreTrainedModel, reference: PreTrainedModel, batches: Batches) -> dict[int, LayerMoments]:
    """Moments of those layers of a digital reference that are on arrays in the model, behind the freedoms that these
    take."""
    of_layers = digital_moments(reference, batches, partial(behind, feature_maps(model)))
    wanted = [layer.layer for _, layer in gain_cell_layers(model)]
    if missing := [number for number in wanted if number not in of_layers]:
        raise ValueError(
            f"the reference has no attention layer {', '.join(map(str, missing))}, which the model has on arrays; use a"
            " reference of the same architecture"
        )
    return {number: of_layers[number] for number in wanted}


def _check_same_shape(model: PreTrainedModel, target: dict[int, LayerMoments]) -> None:
    """The same layers, with the same heads: statistics of another layer would be matched without a word."""
    own = {layer.layer: [len(layer.scaler(part).scale) for part in PARTS] for _, layer in gain_cell_layers(model)}
    wanted = {number: [of_layer[part].n_heads for part in PARTS] for number, of_layer in target.items()}
    if own.keys() != wanted.keys():
        raise ValueError(
            f"the model has layers {_numbers(own)} on arrays and the reference {_numbers(wanted)}; use a reference of"
            " the same architecture, converted with the same skip_layers"
        )
    for number, heads in own.items():
        if heads != wanted[number]:
            raise ValueError(
                f"layer {number}: the reference has heads {wanted[number]} (of {', '.join(PARTS)}) where the model has"
                f" {heads}; use a reference of the same architecture"
            )


def _numbers(layers: Iterable[int]) -> str:
    return ", ".join(map(str, layers))


def _deviations(
    current: dict[int, LayerMoments], target: dict[int, LayerMoments], parts: Sequence[str]
) -> list[HeadDeviation]:
    deviations = []
    for number, now in current.items():
        wanted = target[number]
        for part in parts:
            spread = wanted[part].std.clamp(min=torch.finfo(torch.float32).tiny)
            mean = (now[part].mean - wanted[part].mean) / spread
            std = now[part].std / spread - 1
            deviations += [
                HeadDeviation(layer=number, part=part, head=h, mean=float(m), std=float(s))
                for h, (m, s) in enumerate(zip(mean, std, strict=True))
            ]
    return deviations


def _step(layer: GainCellAttention, part: str, now: Moments, wanted: Moments, damping: float) -> None:
    """Move one scaler so that its output's mean and spread go from `now` towards `wanted`."""
    scaler = layer.scaler(part)
    alive = (now.std > 0) & (wanted.std > 0)  # a head whose output never varies has no gain that could be measured
    ratio = torch.where(
        alive, (wanted.std / now.std.clamp(min=torch.finfo(torch.float64).tiny)).pow(damping), torch.ones_like(now.std)
    )
    ratio = ratio.clamp(1 / LARGEST_STEP, LARGEST_STEP)
    mean = now.mean + damping * (wanted.mean - now.mean)
    _set(scaler.offset, mean - ratio * (now.mean - scaler.offset.detach().double().cpu()))
    _set(scaler.scale, ratio * scaler.scale.detach().double().cpu())


def _set(parameter: torch.nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value.to(parameter))


RANGE_IN_STD = {"query": 1.25, "key": 2.25, "value": 2.25}
"""Standard deviations of the digital q, k and v that fill the clip range on one side of its rest: small enough that
values use the levels, large enough that few are clipped. Found by scanning the share of the digital attention output
that the arrays explain."""


def initialise_scalers(
    model: PreTrainedModel, reference: PreTrainedModel, batches: Batches, *, iterations: int = 10
) -> MatchReport:
    """Choose the scalers of a freshly converted model from the statistics of its digital origin, so that values use the
    clip ranges.

    Where the hardware centres, balances or rotates features (`features`), what that needs is measured first. q starts
    at its lower bound with the spread chosen so that :data:`RANGE_IN_STD` deviations reach the longest pulse;
    k and v are centred on the cell's rest voltage likewise; the output scalers are then matched to the digital
    attention's output.

    Args:
        model: converted; its scalers change in place.
        reference: the digital model it was converted from.
        batches: token batches, re-iterable.
        iterations: most updates of the output scalers.

    Returns:
        The report of the output matching.

    Raises:
        ValueError: a model that is not converted, a reference that is, or one of another architecture.
    """
    hardware = hardware_of(model)
    if next(gain_cell_layers(reference), None) is not None:
        raise ValueError("the reference runs on arrays itself; pass the digital model that this one was converted from")
    _check_rule(iterations, 1.0, 0.0)
    batches = list(batches)
    if maps := feature_maps(model):
        found = digital_moments(reference, batches, partial(in_front, maps))
        for number in maps.keys() & found.keys():  # a layer that the reference lacks is refused with all others
            set_features(maps[number], found[number])
    digital = _digital_target(model, reference, batches)
    _check_same_shape(model, digital)
    rest_v = hardware.cell.offset_v
    for _, layer in gain_cell_layers(model):
        of_layer = digital[layer.layer]
        for part, range_in_std in RANGE_IN_STD.items():
            low, rest, high = _range(layer, part, rest_v)
            spread = of_layer[part].std.clamp(min=torch.finfo(torch.float32).eps)
            scale = min(high - rest, rest - low or math.inf) / (range_in_std * spread)
            mean = of_layer[part].mean if part != "query" else torch.zeros_like(of_layer[part].mean)
            _set(layer.scaler(part).scale, scale)
            _set(layer.scaler(part).offset, rest - scale * mean)
    return match_statistics(model, reference, batches, iterations=iterations, parts=("output",))


def _range(layer: GainCellAttention, part: str, rest_v: float) -> tuple[float, float, float]:
    """Lower bound, resting point and upper bound of a converter; a pulse rests at zero width, a cell at its rest
    voltage."""
    if part != "query":
        converter = layer.machine.storage_dac
        return converter.v_min, rest_v, converter.v_max
    converter = layer.machine.input_dac
    return converter.v_min, max(converter.v_min, 0.0), converter.v_max
