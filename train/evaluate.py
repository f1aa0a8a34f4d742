"""`python -m train.evaluate`: perplexity of one checkpoint, clean and under non-idealities, over chips."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from train.command import launch, run_command
from train.configs import checked, register
from train.schema import EvaluationConfig

register()


def evaluate(config: EvaluationConfig) -> None:
    """Measure, show, and write results.json, results.csv and a figure.

    Raises:
        RunError: no such checkpoint, unusable text, or no write permission.
    """
    import aimc
    from aimc.evaluate import ablation, nonideality_sweep, perplexity
    from train import report
    from train.errors import RunError
    from train.files import require_writable
    from train.models import context_of, load_any, require_vocabulary
    from train.tokens import prepare

    say = report.terminal()
    folder = Path(config.output_dir) if config.output_dir else Path(config.checkpoint) / "evaluation"
    model = load_any(config.checkpoint)
    require_writable(folder)
    context = context_of(config.data, model.config, config.stride)
    data = prepare(config.data, config.checkpoint, context)
    require_vocabulary(data.tokenizer, model.config, config.checkpoint)
    tokens = data.tensor(config.split, config.tokens)
    rule = {"context": context, "stride": config.stride, "batch_size": config.batch_size}
    if aimc.hf.is_digital(model):
        if config.nonideality.active():
            raise RunError(
                f"checkpoint={config.checkpoint}: a digital model has no arrays to be non-ideal; set nonideality=none, or name a converted model"
            )
        sweep = {"clean": perplexity(model, tokens, context=context, stride=config.stride, batch_size=config.batch_size)}
    else:
        sweep = nonideality_sweep(
            model,
            tokens,
            config.nonideality,
            chips=config.chips,
            on_result=lambda name, value: say(f"  {aimc.plot.label(name)}: {value}"),
            **rule,
        )
    say(report.sweep_table(sweep))
    without = {}
    if config.ablate and not aimc.hf.is_digital(model):
        without = {
            f"without {name}" if name != "all effects" else name: float(value) for name, value in ablation(model, tokens, **rule).items()
        }
        say(report.ablation_table(without))
    report.write_results(folder, without, sweep)
    aimc.plot.save(aimc.plot.nonideality_bars(sweep), folder / "nonidealities.png")
    say(f"Results and figure are in {folder}.")


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluation")
def main(config: DictConfig) -> None:
    """Compose, check, run."""
    run_command(lambda: evaluate(checked(config, EvaluationConfig)))


if __name__ == "__main__":
    launch(main)
