"""What each ingredient of the training route buys: `python -m benchmarks.recipes`.

Every row is the pipeline on one model with a few settings changed, over a few seeds and with the same number of extra
training tokens, against the digital model given those tokens. Rows add one ingredient at a time, or leave one out. What
is measured stands in recipes.json at once; the same command goes on with what is missing, and an interrupted training
with its last point.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.pipelines import run_config
from benchmarks.places import parse
from benchmarks.recipe_rows import (
    CONTROL,
    DIGITAL,
    FULL,
    MEASURED_UNDER_NOISE,
    MODELS,
    NOISY,
    ROWS,
    Plan,
    overrides_of,
)
from benchmarks.recipe_tables import Results, last, noise_table, read_results, table, tokens_table, validation_curve
from benchmarks.side_by_side import Failure, Key, Outcome, Task, side_by_side
from train.files import write_json


def run_row(name: str, seed: int, plan: Plan) -> dict[str, Any]:
    """Run a row's stages in this process, on one thread; returns what the tables need of it."""
    import torch

    from train import pipeline

    torch.set_num_threads(1)
    gc.collect()  # trainers hold themselves, and with them the memory of the row before
    if torch.cuda.is_available() and plan.device != "cpu":
        torch.cuda.empty_cache()
    values: dict[str, Any] = {"perplexity": {}, "seconds": {}}
    for stage in ROWS[name].stages:
        config = run_config([f"stage={stage}", *overrides_of(name, seed, plan)])
        pipeline.execute(config, lambda what: None)
        record = json.loads((config.folder / config.stage.stage(stage).folder / "stage.json").read_text("utf-8"))
        values["perplexity"] |= record["perplexity"]
        values["seconds"][stage] = record["seconds"]
    if plan.curve_every is not None and name != DIGITAL:
        values["curve"] = validation_curve(plan.place(name, seed), ROWS[name].stages)
    if plan.noise_chips and name in MEASURED_UNDER_NOISE:
        values["noise"] = under_noise(name, seed, plan)
    return values


def under_noise(name: str, seed: int, plan: Plan) -> dict[str, list[float]]:
    """Held-out perplexities of a finished row's chips by the name of the noise, and of its seed's control on the same
    text. Training never has these chips."""
    from dataclasses import replace

    import aimc
    from train.models import load_analog, on_accelerator
    from train.pipeline import opened
    from train.pretrained import load_digital
    from train.ranks import join
    from train.stages import STAGES
    from train.tables import silent

    stage = ROWS[name].stages[-1]
    config = run_config([f"stage={stage}", *overrides_of(name, seed, plan)])
    run = opened(config, silent, join(config.trainer))
    whole = replace(run.measurement, tokens=plan.noise_tokens or run.measurement.tokens)
    control = on_accelerator(load_digital(str(plan.place(CONTROL, seed) / STAGES[CONTROL].folder)))
    found = {CONTROL: aimc.perplexity(control, run.text, replace(whole, chips=1)).per_chip}
    model = on_accelerator(load_analog(config.folder / config.stage.stage(stage).folder))
    typical = config.nonideality
    for label, noise in (("clean", aimc.Noise()), ("typical", typical), ("3 × typical", typical.scaled(3.0))):
        chips = plan.noise_chips if noise.active() else 1
        measurement = replace(whole, chips=chips)
        found[label] = aimc.perplexity(model, run.text, measurement, nonideality=noise).per_chip
    return found


