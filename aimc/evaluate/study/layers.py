"""Which layers and heads bear their arrays badly: divergence when one alone is analog, and what quality costs in
attention that stays digital."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aimc.circuit.cost.attention import attention_cost
from aimc.circuit.cost.digital import COPY, PROTECTED
from aimc.circuit.cost.shape import ModelShape
from aimc.evaluate.study.bench import Bench
from aimc.evaluate.study.effects import ideal
from aimc.evaluate.study.intervals import Bootstrap, Interval
from aimc.evaluate.study.points import Point
from aimc.evaluate.study.runner import Runner
from aimc.hardware import ConfigError, Hardware, Protection

MOST_HEADS = 64
"""Heads of a model from which on only its layers are measured."""
PROTECTIONS = ((4, 0), (4, 16), (4, 64))
"""First and newest tokens that are tried as kept digital."""
MOST_STEPS = 6
"""Points of the curve of what stays digital, besides its ends."""


@dataclass(slots=True)
class Unit:
    """A layer or a head."""

    layer: int
    head: int | None
    """None: the whole layer."""
    kl: Interval
    """Divergence from all-ideal arrays when it alone is on the real machine, nat a token."""

    @property
    def name(self) -> str:
        """`layer 3`, `layer 3 head 1`."""
        return f"layer {self.layer}" + ("" if self.head is None else f" head {self.head}")


@dataclass(slots=True)
class Kept:
    """Quality with some attention kept digital."""

    label: str
    share: float
    """Of the attention energy that all of it on arrays would take, whose work is digital; where tokens are protected,
    the share that their digital attention has of the whole."""
    rise: Interval
    """Of perplexity over all-ideal arrays."""
    layers: list[int]
    """Layers that are digital as a whole."""
    protection: list[int] | None = None
    """First and newest tokens that are digital."""


@dataclass(slots=True)
class Layers:
    """What was found."""

    ranking: list[Unit]
    """Layers, the worst first."""
    heads: list[Unit]
    """Heads, the worst first; empty for a model of very many."""
    kept: list[Kept]
    """From nothing digital to all of it, the worst layers (or heads) first."""
    protected: list[Kept] = field(default_factory=list)
    """With tokens kept digital."""
    budget: float = 0.02
    skip_layers: list[int] | None = None
    """Fewest layers, the worst ones, whose attention has to stay digital for the budget; what `aimc.convert` takes as
    `skip_layers`. None: not even all of them are enough."""
    protection: list[int] | None = None
    """First and newest tokens, of the cheapest that were tried, whose digital attention alone is enough for the budget.
    None: no such protection was."""
    unit: str = "layer"
    """Of which kind `kept` keeps more and more."""


def unit_points(bench: Bench, machine: Hardware) -> dict[tuple[int, int | None], Point]:
    """One layer, then one head, alone on the machine; the others on ideal arrays."""
    heads, rest = bench.heads, ideal(machine)
    units: list[tuple[int, int | None]] = [(layer, None) for layer in heads]
    if sum(heads.values()) <= MOST_HEADS:
        units += [(layer, head) for layer, count in heads.items() for head in range(count) if count > 1]
    points = {}
    for layer, head in units:
        analog = {at: [at == layer and head in (None, i) for i in range(count)] for at, count in heads.items()}
        label = f"layer {layer}" + ("" if head is None else f" head {head}") + " alone"
        points[layer, head] = Point(hardware=machine, label=label, analog=analog, rest=rest, diverges=True)
    return points


def count_points(bench: Bench) -> int:
    """Points that :func:`layers` measures at most."""
    n_heads = sum(bench.heads.values())
    return len(bench.heads) + (n_heads if n_heads <= MOST_HEADS else 0) + 2 + MOST_STEPS + len(PROTECTIONS)


def layers(runner: Runner, machine: Hardware, budget: float = 0.02, *, chips: int = 2, **bootstrap: Any) -> Layers:
    """Measure and rank.

    Ideal arrays are the same cells, windows and full scales with every effect off; for a model that was trained on the
    hard sigmoid nothing else is its digital form, and with a softmax they differ from digital attention only by what
    their ranges clip.

    Args:
        machine: with every effect at its stated size, noise included.
        budget: rise of perplexity that is allowed.
        chips: of each point.
        bootstrap: `resamples`, `confidence`, `seed`.

    Raises:
        ValueError: ideal arrays or the whole machine could not be measured.
    """
    bench = runner.bench
    points = unit_points(bench, machine)
    found = dict(zip(points, runner.run(list(points.values()), chips), strict=True))
    n_chips = min(chips, len(bench.chips))
    some = next((point for point in found.values() if point is not None), None)
    if some is None:
        raise ValueError(f"no layer could be measured: {runner.failures[-1].reason}")
    draws = Bootstrap(n_chips=n_chips, n_stretches=len(some.count), **bootstrap)
    units = [Unit(*at, draws.divergence(point)) for at, point in found.items() if point is not None]
    units.sort(key=lambda unit: -unit.kl.value)
    ranking, heads = [u for u in units if u.head is None], [u for u in units if u.head is not None]
    kept = _kept(runner, machine, heads or ranking, chips, draws)
    result = Layers(ranking, heads, kept, budget=budget, unit="head" if heads else "layer")
    result.protected = _protected(runner, machine, chips, draws)
    enough = [kept for kept in result.protected if kept.rise.value <= budget]
    result.protection = min(enough, key=lambda kept: kept.share).protection if enough else None
    result.skip_layers = _skipped(runner, machine, ranking, budget, chips, draws)
    return result


def _digital(bench: Bench, machine: Hardware, units: Sequence[Unit], label: str) -> Point:
    """Some units on ideal arrays."""
    gone = {(unit.layer, unit.head) for unit in units}
    analog = {
        layer: [(layer, None) not in gone and (layer, head) not in gone for head in range(count)]
        for layer, count in bench.heads.items()
    }
    return Point(hardware=machine, label=label, analog=analog, rest=ideal(machine))


def _kept(runner: Runner, machine: Hardware, worst_first: Sequence[Unit], chips: int, draws: Bootstrap) -> list[Kept]:
    n = len(worst_first)
    counts = sorted({round(n * step / (MOST_STEPS + 1)) for step in range(MOST_STEPS + 2)})
    points = [_digital(runner.bench, machine, worst_first[:k], f"{k} worst digital") for k in counts]
    found = runner.run(points, chips)
    base = found[-1]
    if base is None:
        raise ValueError(f"ideal arrays, with which all is compared, failed: {runner.failures[-1].reason}")
    rows = []
    for count, point, measured in zip(counts, points, found, strict=True):
        if measured is not None and point.analog is not None:
            whole = [layer for layer, heads in point.analog.items() if not any(heads)]
            label = f"{count} of {n} {'heads' if worst_first[0].head is not None else 'layers'} digital"
            rows.append(
                Kept(label, energy_share(runner.bench, machine, point.analog), draws.rise(measured, base), whole)
            )
    return rows


def energy_share(bench: Bench, machine: Hardware, analog: Mapping[int, Sequence[bool]]) -> float:
    """Share of the attention energy, were it all on arrays, of the heads that are not."""
    total = gone = 0.0
    windows = bench.shape.windows
    for i, heads in enumerate(analog.values()):
        window = None if windows is None else windows[i]
        energy = _energy(replace(bench.shape, windows=[window]), machine, bench.context)
        total += energy
        gone += energy * (1 - sum(heads) / len(heads))
    return gone / total


def _energy(shape: ModelShape, machine: Hardware, n_tokens: int) -> float:
    """Of one layer's attention, joule; where a converter without levels has no cost, in proportion to what it reads."""
    held = min(n_tokens, machine.array.window, *(w for w in shape.windows or [] if w is not None))
    try:
        return attention_cost(shape, machine, window_fill=held).energy_j.total
    except ConfigError:
        return float(held)


