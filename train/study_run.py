"""A study from its estimate to its files: what it will take, a bar while it measures, results after each part."""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import sys
import time
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from aimc.evaluate.study import whole
from aimc.evaluate.study.draws import Cache
from aimc.evaluate.study.grid import size_of
from aimc.evaluate.study.points import Point
from aimc.evaluate.study.runner import Estimate, Runner, duration, seconds_of_pass

from . import study_tables
from .errors import RunError
from .files import write_json
from .study_bench import open_bench, seconds_of_training
from .study_samples import samples
from .study_wandb import log_study
from .tables import Say, bold, warned

if TYPE_CHECKING:
    from .study_schema import StudyConfig

FORMAT = 1
RESULTS = "study.json"
SPARE_BYTES = 50e6
"""Of the disk, left free."""
PACKAGES = ("aimc", "torch", "transformers", "numpy", "hydra-core", "numba")
DEFAULT_CIRCUITS: dict[str, list[Any]] = {
    "hardware.input_dac.n_levels": [8, 32],
    "hardware.storage_dac.n_levels": [4, 8],
    "hardware.readout.n_levels": [16, 32],
    "cell.capacitance_f": [5e-15, 10e-15],
    "cell.read_v": [0.6, 0.9],
}
"""Levels; noise and retention, which follow from the capacitance; and read voltage."""


def opened(settings: StudyConfig) -> Runner:
    """The bench and what measures on it; nothing is measured yet.

    Raises:
        RunError: no such checkpoint, or unusable text.
    """
    bench = open_bench(settings)
    return Runner(
        bench,
        Cache(settings.points),
        workers=settings.processes,
        opener=partial(open_bench, settings),
        recompute=settings.restart,
    )


def plan_of(runner: Runner, settings: StudyConfig) -> whole.Plan:
    """What is asked, checked.

    Raises:
        RunError: an unknown effect, a path that leads nowhere, or a search without its library.
    """
    plan = whole.Plan(
        start=whole.setup_of(runner, settings.nonideality),
        parts=settings.asked,
        effects=settings.effects,
        rises=settings.rises,
        worst=settings.worst,
        budget=settings.budget,
        specification=settings.specification or DEFAULT_CIRCUITS,
        search=settings.search,
        trials=settings.trials,
        few_chips=settings.few_chips,
        grid=settings.grid or {},
        trained=settings.training.steps > 0,
        bootstrap={"resamples": settings.resamples, "confidence": settings.confidence, "seed": settings.seed},
    )
    try:
        whole.check(runner, plan)
    except (ValueError, ModuleNotFoundError) as error:
        raise RunError(str(error)) from error
    return plan


def execute(runner: Runner, settings: StudyConfig, say: Say) -> None:
    """Estimate, measure, write and show.

    Raises:
        RunError: too large for disk or time, interrupted, or a process that died.
    """
    plan = plan_of(runner, settings)
    if runner.workers > 1:
        torch.set_num_threads(1)  # what is timed here is one of several processes
    say(f"{bold('study')} of {settings.checkpoint}: {_words(runner, plan)}")
    per_pass = seconds_of_pass(runner.bench, Point(hardware=plan.machine))
    expected = _expected(runner, plan, settings, per_pass)
    say(f"  {expected} on {_processes(runner)} ({per_pass:.2g} s a pass)")
    require_room(expected, settings)
    started = time.perf_counter()
    with _bar(runner, expected):
        try:
            results = whole.run(runner, plan, partial(_written, runner, plan, settings, started))
        except KeyboardInterrupt:
            raise RunError(_kept(runner, settings)) from None
        except BrokenProcessPool as error:
            raise RunError(
                f"workers={runner.workers}: a process died, as it does where memory runs out ({error}); what was"
                f" measured is kept in {settings.points}: give fewer workers and start again"
            ) from error
    if settings.sample_tokens:
        written = samples(runner.bench, plan.machine, settings.sample_tokens, settings.checkpoint)
        file = settings.folder / RESULTS
        write_json(file, {**json.loads(file.read_text(encoding="utf-8")), "samples": written})
    if settings.logger.name == "wandb":
        log_study(settings, results)
    for line in study_tables.shown(results):
        say(line)
    _tell(runner, settings, time.perf_counter() - started, say)


