"""The pipeline's way to :mod:`aimc.evaluate.tasks`: settings from a config, errors as the command line prints them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aimc.evaluate import tasks as library
from aimc.evaluate.tasks import DEFINITIONS, Score, caveats

from .errors import RunError
from .schema import EvaluationConfig

__all__ = ["DEFINITIONS", "Score", "caveats", "load_tasks", "run_tasks", "tokenizer_of"]


def load_tasks(config: EvaluationConfig) -> dict[str, Any]:
    """See :func:`aimc.evaluate.tasks.load_tasks`.

    Raises:
        RunError: no harness, an unknown task, or data that is missing or unusable.
    """
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


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except library.TaskError as error:
        raise RunError(str(error)) from error
