"""A whole study: its parts in order, what they will take, and their results as plain data for files and reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from aimc.evaluate.study import grid as grids
from aimc.evaluate.study import layers as of_layers
from aimc.evaluate.study import sensitivity as ranking
from aimc.evaluate.study import specification as circuits
from aimc.evaluate.study import tolerance
from aimc.evaluate.study.effects import Effect, chosen, ideal, without
from aimc.evaluate.study.parts import PARTS
from aimc.evaluate.study.points import Point, Setup
from aimc.evaluate.study.runner import Estimate, Runner, estimate
from aimc.hardware import Hardware, Noise

MOST_LOOKED_UP = 5000
"""Points of a grid that are looked for in the cache before it starts."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """What is asked."""

    start: Setup
    """The model's own machine and the stated sizes of its noise."""
    parts: Sequence[str] = PARTS[:4]
    effects: Sequence[str] = ()
    """By name; none: those that the machine has."""
    rises: Sequence[float] = (0.01, 0.05, 0.2)
    """Of perplexity, for the tolerances."""
    worst: int | None = None
    """How many effects have their tolerance searched, those that cost most alone; None: all."""
    budget: float = 0.02
    """Rise of perplexity that a circuit, or a layer on arrays, may bring."""
    specification: grids.Axes = field(default_factory=dict)
    search: str = "grid"
    trials: int = 40
    few_chips: int = 2
    """Chips of a circuit, a layer or a head."""
    grid: grids.Axes = field(default_factory=dict)
    trained: bool = False
    """Whether each point of the grid is trained first."""
    bootstrap: Mapping[str, Any] = field(default_factory=dict)

    @property
    def machine(self) -> Hardware:
        """With every effect at its stated size."""
        return self.start.machine


def check(runner: Runner, plan: Plan) -> None:
    """Refuse what cannot be, before anything is measured.

    Raises:
        ValueError: an unknown part, effect, path or search; ModuleNotFoundError: a search without its library.
    """
    for part in plan.parts:
        if part not in PARTS:
            raise ValueError(f"parts={part}: there is no such part of a study; there are {', '.join(PARTS)}")
    chosen(plan.machine, plan.effects)
    if plan.worst is not None and "tolerance" in plan.parts and "sensitivity" not in plan.parts:
        raise ValueError(
            f"worst={plan.worst}: the ranking says which those are; add sensitivity to parts, or name effects"
        )
    if "grid" in plan.parts:
        grids.require_axes(plan.start, plan.grid)
    if "specification" in plan.parts:
        if plan.search not in circuits.SEARCHES:
            raise ValueError(f"search={plan.search}: unknown; use {' or '.join(circuits.SEARCHES)}")
        circuits.require_search(plan.search)
        circuits.require_circuits(runner.bench, plan.specification)


def draws_of(runner: Runner, plan: Plan) -> dict[str, int]:
    """Passes over the text at most, by part, nothing cached. Only counted: of a grid no point is made."""
    bench = runner.bench
    n_chips = len(bench.chips)
    few = min(plan.few_chips, n_chips)
    machine = plan.machine
    effects = chosen(machine, plan.effects)
    is_random = bench.is_random(machine)
    n_noises = sum(effect.kind == "noise" for effect in effects)
    every = n_chips if is_random else 1
    bare = n_chips if bench.is_random(ideal(machine)) else 1
    n_circuits = grids.size_of(plan.specification) if plan.search == "grid" else plan.trials
    n_points = grids.size_of(plan.grid) if plan.grid else 0
    noisy_grid = is_random or any(path.startswith("nonideality.") for path in plan.grid)
    return {
        part: count
        for part, count in {
            "sensitivity": bare + every + (len(effects) - n_noises) * bare + (n_noises + len(effects)) * every,
            # Which ones they will be is not known, but noises take the most.
            "tolerance": tolerance.most_draws(
                sorted(effects, key=lambda effect: effect.kind != "noise")[: plan.worst], plan.rises, n_chips, few
            ),
            # To match the scalers to a circuit takes about as long as to read the text twice.
            "specification": 1 + n_circuits * (few + 2),
            # Both models read the text where divergence is measured.
            "layers": 2 * of_layers.count_points(bench) * (few if is_random else 1),
            "grid": (1 + n_points) * (n_chips if noisy_grid else 1),
        }.items()
        if part in plan.parts
    }


