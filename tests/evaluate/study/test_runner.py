"""Points are measured once: what is there is read, what is spoilt is measured again, what fails is noted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import aimc
from aimc.evaluate.measurement import Measurement
from aimc.evaluate.perplexity import perplexity
from aimc.evaluate.study.bench import Bench, mixed
from aimc.evaluate.study.draws import Cache, measured
from aimc.evaluate.study.effects import ideal
from aimc.evaluate.study.points import Point, Setup, key_of
from aimc.evaluate.study.runner import Runner, duration
from aimc.hardware import ConfigError, Noise, Protection
from tests.conftest import small_arrays, tiny_gpt2

from .conftest import tiny_bench


def noisy(bench: Bench, **noise: float) -> Point:
    return Point(hardware=replace(bench.own, noise=Noise(**noise)), label=str(noise))


def test_a_point_is_what_perplexity_says(bench: Bench) -> None:
    point = noisy(bench, read_av=0.05)
    (found,) = Runner(bench).run([point])
    assert found is not None
    told = perplexity(bench.model, bench.tokens, bench.measurement, nonideality=point.hardware.noise)
    assert found.per_chip == pytest.approx(told.per_chip, rel=1e-12)
    assert found.loss.shape == (2, 202 // 16)
    assert bench.own.noise == Noise()


def test_one_chip_is_enough_without_noise(bench: Bench) -> None:
    (found,) = Runner(bench).run([Point(hardware=bench.own)])
    assert found is not None and found.chips == [0]


def test_a_short_text_still_has_many_draws(bench: Bench) -> None:
    assert bench.stretch == bench.context == 16  # of a text of many contexts the context
    assert "stretch" not in bench.subject(Point(hardware=bench.own))  # what was kept before is still good
    model = tiny_gpt2(n_positions=128)
    aimc.convert(model, small_arrays())
    short = Bench(model, torch.randint(64, (1200,)), Measurement(context=128, stride=128))
    point = Point(hardware=short.own)
    assert short.stretch == short.subject(point)["stretch"] == 75
    ((_, draw),) = short.draw(point, [0])
    assert len(draw.count) == 15 and sum(draw.count) == 1199


def test_the_key_is_the_content(bench: Bench) -> None:
    point = noisy(bench, write_v=0.01)
    key = key_of(bench.subject(point), point, 0)
    assert key == key_of(bench.subject(point), replace(point, label="other"), 0)
    others = [noisy(bench, write_v=0.011), replace(point, moved=True), replace(point, diverges=True)]
    keys = {key, key_of(bench.subject(point), point, 1), *(key_of(bench.subject(p), p, 0) for p in others)}
    assert len(keys) == 5
    assert key_of(tiny_bench(n_tokens=202).subject(point), point, 0) != key


def test_sixty_points_killed_half_way_go_on_from_there(tmp_path: Path) -> None:
    points = [noisy(tiny_bench(), write_v=1e-3 * (i + 1)) for i in range(60)]

    def kill_after(n: int) -> Runner:
        runner = Runner(tiny_bench(chips=1, n_tokens=34), Cache(tmp_path))

        def stop(_: int, __: bool) -> None:
            if runner.n_measured == n:
                raise KeyboardInterrupt

        runner.on_draw = stop
        return runner

    with pytest.raises(KeyboardInterrupt):
        kill_after(30).run(points)
    assert len(list(tmp_path.rglob("*.json"))) == 30
    again = kill_after(-1)
    assert again.missing(points) == 30
    found = again.run(points)
    assert (again.n_read, again.n_measured) == (30, 30) and None not in found
    third = kill_after(-1)
    third.run(points)
    assert third.n_measured == 0


@pytest.mark.parametrize("spoil", ["cut short", "a digit", "another's"])
def test_a_spoilt_file_is_measured_again_and_told(tmp_path: Path, bench: Bench, spoil: str) -> None:
    points = [noisy(bench, write_v=0.01), noisy(bench, write_v=0.02)]
    (first, second) = Runner(bench, Cache(tmp_path)).run(points, chips=1)
    assert first is not None and second is not None
    one, other = (tmp_path / key[:2] / f"{key}.json" for p in points for key in [key_of(bench.subject(p), p, 0)])
    text = one.read_text()
    at = text.index('"loss":[') + 9
    one.write_text(
        {
            "cut short": text[: len(text) // 2],
            "a digit": text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :],
            "another's": other.read_text(),
        }[spoil]
    )
    cache = Cache(tmp_path)
    again = Runner(bench, cache)
    (found, _) = again.run(points, chips=1)
    assert found is not None and found.per_chip == first.per_chip
    assert (again.n_measured, again.n_read) == (1, 1)
    assert cache.spoilt == [one.name]
    assert Runner(bench, Cache(tmp_path)).missing(points, chips=1) == 0


def test_a_point_that_fails_is_noted_and_the_others_go_on(bench: Bench) -> None:
    bad = Point(hardware=bench.own, label="cannot be", trained=True)
    runner = Runner(bench)
    found = runner.run([Point(hardware=bench.own), bad, noisy(bench, read_qk=0.1)])
    assert [point is None for point in found] == [False, True, False]
    assert [failure.label for failure in runner.failures] == ["cannot be (chip 0)"]
    assert "trains nothing" in runner.failures[0].reason


def test_paths_of_a_setup(bench: Bench) -> None:
    start = Setup(hardware=bench.own)
    changed = start.changed({"hardware.array.window": 8, "hardware.array.rows": 8, "nonideality.write_v": 0.1})
    assert (changed.machine.array.window, changed.machine.array.rows, changed.machine.noise.write_v) == (8, 8, 0.1)
    assert start.hardware.array.window == 16
    for path in ("hardware.array.row", "nonideality.writ_v", "hardware.cell.x.y", "measure.tokens", "hardware"):
        with pytest.raises(ConfigError, match="no field|no such field"):
            start.changed({path: 1})
    with pytest.raises(ConfigError, match="use nonideality.write_v"):
        start.changed({"hardware.noise.write_v": 0.1})


def test_heads_on_two_machines(bench: Bench) -> None:
    """All heads on the machine, or none, is the machine or the other; one head alone is neither."""
    machine = replace(bench.own, noise=Noise(read_av=0.1), protection=Protection())
    rest = ideal(machine)
    found = Runner(bench).run(
        [
            Point(hardware=machine),
            Point(hardware=machine, analog={0: [True, True], 1: [True, True]}, rest=rest),
            Point(hardware=machine, analog={0: [True, False], 1: [False, False]}, rest=rest, diverges=True),
            Point(hardware=machine, analog={}, rest=rest, diverges=True),
            Point(hardware=rest),
        ]
    )
    whole, all_heads, one, none, other = (point for point in found if point is not None)
    assert all_heads.per_chip == whole.per_chip
    assert none.per_chip == pytest.approx([other.perplexity] * 2) and none.divergence == pytest.approx(0, abs=1e-12)
    assert one.divergence > 0 and one.per_chip != whole.per_chip != none.per_chip
    with mixed(bench.model, {0: [True, False]}, rest):
        assert any(layer._forward_hooks for layer in bench.model.modules())
    assert not any(m._forward_hooks for name, m in bench.model.named_modules() if name.endswith("gain_cell"))


def test_moved_points_match_the_scalers(bench: Bench) -> None:
    machine = replace(bench.own, storage_dac=replace(bench.own.storage_dac, v_max=0.6))
    plain, moved = Runner(bench).run([Point(hardware=machine), Point(hardware=machine, moved=True)])
    assert plain is not None and moved is not None and plain.per_chip != moved.per_chip
    (own,) = Runner(bench).run([Point(hardware=bench.own)])
    assert own is not None and own.perplexity == pytest.approx(
        float(perplexity(bench.model, bench.tokens, bench.measurement))
    )


def test_draws_of_one_point() -> None:
    from aimc.evaluate.study.draws import Draw

    found = measured([0, 1], [Draw(loss=[2.0, 4.0], count=[1, 2]), Draw(loss=[3.0, 3.0], count=[1, 2], seconds=1.0)])
    assert found.per_chip == pytest.approx([7.389056, 7.389056]) and found.seconds == 1.0
    with pytest.raises(ValueError, match="diverges=True"):
        _ = found.divergence
    assert [duration(s) for s in (5, 600, 7200)] == ["5 s", "10 min", "2.0 h"]
