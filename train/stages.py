"""The stages from a digital model to one fine-tuned on nonlinear gain cells. Each reads the folder of the one
before."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

import aimc
from aimc.evaluate.ageing import ageing
from aimc.hardware.presets import linearised, with_softmax
from aimc.static.programming import DAY_S

from .errors import RunError
from .models import digital_model, load_analog, load_digital, onto_arrays, onto_tiles, require_convertible
from .schema import RunConfig, StageConfig
from .tokens import TokenData
from .trainer import train

ORDER = ("digital", "control", "softmax", "linear", "adapt", "finetune", "joint")
"""Stages that make a model, in the order that the pipeline runs them."""
FOLDERS = {
    "digital": "digital",
    "control": "control",
    "softmax": "softmax",
    "linear": "linear",
    "adapt": "adapted",
    "finetune": "finetuned",
    "joint": "joint",
}
"""Folder of each stage's model."""
INPUTS = {
    "control": "digital",
    "softmax": "digital",
    "linear": "digital",
    "adapt": "linear",
    "finetune": "adapt",
    "joint": "finetune",
}
"""The stage whose model each starts from."""


def pipeline_stages(stage: StageConfig) -> list[str]:
    """The stages that the pipeline runs, in order."""
    left_out = {"control": not stage.with_control, "softmax": not stage.with_softmax, "joint": not stage.with_static}
    return [name for name in ORDER if not left_out.get(name, False)]


@dataclass(slots=True)
class Run:
    """One run: its settings, its text, and where stages of this and earlier runs are."""

    config: RunConfig
    data: TokenData
    context: int
    say: Callable[[Any], None]

    @property
    def test_tokens(self) -> Tensor:
        """The held-out text of all measurements, int64 `[N]`."""
        return self.data.tensor("test", self.config.stage.test_tokens)

    def folder(self, stage: str) -> Path:
        """Where this run puts a stage's model."""
        return Path(self.config.output_dir) / FOLDERS[stage]

    def work(self, stage: str) -> Path:
        """Where a stage keeps what it resumes from."""
        return Path(self.config.output_dir) / ".work" / FOLDERS[stage]

    def input(self, stage: str) -> Path:
        """The folder of the model that `stage` starts from: this run's, or else the one that `previous` names.

        Raises:
            RunError: neither has it.
        """
        needed = INPUTS[stage]
        places = [self.folder(needed)]
        if self.config.previous is not None:
            places.append(Path(self.config.previous) / FOLDERS[needed])
        for place in places:
            if (place / "config.json").exists():
                return place
        raise RunError(
            f"stage {stage} starts from the {needed} model, and there is none in {' or '.join(map(str, places))}; run"
            f" stage={needed} or stage=pipeline first"
        )

    def batches(self) -> list[Tensor]:
        """Training text for measuring statistics: int64 `[B, T]` each, the same ones in every stage."""
        size, count = self.config.stage.calibration_batch_size, self.config.stage.calibration_batches
        needed = size * count * self.context
        tokens = self.data.tensor("train", needed)
        if len(tokens) < needed:
            raise RunError(
                f"stage.calibration_batches={count} × {size} sequences of {self.context} tokens need {needed} training"
                f" tokens and the text has {len(tokens)}; ask for fewer"
            )
        return list(tokens.view(count, size, self.context))

    def measure(self, model: PreTrainedModel) -> float:
        """Held-out perplexity, clean."""
        stage = self.config.stage
        noise = aimc.Noise() if aimc.models.has_arrays(model) else None
        return float(
            aimc.perplexity(model, self.test_tokens, context=self.context, stride=stage.stride, nonideality=noise)
        )


@dataclass(slots=True)
class StageResult:
    """A stage's model and what was measured on the way."""

    model: PreTrainedModel
    perplexity: dict[str, float] = field(default_factory=dict)
    """Held-out perplexity by name of the moment, in order."""
    history: list[dict[str, float]] = field(default_factory=list)
    """The training log."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What else is worth keeping: reports, clip fractions."""


