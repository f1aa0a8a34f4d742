"""What is said on the terminal: the tables of a run, of an evaluation and of tasks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import aimc
from aimc.evaluate.scores import ACCURACIES

if TYPE_CHECKING:
    from aimc.evaluate.agreement import Agreement
    from aimc.evaluate.perplexity import Perplexity
    from aimc.evaluate.scores import TaskComparison

    from .harness import Score

Say = Callable[[Any], None]


_BOLD, _WARNED, _END = "\ue000", "\ue001", "\ue002"
_STYLES = {_BOLD: "bold", _WARNED: "yellow", _END: ""}
"""Marks that no path or text contains, so that none is taken for mark-up."""


def bold(text: str) -> str:
    """To be shown bold."""
    return f"{_BOLD}{text}{_END}"


def warned(text: str) -> str:
    """To be shown as a warning."""
    return f"{_WARNED}{text}{_END}"


def terminal(*, width: int | None = None) -> Say:
    """Print through rich, without guessing colours into numbers or mark-up into paths.

    Args:
        width: columns where nobody's terminal says how many there are: a file, a pipe; None: rich's 80.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    if width is not None and not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=width)

    def say(what: Any) -> None:
        if isinstance(what, str):
            shown, style = Text(), ""
            for part in re.split(f"([{''.join(_STYLES)}])", what):
                style = _STYLES.get(part, style)
                shown.append("" if part in _STYLES else part, style)
            what = shown
        console.print(what)

    return say


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
    """Perplexity by non-ideality: mean and standard deviation over chips, standard error over the text."""
    table = Table(title="Held-out perplexity under non-idealities")
    table.add_column("non-ideality")
    for column in ("perplexity", "± std", "chips", "± text", "÷ clean"):
        table.add_column(column, justify="right")
    for name, value in sweep.items():
        spread = f"{value.std:.2f}" if len(value.per_chip) > 1 else "–"
        table.add_row(
            aimc.plot.label(name),
            f"{value.mean:.2f}",
            spread,
            str(len(value.per_chip)),
            _error(value.stderr, ".2f"),
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


def agreement_table(rows: dict[str, Agreement], digital: str) -> Table:
    """Divergence from the digital model, top-1 agreement and ratio of perplexities; ± is the standard error over the
    text, ± chips the standard deviation over chips."""
    table = Table(title=f"Against the digital model ({digital})")
    chips = any(len(row.kl.per_chip) > 1 for row in rows.values())
    table.add_column("non-ideality", no_wrap=True)
    for column in ("KL, nat a token", *(["± chips"] if chips else []), "same top-1, %", "perplexity", "÷ digital"):
        table.add_column(column, justify="right")
    base = next(iter(rows.values())).digital
    table.add_row("digital", "0", *(["–"] if chips else []), "100", f"{base.mean:.2f}", "1")
    for name, row in rows.items():
        table.add_row(
            aimc.plot.label(name),
            _with_error(row.kl.mean, row.kl.stderr, ".4f"),
            *([f"{row.kl.std:.4f}" if len(row.kl.per_chip) > 1 else "–"] if chips else []),
            _with_error(row.top1.mean, row.top1.stderr, ".1f", percent=True),
            f"{row.perplexity.mean:.2f}",
            _with_error(row.ratio.mean, row.ratio.stderr, ".3f"),
        )
    return table


def comparison_table(rows: list[TaskComparison], digital: str) -> Table:
    """Scores of both models on the same items, accuracies in percent.

    ± is the standard error over items, of the difference over pairs; ± chips the standard deviation over chips.
    """
    table = Table(title=f"Tasks, against the digital model ({digital}), accuracies in %")
    chips = any(len(row.model.per_chip) > 1 for row in rows)
    table.add_column("task, metric", no_wrap=True)
    for column in ("items", "chance", "digital", "this model", *(["± chips"] if chips else []), "difference"):
        table.add_column(column, justify="right")
    for row in rows:
        percent = row.metric in ACCURACIES
        form = ".1f" if percent else ".2f" if max(row.digital.mean, row.model.mean) < 1e4 else ".1e"
        scale = 100 if percent else 1
        table.add_row(
            f"{row.task} {row.metric}",
            f"{row.n_items:,}",
            "–" if row.chance is None else format(100 * row.chance, ".1f"),
            *(_with_error(score.mean, score.stderr, form, percent=percent) for score in (row.digital, row.model)),
            *([format(scale * row.model.std, form) if len(row.model.per_chip) > 1 else "–"] if chips else []),
            _with_error(row.difference, row.stderr, form, percent=percent, sign="+"),
        )
    return table


def task_table(scores: list[Score]) -> Table:
    """Scores by task and metric; ± chips is the standard deviation over chips, ± items the standard error over
    items."""
    table = Table(title="Tasks")
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for column in ("score", "± chips", "± items", "chance", "items", "chips"):
        table.add_column(column, justify="right")
    for score in scores:
        form = _form(score.mean)
        spread = format(score.std, form) if len(score.per_chip) > 1 else "–"
        table.add_row(
            score.task,
            score.metric,
            format(score.mean, form),
            spread,
            _error(score.stderr, form),
            "–" if score.chance is None else format(score.chance, form),
            f"{score.n_items:,}",
            str(len(score.per_chip)),
        )
    return table


def _form(value: float) -> str:
    return ".4f" if abs(value) <= 1 else ".2f" if abs(value) < 1e5 else ".2e"


def _error(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _with_error(value: float, error: float | None, form: str, *, percent: bool = False, sign: str = "") -> str:
    scale = 100 if percent else 1
    return f"{value * scale:{sign}{form}} ± {_error(None if error is None else error * scale, form)}"
