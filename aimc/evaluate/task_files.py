"""Tasks on local files: the definitions in `task_definitions/` and the items, so that nothing goes to the network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

DEFINITIONS = {file.stem: file for file in sorted((Path(__file__).parent / "task_definitions").glob("*.yaml"))}
"""The tasks on local files, by the name that a user gives."""
LOCAL = "local_"
"""What their names begin with inside the harness, whose own tasks have the same names."""


class TaskError(ValueError):
    """Tasks that cannot be run, and why; the message names the setting and the remedy."""


def local_tasks(names: list[str], folder: Path, num_fewshot: int) -> dict[str, Any]:
    """Tasks of :data:`DEFINITIONS` with the items of the files in a folder, as the harness has them.

    Args:
        names: of tasks, each once.
        folder: of the files.
        num_fewshot: solved items before each item.

    Raises:
        TaskError: an unknown task, a file that is missing or damaged, or too few items.
    """
    from lm_eval.tasks import TaskManager

    if unknown := [name for name in names if name not in DEFINITIONS]:
        raise TaskError(
            f"tasks: {', '.join(unknown)} is not among the tasks on local files, which eval_data={folder} asks for; use"
            f" some of {', '.join(DEFINITIONS)}, or eval_data=null for the harness's own tasks"
        )
    return TaskManager(include_defaults=False).load([_definition(name, folder, num_fewshot) for name in names])["tasks"]


def _definition(name: str, folder: Path, num_fewshot: int) -> dict[str, Any]:
    """The definition of a task, with its items. They are read here: `datasets.load_dataset` tells a server, also of a
    local file."""
    import yaml
    from datasets import Dataset

    definition = yaml.safe_load(DEFINITIONS[name].read_text(encoding="utf-8"))
    names = definition["dataset_kwargs"]["data_files"]["test"]
    files = [folder / name for name in ([names] if isinstance(names, str) else names)]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise TaskError(
            f"eval_data={folder}: no file {' or '.join(file.name for file in files)} there; give the folder that holds"
            " it, or leave that task out of tasks"
        )
    items = _items(file, definition["metadata"]["columns"])
    if num_fewshot >= len(items):
        raise TaskError(
            f"num_fewshot={num_fewshot}: {file} has {len(items)} items, and an item is never its own example; use"
            f" {len(items) - 1} at most"
        )

    def read(**_: Any) -> dict[str, Dataset]:
        return {"test": Dataset.from_list(items)}

    return definition | {"custom_dataset": read}


def _items(file: Path, columns: list[str]) -> list[dict[str, Any]]:
    """The items of a file, all of them sound: the harness would score nonsense without a word."""
    answers = next((column for column in columns if column in ("choices", "context_options")), None)
    items = []
    for place, read in _rows(file):
        try:
            item = read()
            if missing := [column for column in columns if column not in item]:
                raise ValueError(f"it has no {', '.join(missing)}")
            if answers is not None and not 0 <= item["gold"] < len(item[answers]):
                raise ValueError(f"gold={item['gold']}, of {len(item[answers])} {answers} counted from 0")
        except (ValueError, TypeError) as error:
            raise TaskError(
                f"eval_data={file.parent}: {place} of {file.name} is not an item of this task ({error}); each"
                f" {place.split()[0]} is a JSON object with {', '.join(columns)}"
            ) from error
        items.append({column: item[column] for column in columns})
    if not items:
        raise TaskError(
            f"eval_data={file.parent}: {file.name} is empty, so there is nothing to score; use another copy"
        )
    return items


def _rows(file: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Where each item stands, and what reads it: a JSON object a line, or one JSON object with lists of items."""
    text = file.read_text(encoding="utf-8", errors="replace")
    if file.suffix != ".json":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"line {number}", partial(json.loads, line)
        return
    try:
        parts = [part for part in json.loads(text).values() if isinstance(part, list)]
    except (ValueError, AttributeError) as error:
        raise TaskError(
            f"eval_data={file.parent}: {file.name} is not a JSON object with lists of items ({error}); use another copy"
        ) from error
    for number, item in enumerate((item for part in parts for item in part), 1):
        yield f"item {number}", partial(_by_letter, item)


def _by_letter(item: Any) -> Any:
    """A question whose answers have letters, as a query with numbered choices; anything else as it is."""
    if not isinstance(item, dict) or not isinstance(item.get("choices"), dict):
        return item
    letters = list(item["choices"])
    if item.get("answer") not in letters:
        raise ValueError(f"answer={item.get('answer')!r}, of the choices {', '.join(letters)}")
    return {
        **({"query": item["question"]} if "question" in item else {}),
        "choices": list(item["choices"].values()),
        "gold": letters.index(item["answer"]),
    }
