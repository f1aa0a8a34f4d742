"""What a run came to: a table, results.json, results.csv and figures."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.table import Table

import aimc
from aimc.evaluate.perplexity import Perplexity
from aimc.evaluate.sweeps import nonideality_sweep

from .errors import RunError
from .files import write_json, write_text
from .harness import Score
from .models import load_analog
from .stages import Run, pipeline_stages, record_of

Say = Callable[[Any], None]


def silent(_: Any) -> None:
    """Say nothing: what the processes other than the first do."""


def evaluate_run(run: Run) -> None:
    """Measure the last analog model under non-idealities, then write and show everything about the run.

    Raises:
        RunError: there is no analog model yet.
    """
    records = {
        stage: record
        for stage in pipeline_stages(run.config.stage)
        if (record := record_of(run.folder(stage))) is not None
    }
    last = next((stage for stage in ("finetune", "adapt", "linear") if stage in records), None)
    if last is None:
        raise RunError(f"output_dir={run.config.output_dir}: no analog model to evaluate; run stage=pipeline first")
    run.say(f"[bold]evaluate[/]: non-idealities of the {last} model over {run.config.stage.chips} chips")
    model = load_analog(run.folder(last))
    sweep = nonideality_sweep(
        model,
        run.test_tokens,
        run.config.nonideality,
        chips=run.config.stage.chips,
        context=run.context,
        stride=run.config.stage.stride,
        on_result=_announce(run.say),
    )
    if not PartialState().is_main_process:
        return
    stages = {name: value for record in records.values() for name, value in record["perplexity"].items()}
    folder = Path(run.config.output_dir) / "report"
    write_results(folder, stages, sweep)
    draw(folder, records, stages, sweep)
    measured = sorted({record["measured_tokens"] for record in records.values()})
    run.say(stage_table(stages, " or ".join(f"{n:,}" for n in measured), run.context))
    run.say(sweep_table(sweep))
    if (closed := gap_closed(stages)) is not None:
        run.say(
            f"Fine-tuning closed [bold]{closed:.0%}[/] of the gap, in nat, between the unadapted nonlinear model and"
            " the digital one."
        )
    run.say(f"Results and figures are in {folder}; the models beside it.")


def _announce(say: Say) -> Callable[[str, Perplexity], None]:
    return lambda name, value: say(f"  {aimc.plot.label(name)}: {value}")


def gap_closed(stages: dict[str, float]) -> float | None:
    """Share of the gap in nat between the unadapted nonlinear and the digital model that fine-tuning closes; None if
    there is none, or it is unknown."""
    values = [stages.get(name) for name in ("digital", "nonlinear cell, unadapted", "nonlinear cell, fine-tuned")]
    if any(value is None for value in values):
        return None
    low, high, now = (math.log(value) for value in values)  # type: ignore[arg-type]
    return (high - now) / (high - low) if high > low else None


def stage_table(stages: dict[str, float], n_tokens: str, context: int) -> Table:
    """Perplexity by stage, with its ratio to the digital model given the same extra tokens, or else to the digital
    one."""
    table = Table(title=f"Held-out perplexity by stage ({n_tokens} tokens, context {context})")
    base_name = "digital, same extra tokens" if "digital, same extra tokens" in stages else "digital"
    table.add_column("stage")
    table.add_column("perplexity", justify="right")
    table.add_column(f"÷ {base_name}", justify="right")
    base = stages.get(base_name)
    for name, value in stages.items():
        table.add_row(name, f"{value:.2f}", f"{value / base:.3f}" if base else "–")
    return table


def sweep_table(sweep: dict[str, Perplexity]) -> Table:
    """Perplexity by non-ideality, mean and standard deviation over chips."""
    table = Table(title="Held-out perplexity under non-idealities")
    table.add_column("non-ideality")
    for column in ("perplexity", "± std", "chips", "÷ clean"):
        table.add_column(column, justify="right")
    for name, value in sweep.items():
        spread = f"{value.std:.2f}" if len(value.per_chip) > 1 else "–"
        table.add_row(
            aimc.plot.label(name),
            f"{value.mean:.2f}",
            spread,
            str(len(value.per_chip)),
            f"{value.mean / sweep['clean'].mean:.3f}",
        )
    return table


def ablation_table(rows: dict[str, float]) -> Table:
    """Perplexity with one deterministic effect off at a time; the first row has all of them."""
    table = Table(title="One effect off at a time, weights unchanged")
    table.add_column("effects")
    table.add_column("perplexity", justify="right")
    table.add_column("÷ all effects", justify="right")
    whole = next(iter(rows.values()))
    for name, value in rows.items():
        table.add_row(name, f"{value:.2f}", f"{value / whole:.3f}")
    return table


def task_table(scores: list[Score]) -> Table:
    """Scores by task and metric; ± chips is the standard deviation over chips, ± items the standard error over
    items."""
    table = Table(title="Tasks")
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for column in ("score", "± chips", "± items", "items", "chips"):
        table.add_column(column, justify="right")
    for score in scores:
        form = ".4f" if abs(score.mean) <= 1 else ".2f" if abs(score.mean) < 1e5 else ".2e"
        spread = format(score.std, form) if len(score.per_chip) > 1 else "–"
        error = "–" if score.stderr is None else format(score.stderr, form)
        table.add_row(
            score.task,
            score.metric,
            format(score.mean, form),
            spread,
            error,
            f"{score.n_items:,}",
            str(len(score.per_chip)),
        )
    return table


def write_results(folder: Path, stages: dict[str, float], sweep: dict[str, Perplexity]) -> None:
    """results.json and results.csv: the same rows."""
    rows = [
        {"group": "stage", "name": name, "perplexity": value, "std": 0.0, "chips": 1} for name, value in stages.items()
    ]
    rows += [
        {"group": "nonideality", "name": name, "perplexity": p.mean, "std": p.std, "chips": len(p.per_chip)}
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


def draw(
    folder: Path, records: dict[str, dict[str, Any]], stages: dict[str, float], sweep: dict[str, Perplexity]
) -> None:
    """The figures of a run."""
    figures = {"nonidealities.png": aimc.plot.nonideality_bars(sweep)}
    if "adapt" in records:
        curve = records["adapt"]["notes"]["adaptation"]
        figures["adaptation.png"] = aimc.plot.adaptation_curve(
            [point["perplexity"] for point in curve],
            reference=stages.get("linear cell, trained"),
            digital=stages.get("digital"),
        )
    histories = {
        stage: history
        for stage in ("control", "linear", "finetune")
        if stage in records and (history := _history(folder.parent, stage))
    }
    if histories:
        figures["training.png"] = aimc.plot.training_curves(
            histories, digital=records.get("digital", {}).get("notes", {}).get("validation perplexity")
        )
    for name, figure in figures.items():
        aimc.plot.save(figure, folder / name)


def _history(output_dir: Path, stage: str) -> list[dict[str, float]]:
    from .stages import FOLDERS

    return json.loads((output_dir / FOLDERS[stage] / "history.json").read_text(encoding="utf-8"))


def terminal() -> Say:
    """Print through rich, without guessing colours into numbers."""
    console = Console(highlight=False)
    return console.print
