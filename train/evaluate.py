"""`python -m train.evaluate`: perplexity of one checkpoint, clean and under non-idealities, over chips; or its scores
on tasks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from .command import launch, run_command
from .configs import checked, register
from .schema import EvaluationConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .report import Say

register()


def evaluate(config: EvaluationConfig) -> None:
    """Measure, show, and write results.json; for a text also results.csv and a figure.

    Raises:
        RunError: no such checkpoint, unusable text or tasks, or no write permission.
    """
    from aimc.models.arrays import has_arrays

    from . import harness, report
    from .errors import RunError
    from .files import require_writable
    from .models import load_any

    say = report.terminal()
    folder = Path(config.output_dir) if config.output_dir else Path(config.checkpoint) / "evaluation"
    tasks = harness.load_tasks(config) if config.tasks else {}
    model = load_any(config.checkpoint)
    require_writable(folder)
    if not has_arrays(model) and config.nonideality.active():
        raise RunError(
            f"checkpoint={config.checkpoint}: a digital model has no arrays to be non-ideal; set nonideality=none, or"
            " name a converted model"
        )
    if not tasks or config.with_perplexity:
        _measure_text(config, model, folder, say)
    if tasks:
        _measure_tasks(config, model, tasks, folder, say)
    say(f"Results are in {folder}.")


def _measure_text(config: EvaluationConfig, model: PreTrainedModel, folder: Path, say: Say) -> None:
    import aimc
    from aimc.evaluate.ablation import ablation
    from aimc.evaluate.measurement import Measurement
    from aimc.evaluate.perplexity import perplexity
    from aimc.evaluate.sweeps import nonideality_sweep

    from . import report
    from .models import context_of, require_vocabulary
    from .tokens import prepare

    context = context_of(config.data, model.config, config.stride)
    data = prepare(config.data, config.checkpoint, context)
    require_vocabulary(data.tokenizer, model.config, config.checkpoint)
    tokens = data.tensor(config.split, config.tokens)
    measurement = Measurement(context=context, stride=config.stride, batch_size=config.batch_size, chips=config.chips)
    if not aimc.models.arrays.has_arrays(model):
        sweep = {"clean": perplexity(model, tokens, measurement)}
    else:
        sweep = nonideality_sweep(
            model,
            tokens,
            config.nonideality,
            measurement,
            on_result=lambda name, value: say(f"  {aimc.plot.label(name)}: {value}"),
        )
    say(report.sweep_table(sweep))
    without = {}
    if config.ablate and aimc.models.arrays.has_arrays(model):
        without = {
            f"without {name}" if name != "all effects" else name: float(value)
            for name, value in ablation(model, tokens, measurement).items()
        }
        say(report.ablation_table(without))
    report.write_results(folder, without, sweep)
    aimc.plot.save(aimc.plot.nonideality_bars(sweep), folder / "nonidealities.png")


def _measure_tasks(
    config: EvaluationConfig, model: PreTrainedModel, tasks: dict[str, Any], folder: Path, say: Say
) -> None:
    import json

    from . import harness, report
    from .files import write_json
    from .models import require_vocabulary

    tokenizer = harness.tokenizer_of(config.checkpoint)
    require_vocabulary(tokenizer, model.config, config.checkpoint)
    scores = harness.run_tasks(
        model,
        tokenizer,
        tasks,
        nonideality=config.nonideality,
        chips=config.chips,
        batch_size=config.batch_size,
        limit=config.task_limit,
    )
    say(report.task_table(scores))
    for line in harness.caveats(scores):
        say(line)
    rule = {name: getattr(config, name) for name in ("eval_data", "task_limit", "num_fewshot")} | {
        "nonideality": asdict(config.nonideality)
    }
    file = folder / "results.json"
    # Without a text, what an earlier command measured on one is not part of these results.
    text = json.loads(file.read_text(encoding="utf-8")) if config.with_perplexity else {}
    write_json(file, {**text, "tasks": {"rule": rule, "scores": [asdict(score) for score in scores]}})


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluation")
def main(config: DictConfig) -> None:
    """Compose, check, run."""
    run_command(lambda: evaluate(checked(config, EvaluationConfig)))


if __name__ == "__main__":
    launch(main)
