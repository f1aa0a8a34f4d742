"""What is said on the terminal: the tables of a run, of an evaluation and of tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

import aimc

if TYPE_CHECKING:
    from aimc.evaluate.perplexity import Perplexity

    from .harness import Score

Say = Callable[[Any], None]


def terminal() -> Say:
    """Print through rich, without guessing colours into numbers."""
    console = Console(highlight=False)
    return console.print


def silent(_: Any) -> None:
    """Say nothing: what the processes other than the first do."""


def announced(say: Say) -> Callable[[str, Perplexity], None]:
    """Say each row of a sweep as soon as it is measured."""
    return lambda name, value: say(f"  {aimc.plot.label(name)}: {value}")


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