def protected_share(bench: Bench, machine: Hardware) -> float:
    """Share of the attention energy that protected tokens take, whose keys and values move in a digital copy; where a
    converter without levels has no cost, their share of the tokens."""
    held = min(bench.context, machine.array.window)

    def of(hardware: Hardware) -> tuple[float, float]:
        energy = attention_cost(bench.shape, hardware, window_fill=held).energy_j
        return energy.get(PROTECTED, 0.0) + energy.get(COPY, 0.0), energy.total

    try:
        (with_them, total), (without, _) = of(machine), of(replace(machine, protection=Protection()))
    except ConfigError:
        return min(machine.protection.n_sink + machine.protection.n_recent, held) / held
    return (with_them - without) / total


def _protected(runner: Runner, machine: Hardware, chips: int, draws: Bootstrap) -> list[Kept]:
    bench, ideal_point = runner.bench, Point(hardware=ideal(machine), label="ideal arrays")
    points, pairs = [], []
    for n_sink, n_recent in PROTECTIONS:
        if n_recent >= min(machine.array.window, bench.context):
            continue
        protected = replace(machine, protection=Protection(n_sink=n_sink, n_recent=n_recent))
        points.append(Point(hardware=protected, label=f"first {n_sink}, newest {n_recent} tokens digital"))
        pairs.append((protected_share(bench, protected), [n_sink, n_recent]))
    base, *found = runner.run([ideal_point, *points], chips)
    if base is None:
        return []
    return [
        Kept(point.label, share, draws.rise(measured, base), [], pair)
        for point, (share, pair), measured in zip(points, pairs, found, strict=True)
        if measured is not None
    ]


def _skipped(
    runner: Runner, machine: Hardware, ranking: Sequence[Unit], budget: float, chips: int, draws: Bootstrap
) -> list[int] | None:
    """The fewest of the worst layers: quality rises with each, so the number is found by bisection."""
    rises: dict[int, float] = {}
    (base,) = runner.run([_digital(runner.bench, machine, ranking, "all layers digital")], chips)

    def within(count: int) -> bool:
        if count not in rises:
            (measured,) = runner.run(
                [_digital(runner.bench, machine, ranking[:count], f"{count} layers digital")], chips
            )
            rises[count] = float("inf") if measured is None or base is None else draws.rise(measured, base).value
        return rises[count] <= budget

    low, high = 0, len(ranking)
    if not within(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if within(middle) else (middle + 1, high)
    return sorted(unit.layer for unit in ranking[:high])