def estimated(runner: Runner, plan: Plan, seconds_a_pass: float) -> Estimate:
    """Time and disk of a plan, less what is cached of the ranking and of grids (of at most `MOST_LOOKED_UP` points)."""
    total = sum(draws_of(runner, plan).values())
    n_cached = 0
    effects = chosen(plan.machine, plan.effects)
    if "sensitivity" in plan.parts:
        points = list(ranking.points_of(only(plan.machine, effects), effects).values())
        n_cached += _there(runner, points)
    if "grid" in plan.parts and grids.size_of(plan.grid) <= MOST_LOOKED_UP:
        points, _, _ = grids.points_of(runner.bench, plan.start, plan.grid, trained=plan.trained)
        n_cached += _there(runner, points)
    return estimate(runner, max(0, total - n_cached), n_cached, seconds_a_pass)


def _there(runner: Runner, points: Sequence[Point]) -> int:
    n_chips = len(runner.bench.chips)
    return sum(n_chips if runner.bench.is_random(point.hardware) else 1 for point in points) - runner.missing(points)


def run(runner: Runner, plan: Plan, on_part: Callable[[str, dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Measure all parts.

    Args:
        on_part: called after each with its name and its results so far, of all parts.

    Returns:
        Results by part, plain data; a part that failed holds `error`.
    """
    machine, effects = plan.machine, chosen(plan.machine, plan.effects)
    bootstrap = dict(plan.bootstrap)
    results: dict[str, Any] = {}
    work: dict[str, Callable[[], Any]] = {
        "sensitivity": lambda: ranking.sensitivity(runner, only(machine, effects), effects, **bootstrap),
        "tolerance": lambda: tolerance.tolerances(
            runner, machine, _worst(plan, effects, results), plan.rises, few_chips=plan.few_chips, **bootstrap
        ),
        "specification": lambda: circuits.specification(
            runner,
            plan.specification,
            plan.budget,
            search=plan.search,
            trials=plan.trials,
            chips=plan.few_chips,
            **bootstrap,
        ),
        "layers": lambda: of_layers.layers(runner, machine, plan.budget, chips=plan.few_chips, **bootstrap),
        "grid": lambda: grids.grid(runner, plan.start, plan.grid, trained=plan.trained, **bootstrap),
    }
    for part in PARTS:
        if part not in plan.parts:
            continue
        try:
            found = work[part]()
            results[part] = [asdict(one) for one in found] if isinstance(found, list) else asdict(found)
        except ValueError as error:  # the other parts do not hang on it
            results[part] = {"error": " ".join(str(error).split())}
        if on_part is not None:
            on_part(part, results)
    return results


def _worst(plan: Plan, effects: Sequence[Effect], results: Mapping[str, Any]) -> Sequence[Effect]:
    """The effects whose tolerance is searched: the first of the ranking, as many as are asked for."""
    if plan.worst is None:
        return effects
    rows = results["sensitivity"].get("rows")
    if rows is None:
        raise ValueError("which effects cost most is not known, for the ranking could not be measured")
    names = [row["name"] for row in rows[: plan.worst]]
    return [effect for effect in effects if effect.name in names]


def only(machine: Hardware, effects: Sequence[Effect]) -> Hardware:
    """The machine without the noises that were not chosen: alone is to mean alone."""
    names = {effect.name for effect in effects}
    others = [effect for effect in chosen(machine) if effect.kind == "noise" and effect.name not in names]
    return without(machine, others)


def setup_of(runner: Runner, nonideality: Noise) -> Setup:
    """Where a study of a bench's model starts."""
    own = runner.bench.own
    return Setup(hardware=replace(own, noise=Noise()), nonideality=nonideality)
