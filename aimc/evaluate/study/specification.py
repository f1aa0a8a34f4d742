"""The cheapest circuit that is good enough: circuits over a grid or by search, their energy, and the front."""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aimc.circuit import CircuitWarning, silicon_cell
from aimc.circuit.cost.attention import Cost
from aimc.evaluate.design import Design
from aimc.evaluate.study.bench import Bench
from aimc.evaluate.study.draws import Measured
from aimc.evaluate.study.grid import Axes
from aimc.evaluate.study.intervals import Bootstrap, Interval
from aimc.evaluate.study.points import Point
from aimc.evaluate.study.runner import Failure, Runner
from aimc.hardware import ConfigError, Hardware, Noise

SEARCHES = ("grid", "optuna")
BATCH = 8
"""Circuits that a search asks for at a time."""


@dataclass(slots=True)
class Circuit:
    """One circuit."""

    values: dict[str, Any]
    """What it was built with, by path into a design."""
    energy_j: float
    """Attention of all layers, per token."""
    latency_s: float
    area_m2: float
    perplexity: Interval
    rise: Interval
    """Over the model on its own machine without noise."""
    noise: dict[str, float]
    """Of the machine that the circuit makes, by field; those that are on."""
    tau_s: float | None
    on_front: bool = False
    """Whether no other circuit has both less energy and a lower perplexity."""
    warnings: list[str] = field(default_factory=list)
    """What the circuit warns of."""


@dataclass(slots=True)
class Specification:
    """What was found."""

    budget: float
    """Rise of perplexity that is allowed, such as 0.02."""
    axes: dict[str, list[Any]]
    circuits: list[Circuit]
    """By energy."""
    cheapest: int | None
    """Of `circuits`, the cheapest within the budget; None: none is."""
    surely: int | None
    """The cheapest whose whole interval is within it; None: none is."""
    refused: list[Failure]
    search: str = "grid"


def realised(bench: Bench, axes: Sequence[str], values: Sequence[Any]) -> tuple[Hardware, Cost, list[str]]:
    """The machine, the cost and the warnings of a circuit: a silicon cell, changed.

    Raises:
        ConfigError: it cannot be built.
    """
    design = Design(cell=silicon_cell(), hardware=replace(bench.own, noise=Noise()))
    for path, value in zip(axes, values, strict=True):
        design = design.changed(path, value)
    window = design.hardware.array.window
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CircuitWarning)
        hardware, cost = design.realised(bench.shape, min(bench.context, window))
    return hardware, cost, [str(w.message) for w in caught if issubclass(w.category, CircuitWarning)]


def specification(
    runner: Runner,
    axes: Axes,
    budget: float = 0.02,
    *,
    search: str = "grid",
    trials: int = 40,
    chips: int = 2,
    seed: int = 0,
    **bootstrap: Any,
) -> Specification:
    """Circuits along the front of energy and perplexity, and the cheapest within a budget.

    Every circuit is a silicon gain cell with the model's own converters and arrays, some of it changed: transistors
    give its curvature, noise, retention and read energy, pulses its latency, and that the time in which cells leak. The
    model's scalers are matched to each without a gradient.

    Args:
        axes: values by path into a :class:`aimc.evaluate.Design`, such as `cell.read_v`, `hardware.input_dac.n_levels`.
        budget: rise of perplexity that is allowed.
        search: `grid`: all combinations; `optuna`: `trials` of them, chosen by Optuna's NSGA-II.
        trials: circuits that a search measures.
        chips: chips a circuit; fewer than a ranking needs, for circuits differ more than chips.
        seed: of a search.
        bootstrap: `resamples`, `confidence`, `seed`.

    Raises:
        ConfigError: a path that leads nowhere, or an unknown search.
        ModuleNotFoundError: Optuna is not installed.
        ValueError: the model on its own machine could not be measured.
    """
    require_circuits(runner.bench, axes)
    own = runner.bench.own
    (base,) = runner.run([Point(hardware=replace(own, noise=Noise()), label="own machine, no noise")], chips)
    if base is None:
        raise ValueError(f"what all is compared with failed: {runner.failures[-1].reason}")
    draws = Bootstrap(n_chips=min(chips, len(runner.bench.chips)), n_stretches=len(base.count), **bootstrap)
    found: list[Circuit] = []
    refused: list[Failure] = []
    proposals = _all(axes) if search == "grid" else _searched(axes, trials, seed, found)
    for combinations in proposals:
        found += _measured(runner, axes, combinations, chips, draws, base, refused)
    _mark_front(found)
    found.sort(key=lambda circuit: circuit.energy_j)
    within = [i for i, circuit in enumerate(found) if circuit.rise.value <= budget]
    surely = [i for i in within if found[i].rise.high <= budget]
    return Specification(
        budget=budget,
        axes={path: list(values) for path, values in axes.items()},
        circuits=found,
        cheapest=within[0] if within else None,
        surely=surely[0] if surely else None,
        refused=refused,
        search=search,
    )


