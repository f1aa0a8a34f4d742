"""The three answers and the layers, on a tiny model and on machines whose loss is known."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from aimc.circuit.cost.shape import ModelShape
from aimc.evaluate import chips
from aimc.evaluate.study import whole
from aimc.evaluate.study.bench import Bench
from aimc.evaluate.study.effects import chosen, effects_of, ideal
from aimc.evaluate.study.grid import grid
from aimc.evaluate.study.intervals import Bootstrap
from aimc.evaluate.study.layers import energy_share, layers, protected_share
from aimc.evaluate.study.points import Setup
from aimc.evaluate.study.runner import Runner
from aimc.evaluate.study.sensitivity import points_of, sensitivity
from aimc.evaluate.study.specification import specification
from aimc.evaluate.study.tolerance import crossing, tolerances
from aimc.hardware import ConfigError, Converter, Hardware, Noise, Protection, presets

from .conftest import Formula, tiny_bench


def formula(own: Hardware, seed: int = 0) -> Formula:
    """Loss grows with the square of each noise, with retention, and with missing levels."""

    def loss(machine: Hardware) -> float:
        noise, tau = machine.noise, machine.leakage.tau_s
        levels = machine.storage_dac.n_levels or 1000
        leak = 0.0 if tau is None else (1e-5 / tau) ** 1.5
        return (noise.write_v / 0.1) ** 2 + 4 * noise.read_av**2 + leak + max(0.0, 3 / levels**2 - 3 / 64)

    return Formula(loss, own, seed=seed)


def test_ranking_of_known_losses(silent: Hardware) -> None:
    machine = replace(silent, noise=Noise(write_v=0.03, read_av=0.01, column_gain=0.5))
    runner = formula(silent)
    found = sensitivity(cast(Runner, runner), machine, chosen(machine), resamples=200)
    assert [row.name for row in found.rows][:2] == ["write_v", "read_av"]
    first = found.rows[0]
    assert first.alone is not None and first.saved is not None
    assert first.alone.low < math.expm1(0.09) < first.alone.high
    assert first.alone.value == pytest.approx(math.expm1(0.09), rel=0.1)
    assert first.saved.low <= first.saved.value <= first.saved.high and first.saved.value > 0.05
    assert found.rows[-1].alone is not None and abs(found.rows[-1].alone.value) < 1e-3
    assert first.size == "30 mV"


def test_listed_levels_alone_are_those_of_the_machine(silent: Hardware) -> None:
    listed = Converter(positions=[0.0, 0.1, 0.2, 0.9], n_levels=4, v_max=0.9, spacing="listed")
    machine = replace(silent, storage_dac=listed)
    points = points_of(machine, chosen(machine))
    assert points["alone storage_levels"].hardware.storage_dac == listed
    assert points["none"].hardware.storage_dac.n_levels is None


def test_what_protected_tokens_take_is_products_and_a_copy(bench: Bench) -> None:
    """Of GPT-2 small at a full window: 0.157 µJ a layer in products, 0.53 µJ in reading keys and values, 0.07 µJ in the
    arrays."""
    wide = SimpleNamespace(shape=ModelShape(), context=1024)
    machine = presets.gain_cell_cmos()
    protected = replace(machine, protection=Protection(n_sink=4, n_recent=64))
    assert 0.85 < protected_share(cast(Bench, wide), protected) < 0.95
    assert protected_share(cast(Bench, wide), machine) == 0.0
    no_levels = replace(protected, readout=replace(protected.readout, n_levels=None))
    assert protected_share(cast(Bench, wide), no_levels) == pytest.approx(68 / 1024)


def test_a_models_static_tiles_differ_from_chip_to_chip_on_any_machine(
    bench: Bench, silent: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not bench.is_random(silent) and bench.is_random(replace(silent, noise=Noise(write_v=1e-3)))
    monkeypatch.setattr(chips, "static_layers", lambda model: [("", SimpleNamespace(computes_digitally=False))])
    assert bench.is_random(silent)


def test_bisection_meets_known_tolerances(silent: Hardware) -> None:
    runner = formula(silent)
    effects = [effects_of(silent)[name] for name in ("write_v", "retention", "storage_levels", "tau_spread")]
    curves = {c.name: c for c in tolerances(cast(Runner, runner), silent, effects, (0.01, 0.05, 0.2), resamples=200)}
    for size, rise in zip(curves["write_v"].tolerances, (0.01, 0.05, 0.2), strict=True):
        exact = 0.1 * math.sqrt(math.log1p(rise))
        assert size.size is not None and size.size.value == pytest.approx(exact, rel=0.04)
        assert 0.97 * size.size.low < exact < 1.03 * size.size.high < 1.5 * exact
    for size, rise in zip(curves["retention"].tolerances, (0.01, 0.05, 0.2), strict=True):
        assert size.size is not None and size.size.value == pytest.approx(
            1e-5 / (math.log1p(rise) + (1e-5 / 5e-3) ** 1.5) ** (2 / 3), rel=0.06
        )
        assert size.size.low < size.size.value < size.size.high
    # 3/49 − 3/64 is 1.4 %, 3/36 − 3/64 3.6 %, 3/25 − 3/64 7.3 %, 3/16 − 3/64 14 %, 3/9 − 3/64 29 %
    assert [size.words for size in curves["storage_levels"].tolerances] == ["8 levels", "6 levels", "4 levels"]
    assert [size.size for size in curves["tau_spread"].tolerances] == [None] * 3
    assert curves["tau_spread"].tolerances[0].words.startswith("beyond")
    assert len(runner.asked) < 60
    assert curves["write_v"].sizes == sorted(curves["write_v"].sizes)


def test_crossing_of_broken_machines() -> None:
    assert crossing([0.0, 1.0], np.array([0.001, math.nan]), 0.1) == 0.5
    assert crossing([0.0, 1.0], np.array([0.2, 0.3]), 0.1) == -math.inf
    assert crossing([0.0, 1.0], np.array([0.001, 0.002]), 0.1) == math.inf
    assert crossing([0.0, math.log(2)], np.array([0.02, 0.08]), 0.1) == pytest.approx(0.5 * math.log(5))


def test_two_studies_with_other_seeds_agree() -> None:
    """A ranking's intervals overlap where only chips differ; the effect that breaks the model is the first in both."""
    noise = Noise(read_av=0.3, write_v=0.02, mismatch_gain=0.02)
    found = []
    for seed in (0, 100):
        bench = tiny_bench(seed=seed, chips=3)
        machine = replace(bench.own, noise=noise)
        effects = chosen(machine, ["read_av", "write_v", "mismatch_gain"])
        found.append({row.name: row for row in sensitivity(Runner(bench), machine, effects, resamples=300).rows})
    one, other = found
    for name, row in one.items():
        assert row.alone is not None and row.saved is not None
        other_row = other[name]
        assert other_row.alone is not None and other_row.saved is not None
        assert row.alone.overlaps(other_row.alone) and row.saved.overlaps(other_row.saved)
        assert row.per_chip != other_row.per_chip
    assert next(iter(one)) == next(iter(other)) == "read_av"