def digital(run: Run) -> StageResult:
    """The baseline: loaded, or trained from scratch, or both."""
    config = run.config
    model = digital_model(config.model, run.data.tokenizer, config.seed)
    if config.stage.name == "pipeline":
        require_convertible(model)
    history = train(model, run.data, config, "digital", "digital", run.work("digital"), run.context)
    validation = run.data.tensor("valid", config.trainer.eval_tokens)
    notes = {
        "validation perplexity": float(aimc.perplexity(model, validation, context=run.context, stride=run.context))
    }
    return StageResult(model, {"digital": run.measure(model)}, history, notes)


def control(run: Run) -> StageResult:
    """The digital model with the same extra training, stage by stage, that the analog one gets: what it is to be
    compared with."""
    model = load_digital(str(run.input("control")))
    history: list[dict[str, float]] = []
    for stage in ("linear", "finetune"):
        log = train(model, run.data, run.config, "control", stage, run.work("control") / stage, run.context)
        done = history[-1] if history else {"step": 0, "tokens": 0}
        history += [{**line, **{count: line[count] + done[count] for count in ("step", "tokens")}} for line in log]
    return StageResult(model, {"digital, same extra tokens": run.measure(model)}, history)


def softmax(run: Run) -> StageResult:
    """Onto arrays with a digital softmax between them, by range calibration alone. Kept is the model on finer
    converters."""
    reference = load_digital(str(run.input("softmax")))
    own = run.config.hardware
    ideal = with_softmax(
        replace(linearised(own), leakage=replace(own.leakage, tau_s=None)),
        **dict.fromkeys(("input_levels", "storage_levels", "score_levels", "probability_levels", "readout_levels")),
    )
    levels = {
        "input_levels": own.input_dac.n_levels,
        "storage_levels": own.storage_dac.n_levels,
        "readout_levels": own.readout.n_levels,
    }
    machines = {
        "softmax, ideal arrays": ideal,
        "softmax, the hardware's own levels": with_softmax(own, **levels),
        "softmax, finer levels": with_softmax(own),
    }
    result = StageResult(reference)
    for name, hardware in machines.items():
        result.model = copy.deepcopy(reference)
        onto_arrays(result.model, hardware)
        settings: dict[str, Any] = {"percentile": 100.0} if hardware is ideal else {"method": "search"}
        report = aimc.calibrate_ranges(result.model, reference, run.batches(), **settings)
        run.say(f"  {name}: {report}")
        result.perplexity[name] = run.measure(result.model)
        result.notes[name] = str(report)
    return result


def linear(run: Run) -> StageResult:
    """Onto arrays of linear cells, scalers set from the digital statistics, then hardware-aware training."""
    config = run.config
    reference = load_digital(str(run.input("linear")))
    result = StageResult(copy.deepcopy(reference))
    hardware = linearised(config.hardware)
    run.say(onto_arrays(result.model, hardware))
    result.perplexity["linear cell, published start"] = run.measure(result.model)
    if config.stage.start == "statistics":
        report = aimc.initialise_scalers(result.model, reference, run.batches())
        result.notes["output matching"] = str(report)
        result.perplexity["linear cell, statistics start"] = run.measure(result.model)
    result.history = train(
        result.model, run.data, config, "linear", "linear", run.work("linear"), run.context, teacher=reference
    )
    result.perplexity["linear cell, trained"] = run.measure(result.model)
    result.notes["clip fractions"] = aimc.clip_fractions(result.model, run.batches()[:1])
    return result


