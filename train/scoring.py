"""One checkpoint on tasks: the only place that knows the harness."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from . import harness
from .files import write_json
from .models import require_vocabulary
from .tables import Say, task_table

if TYPE_CHECKING:
    from .schema import EvaluationConfig


def tasks_of(settings: EvaluationConfig) -> dict[str, Any]:
    """The configured tasks with their data, as the harness has them; none asked, none loaded.

    Raises:
        RunError: no harness, an unknown task, or data that is missing or unusable.
    """
    return harness.load_tasks(settings) if settings.tasks else {}


def score(model: PreTrainedModel, tasks: dict[str, Any], settings: EvaluationConfig, folder: Path, say: Say) -> None:
    """Score the model, show it, and write it into results.json.

    Raises:
        RunError: the model has no tokenizer that fits it.
    """
    tokenizer = harness.tokenizer_of(settings.checkpoint)
    require_vocabulary(tokenizer, model.config, settings.checkpoint)
    scores = harness.run_tasks(
        model,
        tokenizer,
        tasks,
        nonideality=settings.nonideality,
        chips=settings.measure.chips,
        batch_size=settings.measure.batch_size,
        limit=settings.task_limit,
    )
    say(task_table(scores))
    for line in harness.caveats(scores):
        say(line)
    rule = {name: getattr(settings, name) for name in ("eval_data", "task_limit", "num_fewshot")} | {
        "nonideality": asdict(settings.nonideality)
    }
    file = folder / "results.json"
    # Without a text, what an earlier command measured on one is not part of these results.
    text = json.loads(file.read_text(encoding="utf-8")) if settings.with_perplexity else {}
    write_json(file, {**text, "tasks": {"rule": rule, "scores": [asdict(one) for one in scores]}})
