"""One checkpoint on tasks: :mod:`aimc.evaluate.tasks` with settings from a config, and errors for the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aimc.evaluate import tasks as library
from aimc.evaluate.tasks import DEFINITIONS, Score, TaskComparison, caveats

from .errors import RunError
from .report import add_results
from .tables import Say, comparison_table, task_table
from .tokens import require_vocabulary

if TYPE_CHECKING:
    from .evaluation import Reference
    from .schema import EvaluationConfig

__all__ = [
    "DEFINITIONS",
    "Score",
    "TaskComparison",
    "caveats",
    "compare_tasks",
    "load_tasks",
    "run_tasks",
    "score",
    "tokenizer_of",
]


def load_tasks(config: EvaluationConfig) -> dict[str, Any]:
    """The configured tasks, see :func:`aimc.evaluate.tasks.load_tasks`; none asked, none loaded.

    Raises:
        RunError: no harness, an unknown task, or data that is missing or unusable.
    """
    if not config.tasks:
        return {}
    with _told():
        return library.load_tasks(config.tasks, eval_data=config.eval_data, num_fewshot=config.num_fewshot)


def tokenizer_of(checkpoint: str) -> PreTrainedTokenizerBase:
    """See :func:`aimc.evaluate.tasks.tokenizer_of`.

    Raises:
        RunError: it cannot be loaded.
    """
    with _told():
        return library.tokenizer_of(checkpoint)


def run_tasks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: dict[str, Any], **settings: Any
) -> list[Score]:
    """See :func:`aimc.evaluate.tasks.run_tasks`.

    Raises:
        RunError: no item of a task fits into the model.
    """
    with _told():
        return library.run_tasks(model, tokenizer, tasks, **settings)


def compare_tasks(
    model: PreTrainedModel,
    digital: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: dict[str, Any],
    **settings: Any,
) -> list[TaskComparison]:
    """See :func:`aimc.evaluate.tasks.compare_tasks`.

    Raises:
        RunError: no item of a task fits into the models, or they read different parts of long items.
    """
    with _told():
        return library.compare_tasks(model, digital, tokenizer, tasks, **settings)


def score(
    model: PreTrainedModel, tasks: dict[str, Any], settings: EvaluationConfig, digital: Reference | None, say: Say
) -> None:
    """Score the model, and the digital one beside it; show it, and write it into results.json.

    Raises:
        RunError: the model has no tokenizer that fits it.
    """
    tokenizer = tokenizer_of(settings.checkpoint)
    require_vocabulary(tokenizer, model.config, settings.checkpoint)
    how: dict[str, Any] = {
        "measurement": settings.measure,
        "nonideality": settings.nonideality,
        "limit": settings.task_limit,
    }
    rule = {name: getattr(settings, name) for name in ("eval_data", "task_limit", "num_fewshot")} | {
        "nonideality": asdict(settings.nonideality)
    }
    found: dict[str, Any] = {"rule": rule}
    if digital is None:
        scores = run_tasks(model, tokenizer, tasks, **how)
        say(task_table(scores))
    else:
        rows = compare_tasks(model, digital.model, tokenizer, tasks, **how)
        scores = [row.model for row in rows]
        say(comparison_table(rows, digital.name))
        found |= {"digital": digital.name, "comparisons": [row.to_dict() for row in rows]}
    for line in caveats(scores):
        say(line)
    found["scores"] = [one.to_dict() for one in scores]
    # Without a text, what an earlier command measured on one is not part of these results.
    add_results(settings.folder, {"tasks": found}, keep=settings.with_perplexity)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except library.TaskError as error:
        raise RunError(str(error)) from error