def main() -> None:
    """Run what is missing, and print the tables."""
    words = parse(_parser(), "rows")
    subject = MODELS[words.model]
    for option in subject.needs:
        if getattr(words, option) is None:
            sys.exit(f"--model {words.model}: needs --{option}, as it is not in the repository; see --help")
    if words.noise and "nonideality=none" in words.set:
        sys.exit("--noise measures under the run's nonideality, which nonideality=none leaves empty; drop one of them")
    plan = Plan(
        model=words.model,
        folder=words.folder,
        steps=words.steps or subject.steps,
        digital_steps=subject.digital_steps if words.digital_steps is None else words.digital_steps,
        tokens=subject.tokens if words.tokens is None else words.tokens,
        teacher=words.teacher or subject.teacher,
        curve_every=words.curve_every,
        device=words.device,
        backend=words.backend,
        text=words.text,
        source=words.source,
        noise_chips=words.noise,
        noise_tokens=words.noise_tokens,
        words=tuple(words.set),
        control_words=tuple(words.set_control),
    )
    rows = list(dict.fromkeys([*(words.rows or subject.rows), *((FULL, NOISY) if words.noise else ())]))
    results, outcome = measured(plan, rows, range(1, words.seeds + 1), words.jobs, words.minutes)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    if results:
        title = f"{plan.model}, {plan.steps} steps of {subject.batch_size * 256:,} tokens"
        console.print(table(results, title))
    if any("curve" in values for of_seeds in results.values() for values in of_seeds.values()):
        console.print(tokens_table(results))
    if any("noise" in values for of_seeds in results.values() for values in of_seeds.values()):
        console.print(noise_table(results))
    if outcome.signal is not None:
        sys.exit(128 + outcome.signal)
    if outcome.failed:
        missing = [f"seed {seed}, {name} ({failure.why})" for (name, seed), failure in outcome.failed.items()]
        sys.exit("not measured: " + "; ".join(missing))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="shipped")
    parser.add_argument("--text", type=Path, help="folder or file of the text of --model peps, tinystories")
    parser.add_argument("--source", type=Path, help="folder of the pretrained model of --model tinystories")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1, 2, …, so many")
    parser.add_argument("--steps", type=int, help="optimiser steps in all; default: the model's (240 for shipped)")
    parser.add_argument("--digital-steps", type=int, help="of the digital model; default: the model's")
    parser.add_argument("--tokens", type=int, help="held-out tokens of the measurements; default: the model's")
    parser.add_argument("--teacher", choices=(DIGITAL, CONTROL), help="of analog models; default: the model's")
    parser.add_argument(
        "--curve-every", type=int, metavar="STEPS", help="steps between points of curves; gives the table of tokens"
    )
    parser.add_argument(
        "--noise",
        type=int,
        default=0,
        metavar="CHIPS",
        help=f"measure on so many chips under noise, and train the row {NOISY!r}",
    )
    parser.add_argument(
        "--noise-tokens", type=int, metavar="TOKENS", help="held-out tokens of that; default: all of --tokens"
    )
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), help="in the order of running; default: the model's")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="settings of all rows' runs")
    parser.add_argument(
        "--set-control", nargs="*", default=[], metavar="FIELD=VALUE", help="and of the control's alone"
    )
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/recipes"))
    return parser


def measured(
    plan: Plan, rows: Sequence[str], seeds: range, jobs: int, minutes: float | None = None
) -> tuple[Results, Outcome]:
    """What earlier runs by the same plan measured, and this one; and, by row and seed, why something is missing.

    Args:
        plan: of all rows.
        rows: in the order in which they are begun; each over all seeds.
        seeds: of each row.
        jobs: rows at once.
        minutes: after which no new row is begun; None: no limit.
    """
    file, facts = plan.folder / "recipes.json", json.loads(json.dumps(plan.facts()))
    results = read_results(file, facts)
    console = Console(highlight=False, stderr=True)
    names = list(dict.fromkeys([DIGITAL, CONTROL, *rows]))
    tasks = [
        Task((name, seed), partial(run_row, name, seed, plan), tuple((x, seed) for x in plan.waits_for(name)))
        for name in names
        for seed in seeds
        if not _is_whole(results.get(name, {}).get(seed), name, plan)
    ]

    def on_done(key: Key, values: dict[str, Any]) -> None:
        name, seed = key
        results.setdefault(name, {})[seed] = values
        write_json(file, {"plan": facts, "device": plan.device, "backend": plan.backend, "rows": results})
        console.print(f"seed {seed}, {name}: {last(values):.2f}")

    def on_failed(key: Key, failure: Failure) -> None:
        console.print(f"seed {key[1]}, {key[0]}: {failure.why}", style="red", markup=False)

    return results, side_by_side(tasks, jobs, on_done, on_failed, minutes)


def _is_whole(values: dict[str, Any] | None, name: str, plan: Plan) -> bool:
    """Whether there is nothing left to measure of a row."""
    if values is None:
        return False
    if not (plan.noise_chips and name in MEASURED_UNDER_NOISE):
        return True
    noise = values.get("noise", {})
    return CONTROL in noise and len(noise.get("typical", ())) == plan.noise_chips


if __name__ == "__main__":
    main()
