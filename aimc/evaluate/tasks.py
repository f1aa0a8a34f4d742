"""Tasks on EleutherAI's lm-evaluation-harness: its Hugging Face adapter around a model that is already loaded, over
chips.

`task_definitions/` holds a definition a task that reads a local file, so that nothing goes to the network. Other tasks
are the harness's own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from aimc.evaluate.chips import chips_of
from aimc.evaluate.measurement import Measurement, MeasurementFields, measurement_of
from aimc.evaluate.reference import require_reference
from aimc.evaluate.scores import Score, TaskComparison, caveats, compared, scores_of, shown
from aimc.evaluate.task_files import DEFINITIONS, TaskError, local_tasks
from aimc.hardware import Noise
from aimc.models.modes import evaluating

__all__ = [
    "DEFINITIONS",
    "Score",
    "TaskComparison",
    "TaskError",
    "caveats",
    "compare_tasks",
    "load_tasks",
    "run_tasks",
    "tokenizer_of",
]
_SHOT_SEED = 1234
"""Which examples precede an item; the harness's own default."""


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
    tasks = _own_tasks(names) if eval_data is None else local_tasks(names, Path(eval_data), num_fewshot or 0)
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
                    lm=adapter, task_dict={"tasks": tasks}, samples=kept, log_samples=True, bootstrap_iters=0
                )
            )
    cut = {
        name: sum(length > adapter.max_length + 1 for length, _ in _lengths(adapter, task))
        for name, task in tasks.items()
    }
    return scores_of(results, tasks, cut, left_out)


def compare_tasks(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: dict[str, Any],
    measurement: Measurement | None = None,
    *,
    nonideality: Noise | None = None,
    limit: int | None = None,
    **fields: Unpack[MeasurementFields],
) -> list[TaskComparison]:
    """Score a model and the digital one on the same items, and their difference item by item.

    Args:
        model: as for :func:`run_tasks`, and all that follows.
        reference: the digital model, with the same vocabulary and as many positions; it has no chips.

    Raises:
        TypeError: `reference` is no transformers model.
        TaskError: as :func:`run_tasks`, or the models can read different items.
        ValueError: `reference` is on analog hardware or has another vocabulary; non-idealities asked of a digital
            model.
    """
    require_reference(model, reference)
    ours, theirs = (getattr(of.config, "max_position_embeddings", None) for of in (model, reference))
    if ours != theirs:
        raise TaskError(
            f"reference: it has {theirs} positions and the model {ours}, so of long items they read different parts;"
            " compare models with as many positions"
        )
    measurement = measurement_of(measurement, fields)
    analog = run_tasks(model, tokenizer, tasks, measurement, nonideality=nonideality, limit=limit)
    digital = run_tasks(reference, tokenizer, tasks, measurement, limit=limit)
    return [compared(score, of) for score, of in zip(analog, digital, strict=True)]


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


@contextmanager
def _without_cache(model: PreTrainedModel) -> Iterator[None]:
    """Keys and values of a text that is read once need not be kept."""
    before = model.config.use_cache
    model.config.use_cache = False
    try:
        yield
    finally:
        model.config.use_cache = before


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
                f"tasks: the answers of all {len(items)} items of {shown(name)} are longer than the model's"
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
