"""What `python -m benchmarks.recipes` prints: perplexities, the tokens that they take, and what noise does to them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from scipy.stats import t as student_t

from .recipe_rows import CONTROL, DIGITAL, PUBLISHED_ROUTE, ROWS

Results = dict[str, dict[int, dict[str, Any]]]
"""By row and seed: `perplexity` by moment, in order; perhaps `curve`, `[tokens, perplexity]` a point, and `noise`, the
perplexities of all chips by the name of the noise, and the control's as :data:`CONTROL`."""
WITHIN = (0.05, 0.02)
"""How near to the control's last validation perplexity."""


def last(values: dict[str, Any]) -> float:
    """A row's perplexity in the end."""
    return list(values["perplexity"].values())[-1]


def validation_curve(folder: Path, stages: Sequence[str]) -> list[tuple[int, float]]:
    """Training tokens of all stages so far, and perplexity on the validation text, from what they left.

    Args:
        folder: of the row.
        stages: of the row, in order; the last one's curve is taken, as what comes before is another machine or is
            matched layer by layer.
    """
    from train.record import history_of
    from train.stages import STAGES

    logs = [history_of(folder / STAGES[stage].folder) for stage in stages]
    before = sum(max((int(line["tokens"]) for line in log), default=0) for log in logs[:-1])
    return [(before + int(line["tokens"]), line["eval_perplexity"]) for line in logs[-1] if "eval_perplexity" in line]


def tokens_to(curve: Sequence[Sequence[float]], target: float) -> int | None:
    """Tokens of the first point of a curve that is at most at a perplexity; None: none is."""
    return next((int(tokens) for tokens, perplexity in curve if perplexity <= target), None)


def table(results: Results, title: str) -> Table:
    """Perplexity, and its ratio to those of the digital model and of the control of the same seed: mean and the half
    width of the 95 % interval over seeds."""
    shown = Table(title=f"{title}, held-out text")
    for column in ("recipe", "seeds", "before fine-tuning", "perplexity", "÷ digital", "÷ control"):
        shown.add_column(column, justify="left" if column == "recipe" else "right")
    for name in (name for name in ROWS if name in results):
        of_seeds = results[name]
        before = [
            list(values["perplexity"].values())[-2] for values in of_seeds.values() if len(values["perplexity"]) > 1
        ]
        shown.add_row(
            name,
            str(len(of_seeds)),
            with_interval(before, ".1f"),
            with_interval([last(values) for values in of_seeds.values()], ".2f"),
            *(
                "1" if name == base else with_interval(ratios(results, name, base), ".4f")
                for base in (DIGITAL, CONTROL)
            ),
        )
    return shown


def ratios(results: Results, name: str, base: str) -> list[float]:
    """A row's perplexities, each divided by that of another row with the same seed, where there is one."""
    bases = results.get(base, {})
    return [last(values) / last(bases[seed]) for seed, values in results[name].items() if seed in bases]


def tokens_table(results: Results) -> Table:
    """Tokens after which validation perplexity first comes within 5 and 2 % of the control's last, seed by seed, and
    how many times fewer that is than by the published route: mean over seeds where both come there; `>` where the
    published route does not, by all its tokens."""
    shown = Table(title="Million tokens to come so near to the control, on validation text")
    shown.add_column("recipe")
    for share in WITHIN:
        shown.add_column(f"within {share:.0%}", justify="right")
        shown.add_column("fewer", justify="right")
    for name in (name for name in ROWS if name in results and name not in (DIGITAL, CONTROL)):
        cells: list[str] = []
        for share in WITHIN:
            taken, fewer = tokens_taken(results, name, share), tokens_taken(results, PUBLISHED_ROUTE, share)
            cells.append(" / ".join("–" if x is None else f"{x / 1e6:.2f}" for x in taken.values()) or "–")
            cells.append(_fewer(results, taken, fewer))
        shown.add_row(name, *cells)
    return shown


