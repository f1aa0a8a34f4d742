"""Models beside attention in one harness: `python -m benchmarks.beside`.

GPT-2, H3, StripedHyena, Mamba and gated slots of equal parameters are trained from scratch on the same tokens of the
same text. What has attention then goes into gain cells by the pipeline's own stages, gated slots by
:func:`aimc.models.gsa.put_on_cells`; each is trained there and measured clean and under `presets.typical`, beside the
digital model given the same extra tokens. What is finished is not run again, so that an interrupted table goes on; a
model that fails is named at the end and costs no other its row.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks.pipelines import run_config
from benchmarks.places import device_of_pipeline, parse
from benchmarks.recipe_tables import with_interval
from benchmarks.side_by_side import Failure, Key, Outcome, Task, side_by_side
from train.files import read_object, write_json
from train.stages import STAGES
from train.stages.stage import Stage, StageResult

if TYPE_CHECKING:
    from aimc.hardware import Hardware
    from train.run import Run
    from train.schema import RunConfig

ATTENTION, SLOTS, NONE = "attention", "slots", "none"
MODELS = {
    "gpt2_tiny": ATTENTION,
    "h3_tiny": ATTENTION,
    "stripedhyena_tiny": ATTENTION,
    "s4d_tiny": NONE,
    "mamba_tiny": NONE,
    "gsa_tiny": SLOTS,
}
"""Files of `conf/model/`, and what of each goes into gain cells."""
DIGITAL, CONTROL, START, CELLS, TYPICAL = "digital", "digital, extra tokens", "cells, start", "cells", "cells, typical"
COLUMNS = (DIGITAL, CONTROL, START, CELLS, TYPICAL)
CHIPS, TOKENS, CONTEXT, WIDTH = 3, 16384, 256, 140
EMBEDDED = "embedded"


@dataclass(frozen=True, slots=True)
class Effort:
    """How long each model is trained, in steps of 8 × 256 tokens."""

    steps: int = 200
    """From scratch."""
    matched: int = 20
    """Of attention's cells, layer by layer."""
    extra: int = 60
    """On cells in all; the control has as many."""
    tokens: int = TOKENS
    """Held-out ones that are measured."""


QUICK = Effort(steps=2, matched=1, extra=2, tokens=512)


@dataclass(frozen=True, slots=True)
class Place:
    """Where models compute. It shapes no number of the table but in its last digits."""

    device: str = "cpu"
    """`cpu`; `cuda`; or `auto`, a GPU where there is one."""
    backend: str = "auto"
    """Implementation of attention's cells, `hardware.backend`; slots have one of their own."""


def slot_hardware() -> Hardware:
    """Cells with a softmax between two arrays, as large as a head has slots; the converters' ranges follow the head."""
    from aimc import presets

    softmax = presets.with_softmax(presets.gain_cell_cmos())
    return replace(softmax, array=replace(softmax.array, window=32, rows=32, full_scales="head"))


def _train_slots(run: Run) -> StageResult:
    """Slots into cells, calibrated, and trained there."""
    from aimc.models.gsa import calibrate_slots, put_on_cells

    result = StageResult(run.model_of("digital"))
    model: Any = result.model
    put_on_cells(model, slot_hardware())
    calibrate_slots(model, run.batches())
    result.perplexity[START] = run.measure(model)
    result.history = run.train(model)
    result.perplexity[CELLS] = run.measure(model)
    return result


ON_SLOTS = replace(
    STAGES["finetune"],
    folder="slots",
    describe="Gated slots in gain cells, trained there.",
    run=_train_slots,
    needs="digital",
    fits=None,
    depends_on=("stage.calibration_batches", "stage.calibration_batch_size"),
)
"""No stage of the pipeline: slots are not the window of tokens that its hardware describes."""


def stages_of(model: str) -> list[Stage]:
    """In order."""
    wanted = {
        NONE: ["digital", "control"],
        ATTENTION: ["digital", "control", "match", "finetune"],
        SLOTS: ["digital", "control"],
    }
    last = [ON_SLOTS] if MODELS[model] == SLOTS else []
    return [STAGES[name] for name in wanted[MODELS[model]]] + last


