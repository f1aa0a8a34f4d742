"""What a run came to: tables, results.json, results.csv and figures."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from accelerate import PartialState

import aimc
from aimc.evaluate.perplexity import Perplexity
from aimc.evaluate.sweeps import nonideality_sweep

from .errors import RunError
from .files import write_json, write_text
from .models import load_analog
from .ranks import everyone
from .record import history_of, record_of
from .run import Run
from .stages import ROUTES, STAGES
from .stages.stage import Stage
from .tables import announced, bold, stage_table, sweep_table
from .tokens import require_same_tokenizer


def evaluate_run(run: Run) -> None:
    """Measure the last analog model under non-idealities, then write and show everything about the run.

    Raises:
        RunError: there is no analog model yet, or it reads other tokens than the run's text has.
    """
    root = run.config.folder
    records = {
        stage: record
        for stage in run.config.stage.in_pipeline()
        if (record := record_of(root / STAGES[stage].folder, run.say)) is not None
    }
    last = last_analog(list(records))
    if last is None:
        raise RunError(f"output_dir={root}: no analog model to evaluate; run stage=pipeline first")
    require_same_tokenizer(root / STAGES[last].folder, run.data.tokenizer)
    run.say(f"{bold('evaluate')}: non-idealities of the {last} model over {run.measurement.chips} chips")
    sweep = nonideality_sweep(
        load_analog(root / STAGES[last].folder).to(run.device),  # type: ignore[arg-type]
        run.text,
        run.config.nonideality,
        run.measurement,
        on_result=announced(run.say),
        ranks=everyone(),
    )
    if not PartialState().is_main_process:
        return
    stages = {name: value for record in records.values() for name, value in record["perplexity"].items()}
    write_results(root / "report", stages, sweep)
    draw(root, records, stages, sweep, ROUTES[run.config.stage.recipe])
    measured = sorted({record["measured_tokens"] for record in records.values()})
    n_tokens = " or ".join(f"{n:,}" for n in measured)
    run.say(stage_table(stages, n_tokens, sweep["clean"].context or run.context))
    run.say(sweep_table(sweep))
    if (closed := gap_closed(stages)) is not None:
        run.say(
            f"Training closed {bold(f'{closed:.0%}')} of the gap, in nat, between the untrained nonlinear model and the"
            " digital one."
        )
    run.say(f"Results and figures are in {root / 'report'}; the models beside it.")


def last_analog(stages: list[str]) -> str | None:
    """The last of some stages, in the pipeline's order, whose model has analog attention; None: none has."""
    return next((name for name in reversed(STAGES) if name in stages and STAGES[name].analog), None)


def gap_closed(stages: dict[str, float]) -> float | None:
    """Share of the gap in nat between the untrained nonlinear and the digital model that training closes; None if there
    is none, or it is unknown."""
    untrained = stages.get("nonlinear cell, statistics start", stages.get("nonlinear cell, unadapted"))
    values = [stages.get("digital"), untrained, stages.get("nonlinear cell, fine-tuned")]
    if any(value is None for value in values):
        return None
    low, high, now = (math.log(value) for value in values)  # type: ignore[arg-type]
    return (high - now) / (high - low) if high > low else None


def write_results(folder: Path, stages: dict[str, float], sweep: dict[str, Perplexity]) -> None:
    """results.json and results.csv: the same rows."""
    rows = [
        {"group": "stage", "name": name, "perplexity": value, "std": 0.0, "chips": 1, "stderr": None}
        for name, value in stages.items()
    ]
    rows += [
        {
            "group": "nonideality",
            "name": name,
            "perplexity": p.mean,
            "std": p.std,
            "chips": len(p.per_chip),
            "stderr": p.stderr,
        }
        for name, p in sweep.items()
    ]
    first = next(iter(sweep.values()))
    rule = {"context": first.context, "stride": first.stride, "scored_tokens": first.n_tokens}
    per_chip = {name: value.per_chip for name, value in sweep.items()}
    write_json(folder / "results.json", {"rule": rule, "rows": rows, "per_chip": per_chip})
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "results.csv", text.getvalue())


def add_results(folder: Path, more: dict[str, Any], *, keep: bool = True) -> None:
    """Add to what results.json holds; with `keep` false, in place of it."""
    file = folder / "results.json"
    before = json.loads(file.read_text(encoding="utf-8")) if keep else {}
    write_json(file, {**before, **more})


def draw(
    root: Path,
    records: dict[str, dict[str, Any]],
    stages: dict[str, float],
    sweep: dict[str, Perplexity],
    route: dict[str, Stage],
) -> None:
    """The figures of a run whose pipeline has the stages of `route`."""
    figures = {"nonidealities.png": aimc.plot.nonideality_bars(sweep)}
    curve = records.get("adapt", {}).get("notes", {}).get("adaptation")
    if curve:
        figures["adaptation.png"] = aimc.plot.adaptation_curve(
            [point["perplexity"] for point in curve],
            reference=stages.get("linear cell, trained"),
            digital=stages.get("digital"),
        )
    if curves := training_curves(root, records, route):
        figures["training.png"] = aimc.plot.training_curves(
            curves, digital=records.get("digital", {}).get("notes", {}).get("validation perplexity")
        )
    for name, figure in figures.items():
        aimc.plot.save(figure, root / "report" / name)


def training_curves(
    root: Path, records: dict[str, dict[str, Any]], route: dict[str, Stage]
) -> dict[str, list[dict[str, float]]]:
    """Training logs by their names in the figure, each from where the trainings before it ended."""
    return {
        label: [{**line, "tokens": line["tokens"] + _tokens_before(name, records, route)} for line in log]
        for name in records
        if (label := STAGES[name].curve) and (log := history_of(root / STAGES[name].folder))
    }


def _tokens_before(name: str, records: dict[str, dict[str, Any]], route: dict[str, Stage]) -> int:
    """Tokens that the stages before one trained on, back to the digital baseline, which is where the figure begins."""
    needed = route[name].needs
    if needed is None or not STAGES[needed].analog:
        return 0
    return records.get(needed, {}).get("training_tokens", 0) + _tokens_before(needed, records, route)
