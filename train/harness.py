"""One checkpoint on tasks: :mod:`aimc.evaluate.tasks` with settings from a config, and errors for the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aimc.evaluate import tasks as library
from aimc.evaluate.tasks import DEFINITIONS, Score, caveats

from .errors import RunError
from .files import write_json
from .tables import Say, task_table
from .tokens import require_vocabulary

if TYPE_CHECKING:
    from .schema import EvaluationConfig

__all__ = ["DEFINITIONS", "Score", "caveats", "load_tasks", "run_tasks", "score", "tokenizer_of"]


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


def score(model: PreTrainedModel, tasks: dict[str, Any], settings: EvaluationConfig, folder: Path, say: Say) -> None:
    """Score the model, show it, and write it into results.json.

    Raises:
        RunError: the model has no tokenizer that fits it.
    """
    tokenizer = tokenizer_of(settings.checkpoint)
    require_vocabulary(tokenizer, model.config, settings.checkpoint)
    scores = run_tasks(
        model,
        tokenizer,
        tasks,
        measurement=settings.measure,
        nonideality=settings.nonideality,
        limit=settings.task_limit,
    )
    say(task_table(scores))
    for line in caveats(scores):
        say(line)
    rule = {name: getattr(settings, name) for name in ("eval_data", "task_limit", "num_fewshot")} | {
        "nonideality": asdict(settings.nonideality)
    }
    file = folder / "results.json"
    # Without a text, what an earlier command measured on one is not part of these results.
    text = json.loads(file.read_text(encoding="utf-8")) if settings.with_perplexity else {}
    write_json(file, {**text, "tasks": {"rule": rule, "scores": [asdict(one) for one in scores]}})


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except library.TaskError as error:
        raise RunError(str(error)) from error