def test_tolerances_of_two_seeds_agree(silent: Hardware) -> None:
    """Intervals overlap where only chips differ."""
    effects = [effects_of(silent)[name] for name in ("write_v", "read_av")]
    found = []
    for seed in (0, 1):
        runner = cast(Runner, formula(silent, seed=seed))
        found.append({curve.name: curve for curve in tolerances(runner, silent, effects, (0.05, 0.2), resamples=200)})
    one, other = found
    for name, curve in one.items():
        for size, again in zip(curve.tolerances, other[name].tolerances, strict=True):
            assert size.size is not None and again.size is not None and size.size.overlaps(again.size)
    assert one["write_v"].tolerances[0].size != other["write_v"].tolerances[0].size


def test_intervals_hold_what_they_say() -> None:
    """Over many made-up studies, the 95 % interval of a mean over chips holds the truth about that often."""
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(100):
        values = generator.normal(0, 1, 8)[:, None] + generator.normal(0, 0.5, 40)[None]
        draws = Bootstrap(n_chips=8, n_stretches=40, resamples=200)
        means = draws._of_chips(draws._means(values, cast(Any, type("P", (), {"count": np.ones(40)}))))
        held += draws.interval(values.mean(), means).low <= 0 <= draws.interval(values.mean(), means).high
    assert held >= 85


def test_specification_finds_the_cheapest(bench: Bench) -> None:
    axes = {"hardware.input_dac.n_levels": [4, 16], "cell.read_v": [0.6, 0.9, -1.0]}
    found = specification(Runner(bench), axes, budget=10.0, chips=1, resamples=50)
    assert len(found.circuits) == 4 and len(found.refused) == 2 and "read_v" in found.refused[0].reason
    energies = [circuit.energy_j for circuit in found.circuits]
    assert energies == sorted(energies) and found.cheapest == found.surely == 0
    front = [circuit for circuit in found.circuits if circuit.on_front]
    assert front[0] is found.circuits[0]
    assert [c.perplexity.value for c in front] == sorted((c.perplexity.value for c in front), reverse=True)
    assert specification(Runner(bench), axes, budget=-1.0, chips=1, resamples=50).cheapest is None
    for path in ("cell.capacity_f", "hardware.noise.write_v"):
        with pytest.raises(ConfigError, match="specification: parameter"):
            specification(Runner(bench), {path: [1.0]}, chips=1)


def test_search_by_optuna(bench: Bench) -> None:
    pytest.importorskip("optuna")
    axes = {"hardware.input_dac.n_levels": [4, 8, 16, 32], "hardware.readout.n_levels": [8, 16, 32]}
    found = specification(Runner(bench), axes, budget=10.0, chips=1, search="optuna", trials=16, resamples=50)
    assert 4 <= len(found.circuits) <= 12 and found.cheapest == 0