def require_circuits(bench: Bench, axes: Axes) -> None:
    """Check the paths before anything is measured.

    Raises:
        ConfigError: one leads nowhere, or to what a circuit decides itself.
    """
    design = Design(cell=silicon_cell(), hardware=bench.own)
    for path, values in axes.items():
        if not isinstance(values, (list, tuple)) or not values:
            raise ConfigError(f"specification.{path}={values!r}: an axis is a list of values; write {path}:[1,2,3]")
        try:
            design.changed(path, values[0])
        except ConfigError as error:
            if str(error).startswith("parameter"):
                raise ConfigError(f"specification: {error}") from error


def require_search(search: str) -> None:
    """Check that a search can be made.

    Raises:
        ModuleNotFoundError: Optuna is not installed.
    """
    if search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ModuleNotFoundError(
            "search=optuna: Optuna is not installed, so nothing could be searched; pip install optuna, or search=grid"
        )


def _measured(
    runner: Runner,
    axes: Axes,
    combinations: Sequence[Sequence[Any]],
    chips: int,
    draws: Bootstrap,
    base: Measured,
    refused: list[Failure],
) -> list[Circuit]:
    built, points = [], []
    for combination in combinations:
        label = ", ".join(f"{path}={value}" for path, value in zip(axes, combination, strict=True))
        try:
            hardware, cost, said = realised(runner.bench, list(axes), combination)
        except ValueError as error:
            refused.append(Failure(label, " ".join(str(error).split())))
            continue
        built.append((dict(zip(axes, combination, strict=True)), cost, said))
        points.append(Point(hardware=hardware, label=label, moved=True))
    circuits = []
    for (values, cost, said), point, found in zip(built, points, runner.run(points, chips), strict=True):
        if found is None:
            continue
        circuits.append(
            Circuit(
                values=values,
                energy_j=cost.energy_j.total,
                latency_s=cost.latency_s.total,
                area_m2=cost.area_m2.total,
                perplexity=draws.perplexity(found),
                rise=draws.rise(found, base),
                noise={name: getattr(point.hardware.noise, name) for name in point.hardware.noise.active()},
                tau_s=point.hardware.leakage.tau_s,
                warnings=said,
            )
        )
    return circuits


def _mark_front(circuits: Sequence[Circuit]) -> None:
    for one in circuits:
        at = (one.energy_j, one.perplexity.value)
        one.on_front = not any(
            other.energy_j <= at[0]
            and other.perplexity.value <= at[1]
            and (other.energy_j, other.perplexity.value) != at
            for other in circuits
        )


def _all(axes: Axes) -> Iterator[list[tuple[Any, ...]]]:
    yield list(itertools.product(*axes.values()))


def _searched(axes: Axes, trials: int, seed: int, found: Sequence[Circuit]) -> Iterator[list[tuple[Any, ...]]]:
    """Combinations that Optuna asks for, `BATCH` at a time; what became of the last ones it reads off `found`."""
    require_search("optuna")
    import optuna  # only where it was asked for

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=2 * BATCH)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    seen: set[tuple[int, ...]] = set()
    asked = 0
    while asked < trials:
        batch = {}
        for _ in range(min(BATCH, trials - asked)):
            trial = study.ask()
            at = tuple(trial.suggest_int(path, 0, len(values) - 1) for path, values in axes.items())
            batch[trial.number] = at
        asked += len(batch)
        new = list(dict.fromkeys(at for at in batch.values() if at not in seen))
        seen |= set(new)
        yield [tuple(values[i] for i, values in zip(at, axes.values(), strict=True)) for at in new]
        of = {tuple(map(repr, circuit.values.values())): circuit for circuit in found}
        for number, at in batch.items():
            circuit = of.get(tuple(repr(values[i]) for i, values in zip(at, axes.values(), strict=True)))
            if circuit is None:
                study.tell(number, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(number, [circuit.energy_j, circuit.perplexity.value])
