"""The whole characterisation: every model at every length, then what follows from it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from aimc.evaluate.characterise.budget import Budget, free_bytes, ladder
from aimc.evaluate.characterise.crossover import Crossover, Winner, crossovers, winners
from aimc.evaluate.characterise.estimates import MACHINES, CostEstimate, Parts, estimates
from aimc.evaluate.characterise.measuring import WATCHED_TOKENS, Bench, Known, measure_point
from aimc.evaluate.characterise.point import Point, series
from aimc.evaluate.characterise.roofline import Roofline, measure_roofline
from aimc.evaluate.characterise.subjects import Subject
from aimc.evaluate.energy import find_meter
from aimc.hardware import ConfigError, Hardware, presets

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
ESTIMATED = "estimated energy per output token"
_COMPARED = {
    "first_token_s": "time to first token",
    "token_s": "time per output token",
    "peak_bytes": "peak memory",
    "token_j": "energy per output token",
}


@dataclass(slots=True, kw_only=True)
class Plan:
    """What is measured, and on what."""

    lengths: Sequence[int] = LENGTHS
    """Tokens of the prompt."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    dtype: torch.dtype = torch.float32
    """Of weights and activations."""
    batch: int = 1
    """Sequences at once."""
    new_tokens: int = 8
    """Tokens behind the first whose time is taken."""
    repetitions: int = 3
    """Runs of a point whose times are taken, at most: as many as `point_s` holds."""
    point_s: float = 60.0
    """Second that one run of a point may take; beside its timed runs it is profiled and counted, which is slower."""
    memory_bytes: float | None = None
    """That a point may hold beyond the weights; None: 80 % of what is free."""
    max_operators: float = 1.5e6
    """Operators of a call that is profiled and counted."""
    hardware: Hardware = field(default_factory=presets.gain_cell_cmos)
    """Arrays of the estimates."""
    most_slots: int | None = None
    """Slots that an array has at most; None: as many as there are tokens."""
    seed: int = 0
    """Of random weights and of the prompt."""


@dataclass(slots=True, kw_only=True)
class Characterisation:
    """What was found."""

    points: list[Point] = field(default_factory=list)
    estimates: list[CostEstimate] = field(default_factory=list)
    roofline: Roofline | None = None
    crossovers: list[Crossover] = field(default_factory=list)
    winners: list[Winner] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    """Model to why it has no estimate on arrays."""


def characterise(
    subjects: Sequence[Subject], plan: Plan, told: Callable[[Point], None] = lambda point: None
) -> Characterisation:
    """Measure every model at every length that fits, and estimate the machines of the cost model.

    Args:
        subjects: the models, one after another in memory.
        plan: what is measured.
        told: called with each point as soon as it is done.
    """
    found = Characterisation(roofline=measure_roofline(plan.device, plan.dtype))
    meter, source = find_meter(plan.device)
    bench = Bench(
        device=plan.device,
        batch=plan.batch,
        new_tokens=plan.new_tokens,
        repetitions=plan.repetitions,
        budget=Budget(seconds=plan.point_s, memory_bytes=0.0, max_events=plan.max_operators),
        meter=meter,
        energy_source=source,
        seed=plan.seed,
    )
    assert found.roofline is not None
    for subject in subjects:
        points = _measure(subject, plan, bench, told)
        found.points += points
        weights = next((p.n_read_weights for p in points if p.n_read_weights), None)
        if weights is None:
            continue
        parts = Parts.of(subject.name, subject.config, weights)
        try:
            found.estimates += estimates(
                parts,
                sorted(set(plan.lengths)),
                plan.hardware,
                found.roofline,
                value_bytes=plan.dtype.itemsize,
                most_slots=plan.most_slots,
            )
        except ConfigError as error:  # what was measured stays
            found.notes[subject.name] = str(error)
        if parts.note:
            found.notes[subject.name] = parts.note
    found.crossovers, found.winners = all_crossovers(found), all_winners(found)
    return found


def _measure(subject: Subject, plan: Plan, bench: Bench, told: Callable[[Point], None]) -> list[Point]:
    """One model at every length; lengths between them that only feed the forecast are thrown away."""
    lengths, points, known = sorted(set(plan.lengths)), [], Known()
    behind = max(plan.new_tokens + 1, WATCHED_TOKENS)
    longest = lengths[-1] + behind
    model = subject.build(longest=longest, device=plan.device, dtype=plan.dtype, seed=plan.seed)
    bench.budget = Budget(
        seconds=plan.point_s,
        memory_bytes=plan.memory_bytes or free_bytes(plan.device),
        max_events=plan.max_operators,
    )
    for length in ladder(lengths):
        point = Point(model=subject.name, weights=subject.weights, length=length)
        if subject.longest is not None and length + behind > subject.longest:
            point.not_run = f"not run (the checkpoint holds {subject.longest:,} positions)"
        else:
            measure_point(model, point, bench, known)
        if length in lengths:
            points.append(point)
            told(point)
    del model
    gc.collect()
    if plan.device == "cuda":
        torch.cuda.empty_cache()
    return points


def all_winners(found: Characterisation) -> list[Winner]:
    """Who takes least at each length, of what was measured, and of the estimates of all machines together."""
    models, result = list(dict.fromkeys(point.model for point in found.points)), list[Winner]()
    for name, words in _COMPARED.items():
        result += winners(words, series(found.points, name), models)
    curves: dict[str, dict[int, float]] = {}
    for estimate in found.estimates:
        curves.setdefault(f"{estimate.model}, {estimate.machine}", {})[estimate.length] = estimate.token_j
    return result + winners(ESTIMATED, curves, ())


def all_crossovers(found: Characterisation) -> list[Crossover]:
    """Of what was measured, and of the estimates of each machine, between models; of each model, between machines."""
    result: list[Crossover] = []
    for name, words in _COMPARED.items():
        result += crossovers(words, series(found.points, name))
    for machine in MACHINES:
        curves: dict[str, dict[int, float]] = {}
        for estimate in found.estimates:
            if estimate.machine == machine:
                curves.setdefault(estimate.model, {})[estimate.length] = estimate.token_j
        result += crossovers(f"{ESTIMATED}, {machine}", curves)
    for model in dict.fromkeys(estimate.model for estimate in found.estimates):
        curves = {}
        for estimate in found.estimates:
            if estimate.model == model:
                curves.setdefault(f"{model}, {estimate.machine}", {})[estimate.length] = estimate.token_j
        result += crossovers(f"{ESTIMATED}, between machines", curves)
    return result