def tokens_taken(results: Results, name: str, share: float) -> dict[int, int | None]:
    """By seed: tokens after which a row is within a share of its control; None: it never is."""
    ends = {seed: values["curve"][-1][1] for seed, values in results.get(CONTROL, {}).items() if values.get("curve")}
    return {
        seed: tokens_to(values["curve"], ends[seed] * (1 + share))
        for seed, values in results.get(name, {}).items()
        if seed in ends and values.get("curve")
    }


def _fewer(results: Results, ours: dict[int, int | None], published: dict[int, int | None]) -> str:
    """How many times fewer tokens."""
    exact, at_least = [], []
    for seed, tokens in ours.items():
        if tokens is None or seed not in published:
            continue
        theirs = published[seed]
        if theirs is not None:
            exact.append(theirs / tokens)
        else:
            at_least.append(results[PUBLISHED_ROUTE][seed]["curve"][-1][0] / tokens)
    words = [with_interval(exact, ".1f")] if exact else []
    return ", ".join([*words, *(f"> {x:.1f}" for x in at_least)]) or "–"


def noise_table(results: Results) -> Table:
    """What noise does: mean over chips, the worst chip in brackets, both divided by the control's perplexity on that
    text; and the loss against the clean machine in nat; means over seeds, with intervals."""
    # Tables of before divided by what the control has on another text; there is nothing to divide by in them.
    measured = {
        name: {seed: x for seed, x in results[name].items() if CONTROL in x.get("noise", {})}
        for name in ROWS
        if any(CONTROL in x.get("noise", {}) for x in results.get(name, {}).values())
    }
    noises = next(
        ([n for n in x["noise"] if n != CONTROL] for of_seeds in measured.values() for x in of_seeds.values()), []
    )
    shown = Table(title="Chips never trained on, ÷ control: mean (worst); loss against clean, nat")
    for column in (
        "recipe",
        *(word for noise in noises for word in (noise, f"loss, {noise}") if word != "loss, clean"),
    ):
        shown.add_column(column, justify="left" if column == "recipe" else "right")
    for name, of_seeds in measured.items():
        cells: list[str] = []
        for noise in noises:
            pairs = [(x["noise"][noise], _mean(x["noise"][CONTROL])) for x in of_seeds.values()]
            means = with_interval([_mean(chips) / control for chips, control in pairs], ".4f")
            cells.append(f"{means} ({with_interval([max(chips) / control for chips, control in pairs], '.4f')})")
            if noise != "clean":
                losses = [_mean(x["noise"][noise]) / _mean(x["noise"]["clean"]) for x in of_seeds.values()]
                cells.append(with_interval([math.log(x) for x in losses], ".3f"))
        shown.add_row(name, *cells)
    return shown


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


ADDED_FACTS: dict[str, object] = {"noise_tokens": None, "control_words": []}
"""What plans did not say once, and meant."""


def with_interval(values: Sequence[float], form: str) -> str:
    """Mean and half width of the 95 % interval."""
    if not values:
        return "–"
    mean, half = mean_and_half_width(values)
    return f"{mean:{form}} ± {half:{form}}" if len(values) > 1 else format(mean, form)


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half width of the 95 % interval; of a single value 0."""
    n, mean = len(values), _mean(values)
    if n < 2:
        return mean, 0.0
    spread = math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1) / n)
    return mean, float(student_t.ppf(0.975, n - 1)) * spread


def read_results(file: Path, facts: dict[str, object]) -> Results:
    """What an earlier run measured by the same plan; nothing where there is none.

    Raises:
        SystemExit: its plan was another, whose rows would be lost.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    before = {**facts, **ADDED_FACTS, **found.get("plan", {})}  # of text and model plans once said nothing
    if other := [name for name in facts if before.get(name) != facts[name]]:
        apart = ", ".join(f"{name} {before.get(name)} there and {facts[name]} here" for name in other)
        raise SystemExit(f"{file} holds rows of another plan ({apart}), which would be lost; give --folder")
    return {name: {int(seed): values for seed, values in of_seeds.items()} for name, of_seeds in found["rows"].items()}
