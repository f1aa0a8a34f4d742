"""What each ingredient of the training route buys: `python -m benchmarks.recipes`.

Every row is the pipeline on the model in the repository with a few settings changed, over a few seeds and with the same
number of extra training tokens, against the digital model given those tokens. Rows add one ingredient at a time, to the
direct route or to both hardware options. A finished stage is not run again, so that an interrupted table goes on.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.pipelines import run_config
from train.files import write_json

MATCHED = 40
"""Steps of the layer-wise start, or of the linear stage; the rest is fine-tuning."""
PUBLISHED_HARDWARE = "hardware=cmos"
SIGNED = ["hardware.input_dac.n_levels=32", "hardware.input_dac.v_min=-1", "hardware.input_dac.coding=sign_magnitude"]
NORMALISER = [f"hardware.normaliser.{field}" for field in ("is_on=true", "full_scale=16", "counter.n_levels=256")]
THRESHOLD = ["hardware.threshold=true"]
BY_CONTROL = ["trainer.finetune.teacher=control"]
CONTROL = "control"
"""The row that others are divided by."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    stages: tuple[str, ...]
    """Of the pipeline, in order."""
    overrides: tuple[str, ...] = ()
    """What is otherwise than in the shipped experiment."""
    has_start: bool = True
    """False: all steps are fine-tuning."""


DIRECT, PUBLISHED = ("match", "finetune"), ("linear", "adapt", "finetune")
BOTH = (*NORMALISER, *SIGNED)
ROWS = {
    CONTROL: Row((CONTROL,)),
    "published route": Row(PUBLISHED, ("recipe=published",)),
    "nonlinear from the start": Row(DIRECT, has_start=False),
    "… with a layer-wise start": Row(DIRECT),
    "… with a normaliser": Row(DIRECT, (*NORMALISER,), has_start=False),
    "… with signed queries": Row(DIRECT, (*SIGNED,), has_start=False),
    "normaliser and signed queries": Row(DIRECT, BOTH, has_start=False),
    "… and a threshold": Row(DIRECT, (*BOTH, *THRESHOLD), has_start=False),
    "… and a layer-wise start": Row(DIRECT, BOTH),
    "… and the control as teacher": Row(DIRECT, (*BOTH, *BY_CONTROL), has_start=False),
}


def overrides_of(name: str, seed: int, folder: Path, steps: int) -> list[str]:
    """The command line of a row, without its stage."""
    row = ROWS[name]
    started = MATCHED if row.has_start else 0
    own = folder / f"seed_{seed}"
    slug = "".join(c if c.isalnum() else "_" for c in name).strip("_")
    return [
        "experiment=shipped",
        PUBLISHED_HARDWARE,
        *row.overrides,
        f"seed={seed}",
        f"trainer.match.steps={started}",
        f"trainer.linear.steps={started}",
        f"trainer.finetune.steps={steps - started}",
        "trainer.finetune.eval_every=1000",
        "trainer.device=cpu",
        "measure.tokens=null",
        "measure.chips=1",
        f"output_dir={own / slug if name != CONTROL else own}",
        f"previous={own if name != CONTROL else 'checkpoints/shipped'}",
    ]


def run_row(name: str, seed: int, folder: Path, steps: int) -> dict[str, float]:
    """Run a row's stages in this process, on one thread; returns its perplexities by name."""
    import shutil

    import torch

    from train import pipeline

    torch.set_num_threads(1)
    values: dict[str, float] = {}
    own = folder / f"seed_{seed}"
    if name == CONTROL and not (own / "digital").exists():
        shutil.copytree("checkpoints/shipped/digital", own / "digital")
    for stage in ROWS[name].stages:
        words = [f"stage={stage}", *overrides_of(name, seed, folder, steps)]
        config = run_config(words)
        pipeline.execute(config, lambda what: None)
        record = config.folder / config.stage.stage(stage).folder / "stage.json"
        values |= json.loads(record.read_text(encoding="utf-8"))["perplexity"]
    return values


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1, 2, …, so many")
    parser.add_argument("--steps", type=int, default=240, help="optimiser steps of 8 × 256 tokens in all")
    parser.add_argument("--jobs", type=int, default=2, help="rows at once, one thread each")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), help="default: all")
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/recipes"))
    words = parser.parse_args()
    results = measured(words.rows, range(1, words.seeds + 1), words.folder, words.steps, words.jobs)
    write_json(words.folder / "recipes.json", results)
    Console(highlight=False).print(table(results, words.steps))


def measured(
    rows: list[str], seeds: range, folder: Path, steps: int, jobs: int
) -> dict[str, dict[int, dict[str, float]]]:
    """Perplexities by row and seed. The controls come first: others learn from them."""
    results: dict[str, dict[int, dict[str, float]]] = {}
    console = Console(highlight=False, stderr=True)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for names in ([CONTROL], [name for name in rows if name != CONTROL]):
            asked = {
                pool.submit(run_row, name, seed, folder, steps): (name, seed) for name, seed in _each(names, seeds)
            }
            for done in as_completed(asked):
                name, seed = asked[done]
                results.setdefault(name, {})[seed] = done.result()
                console.print(f"seed {seed}, {name}: {_last(done.result()):.2f}")
    return {name: results[name] for name in ROWS if name in results}


def _each(names: list[str], seeds: range) -> Iterator[tuple[str, int]]:
    return ((name, seed) for seed in seeds for name in names)


def _last(values: dict[str, float]) -> float:
    return list(values.values())[-1]


def table(results: dict[str, dict[int, dict[str, float]]], steps: int) -> Table:
    """Perplexity, and its ratio to the control's of the same seed: mean and the half width of the 95 % interval over
    seeds."""
    shown = Table(title=f"{steps} steps of 2,048 tokens, held-out text, {len(results[CONTROL])} seeds")
    for column in ("recipe", "before fine-tuning", "perplexity", "÷ control"):
        shown.add_column(column, justify="left" if column == "recipe" else "right")
    for name, of_seeds in results.items():
        ratios = [_last(values) / _last(results[CONTROL][seed]) for seed, values in of_seeds.items()]
        before = [list(values.values())[-2] for values in of_seeds.values() if len(values) > 1]
        shown.add_row(
            name,
            with_interval(before, ".1f") if before else "–",
            with_interval([_last(values) for values in of_seeds.values()], ".2f"),
            "1" if name == CONTROL else with_interval(ratios, ".4f"),
        )
    return shown


STUDENT_T = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""Of the 95 % interval of a mean of so few numbers."""


def with_interval(values: list[float], form: str) -> str:
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return format(mean, form)
    spread = math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1) / n)
    return f"{mean:{form}} ± {STUDENT_T.get(n, 2.0) * spread:{form}}"


if __name__ == "__main__":
    main()
