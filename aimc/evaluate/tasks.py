"""Tasks on EleutherAI's lm-evaluation-harness: its Hugging Face adapter around a model that is already loaded, over
chips.

`task_definitions/` holds a definition a task that reads a local file, so that nothing goes to the network. Other tasks
are the harness's own.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from aimc.evaluate.chips import chips_of
from aimc.evaluate.measurement import Measurement, MeasurementFields, measurement_of
from aimc.hardware import Noise
from aimc.models.modes import evaluating

DEFINITIONS = {file.stem: file for file in sorted((Path(__file__).parent / "task_definitions").glob("*.yaml"))}
"""The tasks on local files, by the name that a user gives."""
_LOCAL = "local_"
"""What their names begin with inside the harness, whose own tasks have the same names."""
_SHOT_SEED = 1234
"""Which examples precede an item; the harness's own default."""


class TaskError(ValueError):
    """Tasks that cannot be run, and why; the message names the setting and the remedy."""


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
    """Standard error over the items, of an accuracy; None for other metrics."""
    n_items: int
    """Items that were scored; 0 for a group of tasks."""
    n_cut: int = 0
    """Requests (an item has one an answer) whose beginning was cut off, because the model has fewer positions."""
    n_left_out: int = 0
    """Items left out, because an answer alone is longer than the model's positions."""