def require_room(expected: Estimate, settings: StudyConfig) -> None:
    """Check that a study fits the stated time and the disk.

    Raises:
        RunError: it does not.
    """
    if expected.seconds > settings.time_limit_s:
        raise RunError(
            f"time_limit_s={settings.time_limit_s:g}: {expected.n_draws:,} passes would take about"
            f" {duration(expected.seconds)}, longer than {duration(settings.time_limit_s)}; give a smaller grid, fewer"
            " measure.chips or measure.tokens, or a longer limit"
        )
    place = next(path for path in (settings.points, *settings.points.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free - SPARE_BYTES
    if expected.n_bytes > free:
        raise RunError(
            f"grid: {expected.n_draws:,} measurements need {expected.n_bytes / 1e9:,.1f} GB in {settings.points}, and"
            f" {max(free, 0) / 1e9:,.1f} GB are free; give a smaller grid, or a cache_dir on a larger disk"
        )


def _words(runner: Runner, plan: whole.Plan) -> str:
    bench = runner.bench
    parts = [f"grid of {size_of(plan.grid):,} points" if part == "grid" else part for part in plan.parts]
    return f"{', '.join(parts)}; {len(bench.chips)} chips, {len(bench.tokens):,} tokens"


def _processes(runner: Runner) -> str:
    return "1 process" if runner.workers == 1 else f"{runner.workers} processes"


def _expected(runner: Runner, plan: whole.Plan, settings: StudyConfig, per_pass: float) -> Estimate:
    expected = whole.estimated(runner, plan, per_pass)
    if plan.trained:
        n_points = 1 + size_of(plan.grid)
        expected.seconds += n_points * seconds_of_training(settings, runner.bench, per_pass) / runner.workers
    return expected


class _bar:
    """A progress bar with the time left; on no terminal a line now and then."""

    def __init__(self, runner: Runner, expected: Estimate) -> None:
        is_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=expected.n_draws + expected.n_cached,
            unit="pass",
            desc="  measuring",
            mininterval=0.5 if is_terminal else 60.0,
            maxinterval=10.0 if is_terminal else 600.0,
            dynamic_ncols=True,
        )
        runner.on_draw = self._gained

    def _gained(self, n: int, is_new: bool) -> None:
        if not is_new:
            self.bar.initial += n  # what was read says nothing of how fast it is measured
        self.bar.total = max(self.bar.total, self.bar.n + n)
        self.bar.update(n)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.bar.total = self.bar.n
            self.bar.refresh()
        self.bar.close()


def _written(
    runner: Runner, plan: whole.Plan, settings: StudyConfig, started: float, part: str, results: dict[str, Any]
) -> None:
    """study.json and the CSV of one part: after each, so that an interruption leaves what was found."""
    bench = runner.bench
    about = {
        "format": FORMAT,
        "checkpoint": settings.checkpoint,
        "model": bench.name,
        "parts": list(plan.parts),
        "command": shlex.join(["python", "-m", "train.study", *sys.argv[1:]]),
        "config": settings.facts,
        "hardware": bench.own.to_dict(),
        "versions": versions(),
        "machine": f"{platform.machine()}, {_processes(runner)}, {platform.system()}",
        "measurement": asdict(bench.measurement) | {"scored_tokens": len(bench.tokens) - 1},
        "confidence": settings.confidence,
        "seconds": round(time.perf_counter() - started, 1),
        "measured": runner.n_measured,
        "read": runner.n_read,
        "spoilt": runner.cache.spoilt if runner.cache else [],
        "failures": [asdict(failure) for failure in runner.failures],
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }
    write_json(settings.folder / RESULTS, {**about, "results": results})
    study_tables.write_csv(settings.folder, part, results[part])


def versions() -> dict[str, str]:
    """Of Python and what computes."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _kept(runner: Runner, settings: StudyConfig) -> str:
    return (
        f"interrupted: {runner.n_measured} passes of this run are kept in {settings.points}, with {runner.n_read} of"
        " earlier ones; the same command goes on from there"
    )


def _tell(runner: Runner, settings: StudyConfig, seconds: float, say: Say) -> None:
    say(
        f"{runner.n_measured} passes were measured in {duration(seconds)}, {runner.n_read} read from {settings.points}."
    )
    if runner.cache is not None and runner.cache.spoilt:
        say(
            f"{warned(str(len(runner.cache.spoilt)))} cached files were damaged and have been measured again:"
            f" {', '.join(runner.cache.spoilt[:5])}"
        )
    reasons = Counter(failure.reason for failure in runner.failures)
    for reason, count in reasons.most_common(5):
        say(f"{warned(f'{count} measurements failed')}: {reason}")
