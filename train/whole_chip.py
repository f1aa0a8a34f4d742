"""`python -m train.whole_chip`: what attention on gain cells and weights on static tiles cost, alone and together, and
as time passes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from .command import launch, run_command
from .configs import checked, register
from .errors import RunError
from .schema import WholeChipConfig

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from aimc.circuit import ChipCost
    from aimc.evaluate.ageing import AgedPerplexity
    from aimc.evaluate.perplexity import Perplexity

    from .report import Say

register()

AS_IT_IS, TRAINED = "on tiles as it is", "trained for both"


@dataclass(slots=True)
class Subject:
    """What is measured, and how."""

    digital: PreTrainedModel
    analog: PreTrainedModel
    untrained: PreTrainedModel | None
    """The model before the joint stage, on tiles; None where there is none, or the analog model itself was never
    trained for tiles."""
    tokens: Tensor
    batches: list[Tensor]
    rule: dict[str, Any] = field(default_factory=dict)


def measure(config: WholeChipConfig) -> None:
    """Measure, show, and write whole_chip.json and two figures.

    Raises:
        RunError: no such checkpoint, unusable text, aihwkit missing, or no write permission.
    """
    from aimc import plot
    from aimc.plot.chip import ageing_curve, budget_points

    from . import report
    from .files import require_writable, write_json

    say = report.terminal()
    folder = Path(config.output_dir) if config.output_dir else Path(config.checkpoint) / "whole_chip"
    subject = _subject(config)
    require_writable(folder)
    budget = _budget(config, subject, say)
    say(budget_table(budget, config.since_programming_s))
    plot.save(budget_points(budget), folder / "budget.png")
    curves: dict[str, list[AgedPerplexity]] = {}
    if config.with_curve:
        curves = _curves(config, subject, say)
        say(retention_table(curves, budget["digital"].mean))
        plot.save(ageing_curve(curves, digital=budget["digital"].mean), folder / "retention.png")
    cost = _cost(subject.analog, config)
    say(cost_lines(cost))
    write_json(folder / "whole_chip.json", _results(config, budget, curves, cost))
    say(f"Results and figures are in {folder}.")


def _subject(config: WholeChipConfig) -> Subject:
    from aimc.models.arrays import has_arrays
    from aimc.static.copies import on_tiles, static_of
    from aimc.static.install import MissingAihwkit, require_aihwkit
    from aimc.static.tiles import has_static

    from .models import context_of, load_any, load_digital, require_vocabulary
    from .tokens import prepare

    try:
        require_aihwkit()
    except MissingAihwkit as error:
        raise RunError(str(error)) from error
    beside = Path(config.checkpoint).parent
    analog = load_any(config.checkpoint)
    if not has_arrays(analog):
        raise RunError(
            f"checkpoint={config.checkpoint}: its attention is digital; give a model on gain cells, such as"
            " checkpoints/shipped/joint"
        )
    if config.untrained is not None and not has_static(analog):
        raise RunError(
            f"untrained={config.untrained}: {config.checkpoint} has no static tiles, so no training for them is to be"
            " compared; leave it out"
        )
    source = Path(config.digital or beside / "digital")
    if not (source / "config.json").exists():
        raise RunError(
            f"digital={source}: no model there (no config.json), and everything is compared with the digital one; set"
            " digital=…"
        )
    digital = load_digital(str(source))
    context = context_of(config.data, analog.config, config.stride)
    data = prepare(config.data, config.checkpoint, context)
    require_vocabulary(data.tokenizer, analog.config, config.checkpoint)
    size = 16 * context
    batches = list(data.tensor("train", config.calibration_batches * size).split(size))
    batches = [batch[: len(batch) // context * context].view(-1, context) for batch in batches if len(batch) >= context]
    rule = {"context": context, "stride": config.stride, "batch_size": config.batch_size}
    untrained = config.untrained or (
        str(beside / "finetuned") if (beside / "finetuned" / "config.json").exists() else None
    )
    before = on_tiles(load_any(untrained), static_of(analog), batches) if untrained and has_static(analog) else None
    return Subject(digital, analog, before, data.tensor("test", config.tokens), batches, rule)


def _budget(config: WholeChipConfig, subject: Subject, say: Say) -> dict[str, Perplexity]:
    from aimc.evaluate.ageing import ageing
    from aimc.evaluate.error_budget import error_budget
    from aimc.static.tiles import has_static

    chips = config.static.programmings
    rows = error_budget(
        subject.digital,
        subject.analog,
        subject.tokens,
        subject.batches,
        static=_static(config),
        since_programming_s=config.since_programming_s,
        chips=chips,
        nonideality=config.nonideality,
        on_result=lambda name, value: say(f"  {name}: {value}"),
        **subject.rule,
    )
    if has_static(subject.analog):
        rows[f"both, {TRAINED}"] = rows.pop("both")
    if subject.untrained is not None:
        (then,) = ageing(
            subject.untrained,
            subject.tokens,
            times_s=[config.since_programming_s],
            compensation=[True],
            chips=chips,
            nonideality=config.nonideality,
            **subject.rule,
        )
        rows["both, trained for gain cells alone"] = then.perplexity
        say(f"  both, trained for gain cells alone: {then.perplexity}")
    return rows


def _curves(config: WholeChipConfig, subject: Subject, say: Say) -> dict[str, list[AgedPerplexity]]:
    from aimc.evaluate.ageing import ageing
    from aimc.static.copies import on_tiles
    from aimc.static.tiles import has_static

    if has_static(subject.analog):
        models = {TRAINED: subject.analog}
        if subject.untrained is not None:
            models["trained for gain cells alone"] = subject.untrained
    else:
        models = {AS_IT_IS: on_tiles(subject.analog, _static(config), subject.batches)}
    curves = {}
    for name, model in models.items():
        say(f"  {name}: {config.static.programmings} programmings, each let drift for a year")
        curves[name] = ageing(
            model,
            subject.tokens,
            chips=config.static.programmings,
            nonideality=config.nonideality,
            **subject.rule,
        )
    return curves


def _static(config: WholeChipConfig) -> Any:
    from aimc.static.config import Static

    return Static(rpu_config=config.static.preset, head=config.static.head, embeddings=config.static.embeddings)


def _cost(model: PreTrainedModel, config: WholeChipConfig) -> ChipCost:
    """Of the published 64-core chip's tiles, and of the published arrays with this model's hardware."""
    from aimc.circuit import ModelShape, chip_cost
    from aimc.models.arrays import gain_cell_layers, machine_of
    from aimc.static.layers import plan
    from aimc.static.tiles import static_layers

    layers = dict(static_layers(model)) or plan(model, _static(config)).layers
    head = any(
        layer.digital is model.get_output_embeddings() or layer is model.get_output_embeddings()
        for layer in layers.values()
    )
    sizes = [
        (layer.in_features, layer.out_features) for layer in layers.values() if not layer.is_embedding
    ]  # which are not counted
    shape = ModelShape.from_config(model.config, on_arrays=[layer.layer for _, layer in gain_cell_layers(model)])
    return chip_cost(shape, machine_of(model), layers=sizes, head_on_tiles=head)


def budget_table(budget: dict[str, Perplexity], since_programming_s: float) -> Any:
    """Perplexity by row, mean and standard deviation over chips, and its ratio to the digital model."""
    from rich.table import Table

    first = next(iter(budget.values()))
    table = Table(
        title=(
            f"Budget of error, {time_name(since_programming_s)} after programming, drift compensated"
            f" ({first.n_tokens:,} tokens)"
        )
    )
    table.add_column("analog")
    for column in ("perplexity", "± std", "chips", "÷ digital"):
        table.add_column(column, justify="right")
    for name, value in budget.items():
        spread = f"{value.std:.2f}" if len(value.per_chip) > 1 else "–"
        table.add_row(
            name, f"{value.mean:.2f}", spread, str(len(value.per_chip)), f"{value.mean / budget['digital'].mean:.3f}"
        )
    return table


def retention_table(curves: dict[str, list[AgedPerplexity]], digital: float) -> Any:
    """Perplexity by time since programming: mean ± standard deviation over programmings, and its ratio to the digital
    model."""
    from rich.table import Table

    table = Table(title="Perplexity since programming (÷ digital)")
    table.add_column("static clock")
    columns = [(name, kind) for name in curves for kind in (True, False)]
    for name, kind in columns:
        table.add_column(f"{name}, {'compensated' if kind else 'not compensated'}", justify="right")
    times = sorted({r.since_programming_s for curve in curves.values() for r in curve})
    at = {(name, r.since_programming_s, r.compensated): r.perplexity for name, curve in curves.items() for r in curve}
    for time in times:
        cells = [at[name, time, kind] for name, kind in columns]
        table.add_row(time_name(time), *(f"{p.mean:.2f} ± {p.std:.2f} ({p.mean / digital:.3f})" for p in cells))
    return table


def time_name(seconds: float) -> str:
    """`1 day` for 86400, `90 s` for a time without a name."""
    from aimc.static.programming import TIMES_S

    return next((name for name, time in TIMES_S.items() if time == seconds), f"{seconds:g} s")


def cost_lines(cost: ChipCost) -> str:
    """What the whole chip costs a token."""
    return (
        f"Cost, static tiles by the figures of a published 14-nm chip ({cost.static.utilisation:.0%} full,"
        f" {cost.static.energy_per_mac_j * 1e12:.2f} pJ a multiply-accumulate), arrays by the published gain-cell"
        f" figures:\n{cost}"
    )


def _results(
    config: WholeChipConfig, budget: dict[str, Perplexity], curves: dict[str, list[AgedPerplexity]], cost: ChipCost
) -> dict[str, Any]:
    settings = json.loads(json.dumps(asdict(config)))
    static = cost.static
    derived = {
        name: getattr(static, name)
        for name in ("tokens_per_s", "pipelined_tokens_per_s", "tokens_per_j", "energy_per_mac_j")
    }
    whole = {name: getattr(cost, name) for name in ("energy_j", "latency_s", "area_m2", "tokens_per_s", "tokens_per_j")}
    return {
        "settings": {name: value for name, value in settings.items() if name not in ("output_dir", "data")},
        "budget": {name: asdict(value) for name, value in budget.items()},
        "retention": {name: [asdict(r) for r in curve] for name, curve in curves.items()},
        "static tiles": asdict(static) | derived,
        "whole chip": whole,
    }


@hydra.main(version_base="1.3", config_path="../conf", config_name="whole_chip")
def main(config: DictConfig) -> None:
    """Compose, check, run."""
    run_command(lambda: measure(checked(config, WholeChipConfig)))


if __name__ == "__main__":
    launch(main)