def test_layers_and_heads(bench: Bench) -> None:
    machine = replace(bench.own, noise=Noise(read_av=0.1))
    runner = Runner(bench)
    found = layers(runner, machine, budget=0.0, chips=1, resamples=50)
    assert [unit.kl.value for unit in found.ranking] == sorted((u.kl.value for u in found.ranking), reverse=True)
    assert len(found.ranking) == 2 and len(found.heads) == 4
    shares = [kept.share for kept in found.kept]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == pytest.approx(1)
    assert found.kept[-1].rise.value == 0 and found.kept[-1].layers == [0, 1]
    bearable, unbearable = (layers(runner, machine, budget=b, chips=1, resamples=50) for b in (10.0, -1.0))
    assert bearable.skip_layers == [] and unbearable.skip_layers is None
    assert bearable.protection == min(found.protected, key=lambda kept: kept.share).protection
    assert unbearable.protection is None
    assert found.protected and found.protected[0].protection == [4, 0] and 0 < found.protected[0].share < 1
    assert energy_share(bench, machine, {0: [True, False], 1: [True, True]}) == pytest.approx(0.25)


def test_grid_with_points_that_cannot_be(bench: Bench) -> None:
    start = Setup(hardware=bench.own, nonideality=Noise())
    axes = {"hardware.array.rows": [2, 4, 5], "digital_layers": [[], [0]]}
    found = grid(Runner(bench), start, axes, resamples=50)
    assert len(found.cells) == 4 and len(found.refused) == 2 and "array.window" in found.refused[0].reason
    same = next(cell for cell in found.cells if cell.values == {"hardware.array.rows": 4, "digital_layers": []})
    assert same.rise.value == same.rise.low == 0
    with pytest.raises(ConfigError, match="grid.hardware.array.row: there is no field 'row'"):
        grid(Runner(bench), start, {"hardware.array.row": [2]})
    with pytest.raises(ConfigError, match="a list of values"):
        grid(Runner(bench), start, {"hardware.array.rows": cast(Any, 3)})


def test_ideal_is_without_any_effect() -> None:
    machine = replace(presets.for_pretrained(presets.gain_cell_cmos()), noise=presets.typical())
    assert {"score_levels", "probability_levels"} < set(effects_of(machine))
    assert not any(effect.size(ideal(machine)) for effect in effects_of(machine).values())
    with pytest.raises(ConfigError, match="effects=noise: no such effect"):
        chosen(machine, ["noise"])


def test_the_normalisers_counter_is_an_effect_where_there_is_one() -> None:
    machine = presets.gain_cell_normalised()
    effect = effects_of(machine)["normaliser_levels"]
    assert effect.size(machine) == 256 and effect.at(machine, 31.6).normaliser.counter.n_levels == 32
    other = effect.off(machine)
    assert other.normaliser.counter.n_levels is None and replace(other, normaliser=machine.normaliser) == machine
    assert "normaliser_levels" not in effects_of(presets.gain_cell_cmos())


def test_tolerances_of_the_worst_alone(bench: Bench) -> None:
    runner = Runner(bench)
    names = ["write_v", "read_av", "storage_levels"]
    plan = whole.Plan(
        start=whole.setup_of(runner, Noise(read_av=0.3, write_v=0.001)),
        parts=["sensitivity", "tolerance"],
        effects=names,
        rises=[0.3],
        worst=1,
        bootstrap={"resamples": 20},
    )
    whole.check(runner, plan)
    most = whole.draws_of(runner, plan)["tolerance"]
    assert most < whole.draws_of(runner, replace(plan, worst=None))["tolerance"]
    found = whole.run(runner, plan)
    assert [curve["name"] for curve in found["tolerance"]] == [found["sensitivity"]["rows"][0]["name"]]
    with pytest.raises(ValueError, match="worst=1"):
        whole.check(runner, replace(plan, parts=["tolerance"]))


def test_a_whole_study_counts_what_it_measures(bench: Bench) -> None:
    runner = Runner(bench)
    plan = whole.Plan(
        start=whole.setup_of(runner, Noise(read_av=0.1, write_v=0.01)),
        parts=["sensitivity", "grid"],
        grid={"nonideality.write_v": [0.0, 0.01]},
        bootstrap={"resamples": 50},
    )
    whole.check(runner, plan)
    assert whole.draws_of(runner, plan) == {"sensitivity": 1 + 2 + 4 + (2 + 6) * 2, "grid": 6}
    before = whole.estimated(runner, plan, 2.0)
    assert before.n_draws == 29 and before.seconds == 58 and before.n_bytes == 29 * 4096
    said: list[str] = []
    results = whole.run(runner, plan, lambda part, _: said.append(part))
    assert said == ["sensitivity", "grid"] == list(results)
    assert runner.n_measured <= 29
    assert whole.estimated(Runner(bench, runner.cache), plan, 2.0).n_draws == 29