def adapt(run: Run) -> StageResult:
    """Swap in the nonlinear cell and match statistics to the linear model; no gradient. Also what happens without any
    of this."""
    config = run.config
    reference = load_analog(run.input("adapt"))
    result = StageResult(copy.deepcopy(reference))
    naive = load_digital(str(run.input("linear")))
    onto_arrays(naive, config.hardware)
    result.perplexity["nonlinear cell, straight from digital"] = run.measure(naive)
    aimc.set_hardware(result.model, config.hardware)
    curve: list[dict[str, float]] = []

    def on_iteration(iteration: int, deviation: float) -> None:
        value = run.measure(result.model)
        curve.append({"iteration": iteration, "perplexity": value, "deviation": deviation})
        run.say(f"  iteration {iteration}: perplexity {value:.2f}, largest deviation {deviation:.3f} σ")

    report = aimc.match_statistics(
        result.model,
        reference=reference,
        batches=run.batches(),
        iterations=config.stage.adapt_iterations,
        damping=config.stage.adapt_damping,
        tolerance=config.stage.adapt_tolerance,
        on_iteration=on_iteration,
    )
    run.say(str(report))
    result.perplexity["nonlinear cell, unadapted"] = curve[0]["perplexity"]
    result.perplexity["nonlinear cell, adapted"] = curve[-1]["perplexity"]
    result.notes |= {
        "adaptation": curve,
        "matching": str(report),
        "clip fractions": aimc.clip_fractions(result.model, run.batches()[:1]),
    }
    return result


def finetune(run: Run) -> StageResult:
    """Hardware-aware training of the adapted model on the nonlinear cell."""
    result = StageResult(load_analog(run.input("finetune")))
    aimc.set_hardware(result.model, run.config.hardware)
    teacher = load_digital(str(run.input("linear"))) if run.config.trainer.finetune.distillation else None
    result.history = train(
        result.model, run.data, run.config, "finetune", "finetune", run.work("finetune"), run.context, teacher=teacher
    )
    result.perplexity["nonlinear cell, fine-tuned"] = run.measure(result.model)
    result.notes["clip fractions"] = aimc.clip_fractions(result.model, run.batches()[:1])
    return result


def joint(run: Run) -> StageResult:
    """Projections and MLPs onto static tiles, and hardware-aware training of tiles and arrays together; measured a day
    after programming."""
    config = run.config
    result = StageResult(load_analog(run.input("joint")))
    aimc.set_hardware(result.model, config.hardware)
    run.say(onto_tiles(result.model, config.static))
    aimc.static.calibrate_input_ranges(result.model, run.batches())
    teacher = load_digital(str(run.input("linear"))) if config.trainer.joint.distillation else None
    _after_a_day(run, result, "static tiles, untrained")
    result.history = train(
        result.model, run.data, config, "joint", "joint", run.work("joint"), run.context, teacher=teacher
    )
    _after_a_day(run, result, "trained together")
    result.notes["clip fractions"] = aimc.clip_fractions(result.model, run.batches()[:1])
    return result


def _after_a_day(run: Run, result: StageResult, name: str) -> None:
    """Held-out perplexity with the weights as they are wanted, and as devices hold them a day after programming, drift
    compensated."""
    result.perplexity[f"{name}, weights as wanted"] = run.measure(result.model)
    (day,) = ageing(
        result.model,
        run.test_tokens,
        times_s=[DAY_S],
        compensation=[True],
        chips=run.config.static.programmings,
        nonideality=aimc.Noise(),
        context=run.context,
        stride=run.config.stage.stride,
    )
    result.notes[f"{name}, a day after programming"] = day.perplexity.per_chip
    result.perplexity[f"{name}, a day after programming"] = float(day.perplexity)


STAGES: dict[str, Callable[[Run], StageResult]] = {
    "digital": digital,
    "control": control,
    "softmax": softmax,
    "linear": linear,
    "adapt": adapt,
    "finetune": finetune,
    "joint": joint,
}


def record_of(folder: Path) -> dict[str, Any] | None:
    """What a finished stage wrote about itself; None where it did not finish."""
    file = folder / "stage.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