def overrides_of(
    model: str,
    seed: int,
    folder: Path,
    effort: Effort,
    text: str | None,
    place: Place = Place(),
    *,
    by_layer: bool = False,
) -> list[str]:
    """The command line of a model, without its stage; `by_layer`: of a stage some of whose extra steps are matched
    layer by layer, as only attention's are."""
    data = ["data=embedded"] if text is None else ["data=text", f"data.path={text}", "data.vocab_size=2048"]
    matched = min(effort.matched, effort.extra) if by_layer else 0
    steps = {"digital": effort.steps, "match": matched, "finetune": effort.extra - matched}
    return [
        f"model={model}",
        *data,
        f"data.context={CONTEXT}",
        "trainer=embedded",
        "hardware=normalised",
        "hardware.array.full_scales=global",  # as the tables were measured
        "hardware.normaliser.least=0",
        f"hardware.array.window={CONTEXT}",
        f"hardware.backend={place.backend}",
        f"seed={seed}",
        *(f"trainer.{name}.steps={n}" for name, n in steps.items()),
        *(f"trainer.{name}.batch_size=8" for name in steps),
        "trainer.digital.dropout=false",  # some families have none
        "trainer.digital.learning_rate=2e-3",
        "trainer.digital.warmup_steps=20",
        "trainer.finetune.learning_rate=1e-3",
        "trainer.finetune.distillation=0",  # the same loss as the control's: a teacher this young would hold back
        *(f"trainer.{name}.eval_every=1000" for name in steps),
        device_of_pipeline(place.device),
        "stage.calibration_batches=4",
        f"measure.tokens={effort.tokens}",
        f"measure.chips={CHIPS}",
        f"output_dir={folder / f'seed_{seed}' / model}",
    ]


def run_model(model: str, seed: int, folder: Path, effort: Effort, text: str | None, place: Place) -> dict[str, Any]:
    """All stages of one model with one seed, in this process, on one thread; perplexities by column, and what else the
    table tells."""
    import torch
    from accelerate import PartialState

    from benchmarks.machine import device_name
    from train import pipeline

    torch.set_num_threads(1)
    started, found = time.perf_counter(), dict[str, float]()
    records, config = [], None
    for stage in stages_of(model):
        by_layer = MODELS[model] == ATTENTION and stage.analog
        words = [f"stage={stage.name}", *overrides_of(model, seed, folder, effort, text, place, by_layer=by_layer)]
        config = run_config(words)
        pipeline.execute(config, lambda what: None, [stage])
        record = json.loads((config.folder / stage.folder / "stage.json").read_text(encoding="utf-8"))
        records.append(record)
        found |= _columns(record["perplexity"])
    assert config is not None
    if MODELS[model] != NONE:
        found[TYPICAL] = _under_typical(config, config.folder / stages_of(model)[-1].folder)
    return {
        "model": model,
        "seed": seed,
        "perplexity": {name: found[name] for name in COLUMNS if name in found},
        "device": device_name(PartialState().device),  # on which it has computed
        "stage_seconds": {record["stage"]: record["seconds"] for record in records},
        "seconds": round(time.perf_counter() - started, 1),
    }


def _columns(perplexity: Mapping[str, float]) -> dict[str, float]:
    """What a stage calls its moments, by what the table calls them."""
    names = {
        "digital": DIGITAL,
        "digital, same extra tokens": CONTROL,
        "nonlinear cell, statistics start": START,
        "nonlinear cell, fine-tuned": CELLS,
    }
    return {names.get(name, name): value for name, value in perplexity.items()}


def _under_typical(config: RunConfig, folder: Path) -> float:
    """Perplexity of the model in a folder on chips of `presets.typical`, mean; kept beside it."""
    from transformers import AutoModelForCausalLM

    import aimc
    from train.models import digest_of, load_analog, on_accelerator
    from train.tokens import prepare

    keeps = folder.parent / f"{folder.name}_typical.json"
    measure = config.measure
    settings = {"model": digest_of(folder, folder.name), "chips": measure.chips, "tokens": measure.tokens}
    before = read_object(keeps)
    if before is not None and before["settings"] == settings:
        return before["perplexity"]
    is_slots = folder.name == ON_SLOTS.folder
    load: Callable[[Path], Any] = AutoModelForCausalLM.from_pretrained if is_slots else load_analog
    text = prepare(config.data, None, CONTEXT).tensor("test", measure.tokens)
    measured = aimc.perplexity(
        on_accelerator(load(folder)), text, replace(measure, context=CONTEXT), nonideality=aimc.presets.typical()
    )
    write_json(keeps, {"settings": settings, "perplexity": measured.mean, "per_chip": measured.per_chip})
    return measured.mean


def table(rows: Sequence[Mapping[str, Any]], effort: Effort, text: str) -> Table:
    """Perplexity by model: mean and half width of the 95 % interval over seeds; ratios are formed seed by seed."""
    seeds = len({row["seed"] for row in rows})
    shown = Table(
        title=f"Held-out perplexity, {text}: {effort.steps} steps of 2,048 tokens from scratch, {effort.extra} more,"
        f" {seeds} seed{'s' if seeds > 1 else ''}, {CHIPS} chips"
    )
    for column in ("model", *COLUMNS, "cells ÷ digital, extra tokens"):
        shown.add_column(column, justify="left" if column == "model" else "right")
    for model in MODELS:
        of_model = [row["perplexity"] for row in rows if row["model"] == model]
        if of_model:
            ratios = [row[CELLS] / row[CONTROL] for row in of_model if CELLS in row]
            shown.add_row(
                model,
                *(_cell([row[name] for row in of_model if name in row], ".2f") for name in COLUMNS),
                _cell(ratios, ".3f"),
            )
    return shown