def load_tasks(
    names: Sequence[str], *, eval_data: str | Path | None = None, num_fewshot: int | None = None
) -> dict[str, Any]:
    """Tasks with their data, as the harness has them; needs no model.

    Args:
        names: of tasks; one that stands twice is run once.
        eval_data: folder of the files that the tasks in :data:`DEFINITIONS` read, without a network; None: the names
            are the harness's own, which download theirs.
        num_fewshot: solved items before each item, drawn from the same file, never the item itself; None: as the task
            says (those in :data:`DEFINITIONS`: none).

    Raises:
        TaskError: no harness, no task, an unknown one, or data that is missing or unusable.
    """
    if isinstance(names, str) or not names:
        raise TaskError(f"tasks={names!r}: a list of names is needed; give ['lambada'], or others")
    try:
        import lm_eval  # noqa: F401 (an optional dependency; what it is needed for is imported where it is used)
    except ImportError as error:
        raise TaskError(
            f"tasks: they need EleutherAI's lm-evaluation-harness, which cannot be imported ({error}); pip install"
            " 'aimc[eval]'"
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # a warning for each request that it cuts; Score counts them
    names = list(dict.fromkeys(names))
    tasks = _own_tasks(names) if eval_data is None else _local_tasks(names, Path(eval_data), num_fewshot or 0)
    for task in tasks.values():
        if num_fewshot is not None or task.config.num_fewshot is None:
            task.set_config("num_fewshot", num_fewshot or 0)
    return tasks


def tokenizer_of(checkpoint: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Raises:
        TaskError: it cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise TaskError(
            f"checkpoint={checkpoint}: its tokenizer cannot be loaded ({str(error).splitlines()[0]}); tasks are text,"
            " so put the model's tokenizer beside it"
        ) from error


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: dict[str, Any],
    measurement: Measurement | None = None,
    *,
    nonideality: Noise | None = None,
    limit: int | None = None,
    **fields: Unpack[MeasurementFields],
) -> list[Score]:
    """Score a model on tasks.

    Args:
        model: digital or converted, with or without static tiles.
        tokenizer: the model's own.
        tasks: of :func:`load_tasks`.
        measurement: of it `chips`, `seed` and `batch_size` count: requests computed together are padded on the right,
            where a causal model does not look; write and read noise, and reads of static tiles, are other draws in
            other batches. None: one chip.
        nonideality: noise in place of the hardware's own; None: the hardware's own.
        limit: items a task, from its start; None: all.
        fields: of the measurement, in place of its own.

    Raises:
        TaskError: no item of a task fits into the model.
        ValueError: non-idealities asked of a digital model.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    measurement = measurement_of(measurement, fields)
    chips = chips_of(model, measurement.chips, nonideality, measurement.seed)
    with evaluating(model), _without_cache(model):
        adapter = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=measurement.batch_size)
        kept, left_out = _readable(adapter, tasks, limit)
        results = []
        for _ in chips:
            for task in tasks.values():
                task.set_fewshot_seed(_SHOT_SEED)  # every chip reads the same text
            results.append(
                lm_eval.evaluate(
                    lm=adapter, task_dict={"tasks": tasks}, samples=kept, log_samples=False, bootstrap_iters=0
                )
            )
    cut = {
        name: sum(length > adapter.max_length + 1 for length, _ in _lengths(adapter, task))
        for name, task in tasks.items()
    }
    return _scores(results, cut, left_out)


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


@contextmanager
def _without_cache(model: PreTrainedModel) -> Iterator[None]:
    """Keys and values of a text that is read once need not be kept."""
    before = model.config.use_cache
    model.config.use_cache = False
    try:
        yield
    finally:
        model.config.use_cache = before


def _own_tasks(names: list[str]) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    try:
        return TaskManager().load(names)["tasks"]
    except Exception as error:  # an unknown name, no network, an offline hub: a different kind for each
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise TaskError(
            f"tasks=[{','.join(names)}]: the harness cannot load them ({type(error).__name__}: {reason}); its own tasks"
            " come from the network: check names and network, or give local files with eval_data=<folder> (it has"
            f" {', '.join(DEFINITIONS)})"
        ) from error


def _local_tasks(names: list[str], folder: Path, num_fewshot: int) -> dict[str, Any]:
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
    file = folder / definition["dataset_kwargs"]["data_files"]["test"]
    items = _items(file, definition["metadata"]["columns"], definition.get("doc_to_choice"))
    if num_fewshot >= len(items):
        raise TaskError(
            f"num_fewshot={num_fewshot}: {file} has {len(items)} items, and an item is never its own example; use"
            f" {len(items) - 1} at most"
        )

    def read(**_: Any) -> dict[str, Dataset]:
        return {"test": Dataset.from_list(items)}

    return definition | {"custom_dataset": read}


def _items(file: Path, columns: list[str], choices: str | None) -> list[dict[str, Any]]:
    """The items of a file, all of them sound: the harness would score nonsense without a word."""
    if not file.is_file():
        raise TaskError(
            f"eval_data={file.parent}: no file {file.name} there; give the folder that holds it, or leave that task out"
            " of tasks"
        )
    items = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            if missing := [column for column in columns if column not in item]:
                raise ValueError(f"it has no {', '.join(missing)}")
            if choices is not None and not 0 <= item["gold"] < len(item[choices]):
                raise ValueError(f"gold={item['gold']}, of {len(item[choices])} {choices} counted from 0")
        except (ValueError, TypeError) as error:
            raise TaskError(
                f"eval_data={file.parent}: line {number} of {file.name} is not an item of this task ({error}); each"
                f" line is a JSON object with {', '.join(columns)}"
            ) from error
        items.append({column: item[column] for column in columns})
    if not items:
        raise TaskError(
            f"eval_data={file.parent}: {file.name} is empty, so there is nothing to score; use another copy"
        )
    return items


def _readable(adapter: Any, tasks: dict[str, Any], limit: int | None) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Of each task's first `limit` items, the numbers of those whose answers fit into the model, and how many do not.

    The harness stops at an answer that is longer than the model's positions.
    """
    kept, left_out = {}, {}
    for name, task in tasks.items():
        task.set_fewshot_seed(_SHOT_SEED)
        task.build_all_requests(limit=limit)
        items = {instance.doc_id for instance in task.instances}
        too_long = {
            i.doc_id
            for i, (_, n) in zip(_likelihoods(task), _lengths(adapter, task), strict=True)
            if n > adapter.max_length
        }
        if not items - too_long:
            raise TaskError(
                f"tasks: the answers of all {len(items)} items of {_shown(name)} are longer than the model's"
                f" {adapter.max_length} positions; leave it out"
            )
        kept[name], left_out[name] = sorted(items - too_long), len(too_long)
    return kept, left_out


def _likelihoods(task: Any) -> list[Any]:
    return [instance for instance in task.instances if instance.request_type == "loglikelihood"]


def _lengths(adapter: Any, task: Any) -> Iterator[tuple[int, int]]:
    """Tokens of each request, and of its answer alone, split as the adapter splits them."""
    for instance in _likelihoods(task):
        text, answer = instance.args
        whole = len(adapter.tok_encode(text + answer))
        yield whole, whole - len(adapter.tok_encode(text.rstrip()))


def _scores(results: list[dict[str, Any]], cut: dict[str, int], left_out: dict[str, int]) -> list[Score]:
    """One score a task and metric, from the harness's results, one a chip."""
    scores = []
    for name, metrics in results[0]["results"].items():
        n_items = results[0]["n-samples"].get(name, {}).get("effective", 0)
        for key, value in metrics.items():
            metric, _, variant = key.partition(",")
            if not variant or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            per_chip = [float(result["results"][name][key]) for result in results]
            mean = statistics.fmean(per_chip)
            accuracy = metric in ("acc", "acc_norm") and n_items > 1
            scores.append(
                Score(
                    task=_shown(name),
                    metric=metric if variant == "none" else f"{metric} ({variant})",
                    mean=mean,
                    std=statistics.stdev(per_chip) if len(per_chip) > 1 else 0.0,
                    per_chip=per_chip,
                    stderr=math.sqrt(mean * (1 - mean) / (n_items - 1)) if accuracy else None,
                    n_items=n_items,
                    n_cut=cut.get(name, 0),
                    n_left_out=left_out.get(name, 0),
                )
            )
    return scores


def _shown(name: str) -> str:
    return name.removeprefix(_LOCAL)
