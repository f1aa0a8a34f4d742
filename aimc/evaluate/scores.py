"""What a model scores on tasks, and two models on the same items."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from aimc.evaluate.estimates import std_over
from aimc.evaluate.task_files import LOCAL

ACCURACIES = ("acc", "acc_norm")
"""Metrics that guessing has a value of."""


@dataclass(slots=True, kw_only=True)
class Score:
    """One metric of one task."""

    task: str
    metric: str
    mean: float
    """Mean over the chips."""
    std: float
    """Sample standard deviation over the chips; 0 for a single one."""
    per_chip: list[float]
    """One value a chip."""
    stderr: float | None
    """Standard error of `mean` over the items, of which chips' values are averaged first; None: a single item, or a
    metric that is neither a mean nor a perplexity."""
    n_items: int
    """Items that were scored; 0 for a group of tasks."""
    n_cut: int = 0
    """Requests (an item has one an answer) whose beginning was cut off, because the model has fewer positions."""
    n_left_out: int = 0
    """Items left out, because an answer alone is longer than the model's positions."""
    chance: float | None = None
    """What guessing among the answers scores; None where the answer is not one of a few, and of other metrics."""
    per_item: dict[int, float] = field(default_factory=dict, repr=False)
    """By item's number, what it contributes: its mean over chips, of a perplexity times the slope (delta method)."""

    def to_dict(self) -> dict[str, Any]:
        """As it is written to a file, without the single items."""
        return {name: value for name, value in asdict(self).items() if name != "per_item"}


@dataclass(slots=True, kw_only=True)
class TaskComparison:
    """One metric of one task, of the digital model and of one on arrays, on the same items."""

    task: str
    metric: str
    chance: float | None
    """What guessing scores; None where nothing is known."""
    digital: Score
    model: Score
    difference: float
    """Model − digital, mean over the chips."""
    stderr: float | None
    """Standard error of `difference` over the items, taken in pairs, and so smaller than that of either score where
    the two mostly agree; None as in :class:`Score`."""
    n_items: int
    """Items that both were scored on."""

    def to_dict(self) -> dict[str, Any]:
        """As it is written to a file, without the single items."""
        return asdict(self) | {"digital": self.digital.to_dict(), "model": self.model.to_dict()}


def caveats(scores: list[Score]) -> list[str]:
    """What a reader of the scores has to know about texts that are longer than the model's positions; a line a task."""
    lines = []
    for score in {score.task: score for score in scores}.values():
        if score.n_left_out:
            lines.append(
                f"{score.task}: {score.n_left_out} items left out, whose answers alone are longer than the model's"
                " positions."
            )
        if score.n_cut:
            lines.append(
                f"{score.task}: {score.n_cut} requests lost their beginning, because they are longer than the model's"
                " positions."
            )
    return lines


def scores_of(
    results: list[dict[str, Any]], tasks: dict[str, Any], cut: dict[str, int], left_out: dict[str, int]
) -> list[Score]:
    """One score a task and metric, from the harness's results, one a chip.

    Args:
        results: of `lm_eval.evaluate` with its samples.
        tasks: that were run, by name.
        cut: requests that lost their beginning, by task.
        left_out: items left out, by task.
    """
    scores = []
    for name, metrics in results[0]["results"].items():
        n_items = results[0]["n-samples"].get(name, {}).get("effective", 0)
        for key, value in metrics.items():
            metric, _, variant = key.partition(",")
            if not variant or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            per_chip = [float(result["results"][name][key]) for result in results]
            per_item = _per_item([result["samples"].get(name, []) for result in results], metric, variant)
            score = Score(
                task=shown(name),
                metric=metric if variant == "none" else f"{metric} ({variant})",
                mean=statistics.fmean(per_chip),
                std=std_over(per_chip),
                per_chip=per_chip,
                stderr=None,
                n_items=n_items,
                n_cut=cut.get(name, 0),
                n_left_out=left_out.get(name, 0),
                chance=_chance(tasks.get(name), results[0]["samples"].get(name, [])) if metric in ACCURACIES else None,
                per_item=_moved(per_item, statistics.fmean(per_chip), _aggregation(tasks.get(name), metric)),
            )
            score.stderr = _stderr(list(score.per_item.values()))
            scores.append(score)
    return scores


def compared(model: Score, digital: Score) -> TaskComparison:
    """Two scores on the same items."""
    differences = [value - digital.per_item[item] for item, value in model.per_item.items()]
    return TaskComparison(
        task=model.task,
        metric=model.metric,
        chance=model.chance,
        digital=digital,
        model=model,
        difference=model.mean - digital.mean,
        stderr=_stderr(differences),
        n_items=model.n_items,
    )


def _per_item(chips: list[list[dict[str, Any]]], metric: str, variant: str) -> dict[int, float]:
    """What each item gave, by its number, mean over the chips; nothing where that is not one number."""
    values: dict[int, list[float]] = {}
    for samples in chips:
        for sample in samples:
            if sample["filter"] == variant and isinstance(sample.get(metric), (int, float)):
                values.setdefault(sample["doc_id"], []).append(float(sample[metric]))
    return {item: statistics.fmean(of_chips) for item, of_chips in values.items()}


def _moved(per_item: dict[int, float], mean: float, aggregation: str) -> dict[int, float]:
    """By how much each item moves the score: of a mean its value, of a perplexity, by the delta method, its loss times
    the perplexity; nothing of other scores."""
    if aggregation == "mean":
        return per_item
    return {item: -mean * value for item, value in per_item.items()} if aggregation == "perplexity" else {}


def _aggregation(task: Any, metric: str) -> str:
    """What the harness does with a metric's values: `mean`, `perplexity` or the name of another of its functions."""
    found = None if task is None else task.aggregation().get(metric)
    return "mean" if found is None else getattr(found, "__name__", "")


def _chance(task: Any, samples: list[dict[str, Any]]) -> float | None:
    """Mean over the items of 1 / answers; None where the answer is not one of a few."""
    if task is None or task.OUTPUT_TYPE != "multiple_choice" or not samples:
        return None
    return statistics.fmean(1 / len(task.doc_to_choice(sample["doc"])) for sample in samples)


def _stderr(values: list[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def shown(name: str) -> str:
    """A task's name as the user gives it."""
    return name.removeprefix(LOCAL)