def _cell(values: list[float], form: str) -> str:
    return with_interval(values, form) if values else "–"


@dataclass(slots=True)
class Rows:
    """What is known of the models, in `beside.json`: this run's rows and those of earlier runs of the same effort. A
    table of another effort is put aside, and comes back when that effort does."""

    file: Path
    effort: dict[str, int]
    text: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        before = read_object(self.file)
        if before is not None and (before.get("effort"), before.get("text")) != (self.effort, self.text):
            self.file.rename(self._aside(before.get("effort", {})))
            before = read_object(self._aside(self.effort))
        if before is not None:
            self.rows = before["rows"]

    def _aside(self, effort: Mapping[str, int]) -> Path:
        name = "_".join(f"{key}{value}" for key, value in effort.items())
        return self.file.with_name(f"beside_{name or 'unknown'}.json")

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Take in rows and write all, in the table's order; a row takes the place of one of the same model and
        seed."""
        found = {(row["model"], row["seed"]): row for row in (*self.rows, *rows)}
        self.rows = sorted(found.values(), key=lambda row: (list(MODELS).index(row["model"]), row["seed"]))
        write_json(self.file, {"effort": self.effort, "text": self.text, "rows": self.rows})


def _words(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beside", description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS), help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1, 2, …, so many")
    parser.add_argument("--text", default=None, help="text file or folder; default: the documentation inside CPython")
    parser.add_argument("--steps", type=int, default=Effort().steps, help="optimiser steps of 8 × 256 tokens")
    parser.add_argument("--extra", type=int, default=Effort().extra, help="steps on cells, and of the control")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="held-out tokens that are measured")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything: whether it runs")
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/beside"))
    return parse(parser, "models", arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, write `beside.json` after every model, print the table; ends with status 1 where a model
    failed, and with 128 more than the number of a signal that stopped it."""
    words = _words(arguments)
    effort = replace(Effort(), steps=words.steps, extra=words.extra, tokens=words.tokens)
    effort = QUICK if words.quick else effort
    text = EMBEDDED if words.text is None else Path(words.text).name
    folder, place = words.folder / text, Place(words.device, words.backend)
    rows = Rows(folder / "beside.json", effort_of(effort), text)
    # the slowest first, so that no core waits for it at the end
    tasks = [
        Task((model, seed), partial(run_model, model, seed, folder, effort, words.text, place))
        for seed in range(1, words.seeds + 1)
        for model in reversed(MODELS)
        if model in words.models
    ]
    try:
        _tokenise_once(folder, effort, words.text)
        outcome = _run_all(tasks, rows, words.jobs, words.minutes)
    finally:  # of an interrupted run, too
        if rows.rows:
            Console(highlight=False, width=WIDTH).print(table(rows.rows, effort, text))
    if outcome.signal is not None:
        sys.exit(128 + outcome.signal)
    failed = [_name(key) for key, failure in outcome.failed.items() if failure.error is not None]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; reports are in {folder / 'failed'}")


def _run_all(tasks: Sequence[Task], rows: Rows, jobs: int, minutes: float | None) -> Outcome:
    """Run tasks, take in their rows, say what each gave; of one that fails, its folder `failed` has the traceback."""
    console = Console(highlight=False, stderr=True, width=WIDTH)

    def on_done(key: Key, row: dict[str, Any]) -> None:
        rows.add([row])
        said = ", ".join(f"{column} {value:.2f}" for column, value in row["perplexity"].items())
        console.print(f"{_name(key)}: {said} ({row['seconds']:.0f} s)")

    def on_failed(key: Key, failure: Failure) -> None:
        if failure.error is None:
            console.print(f"{_name(key)}: {failure.why}; the same command goes on")
            return
        report = rows.file.parent / "failed" / f"{key[0]}_seed_{key[1]}.txt"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text("".join(traceback.format_exception(failure.error)), encoding="utf-8")
        console.print(f"{_name(key)}: failed, {failure.why.splitlines()[0]}", markup=False)

    return side_by_side(tasks, jobs, on_done, on_failed, minutes)


def _name(key: Key) -> str:
    return f"seed {key[1]}, {key[0]}"


def effort_of(effort: Effort) -> dict[str, int]:
    """As JSON."""
    from dataclasses import asdict

    return asdict(effort) | {"chips": CHIPS, "context": CONTEXT}


def _tokenise_once(folder: Path, effort: Effort, text: str | None) -> None:
    """The text, before jobs ask for it side by side."""
    from train.tokens import prepare

    prepare(run_config(overrides_of("gpt2_tiny", 1, folder, effort, text)).data, None, CONTEXT)


if __name__ == "__main__":
    main()
