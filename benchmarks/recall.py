"""Who can recall, and do the arrays keep the ability: `python -m benchmarks.recall`.

Every model of two layers is trained from scratch on each of the two synthetic tasks of the H3 paper
(:mod:`aimc.evaluate.recall`). What has attention, or slots, then goes into gain cells (`presets.gain_cell_cmos`, for
slots with a softmax), is trained on them, and is measured clean and under `presets.typical`, before and after training
under that noise. Jobs run side by side, a thread each: about ten minutes on two idle cores; `--quick` takes one.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

import aimc
from aimc import presets
from aimc.evaluate.recall import TASKS, Task, recall
from aimc.hardware import Array, Hardware
from aimc.models.gsa import calibrate_slots, put_on_cells, set_cells, slot_arrays
from train.files import write_json
from train.schema import ModelConfig
from train.scratch import FAMILIES

ENOUGH = 0.998
"""Accuracy at which training ends early, twice in a row."""
LOOK_EVERY = 100
"""Steps between two looks."""
USUAL_WIDTH, SMALL, LONGEST_WAVE = 768, 0.03, 100.0
"""See :func:`begin_small`."""
N_TEXTS = 1000
CHIPS = 4
WIDTH = 140
"""Columns of the terminal that the table needs."""
WINDOW = 32
"""Slots of attention's arrays: the longest text has 29 tokens."""
PHASES = ("digital", "cells", "cells, typical", "cells trained under it")


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how each model is trained."""

    steps: int = 4000
    """Most steps in digital."""
    warmup: int = 800
    """Of them until the learning rate is full. Two layers of attention find associative recall in a sudden turn, after
    900 to 2,300 steps in two seeds; with 3e-3 and a start of 0.02 they were not seen to find it within 3,600."""
    on_cells: int = 600
    """Steps on the cells, and as many under noise."""
    n_training: int = 4000
    """Texts to train on, seen again and again, by which the turn comes earlier than with fresh ones (arXiv
    2410.07041); those that are measured are others."""
    batch_size: int = 32
    learning_rate: float = 2e-3
    n_texts: int = N_TEXTS
    chips: int = CHIPS


QUICK = Effort(steps=10, on_cells=2, batch_size=16, n_texts=100, chips=2)
SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 1, "n_embd": 32, "n_positions": WINDOW}
MODELS: dict[str, dict[str, Any]] = {
    "attention": {"family": "gpt2"},
    "H3, second layer attention": {"family": "h3", "attention_layers": [1], "n_state": 16},
    "H3 without attention": {"family": "h3", "attention_layers": [], "n_state": 16},
    "S4D": {"family": "s4d", "n_state": 16},
    "StripedHyena": {"family": "stripedhyena", "n_state": 4},
    "Mamba": {"family": "mamba"},
    "gated slots": {"family": "gsa", "n_slots": 16},
}
"""What stands beside each other, by what :class:`train.schema.ModelConfig` says of it."""


@dataclass(slots=True)
class Found:
    """One model on one task with one seed."""

    accuracy: dict[str, float] = field(default_factory=dict)
    """By phase of :data:`PHASES`."""
    n_parameters: int = 0
    steps: int = 0
    """That it took in digital."""
    seconds: float = 0.0


def hardware_for(model: PreTrainedModel) -> Hardware | None:
    """The machine that a model's attention or slots go onto; None: it has neither."""
    cmos = presets.gain_cell_cmos()
    if model.config.model_type == "gsa":
        n_slots = model.config.num_slots
        softmax = presets.with_softmax(cmos)
        return replace(softmax, array=replace(softmax.array, window=n_slots, rows=n_slots, full_scales="head"))
    types = getattr(model.config, "layer_types", None)
    if model.config.model_type == "mamba" or (types and "full_attention" not in types):
        return None
    return replace(cmos, array=Array(window=WINDOW, rows=WINDOW))


def put_into_cells(model: PreTrainedModel, hardware: Hardware, task: Task, seed: int) -> PreTrainedModel:
    """A copy of a digital model in cells, its scalers set from a few texts."""
    texts = [task.draw(64, torch.Generator().manual_seed(1000 + seed + i)).ids for i in range(4)]
    analog = deepcopy(model)
    if model.config.model_type == "gsa":
        put_on_cells(analog, hardware)  # type: ignore[arg-type]
        calibrate_slots(analog, texts)  # type: ignore[arg-type]
    else:
        aimc.convert(analog, hardware)
        aimc.initialise_scalers(analog, model, texts)
    return analog


def meet_chip(model: PreTrainedModel, hardware: Hardware, chip: int) -> None:
    """The model on this chip of this hardware."""
    if any(True for _ in slot_arrays(model)):
        set_cells(model, hardware, chip_seed=chip)  # type: ignore[arg-type]
    else:
        aimc.set_hardware(model, hardware)
        aimc.set_chip(model, chip)


def begin_small(model: PreTrainedModel) -> None:
    """Fresh weights for a small width, in place: matrices that begin with GPT-2's spread of 0.02, made for a width of
    768, with that of their own; learned positions as sinusoids, of which a head that looks one token back is one
    rotation."""
    gain = math.sqrt(USUAL_WIDTH / model.config.hidden_size)
    embedding: Any = model.get_input_embeddings().weight
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | Conv1D) and module.weight is not embedding:
                if float(module.weight.std()) < SMALL:
                    module.weight.mul_(gain)
            elif isinstance(module, nn.Embedding) and module.weight is not embedding:
                n, width = module.weight.shape
                rates = torch.exp(-math.log(LONGEST_WAVE) * torch.arange(0, width, 2) / width)
                angles = torch.arange(n)[:, None] * rates
                waves = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
                module.weight.copy_(waves * math.sqrt(2) * embedding.std())


def fit(
    model: PreTrainedModel,
    task: Task,
    steps: int,
    effort: Effort,
    seed: int,
    before_step: Callable[[int], None] | None = None,
) -> int:
    """Train in place, at most so many steps; returns how many it took.

    Args:
        before_step: called with the number of each step, such as to change the chip; None: the model stays, and
            training ends as soon as it has learnt the task.
    """
    generator = torch.Generator().manual_seed(seed)
    texts = task.draw(effort.n_training, generator)
    optimiser = torch.optim.AdamW(model.parameters(), lr=effort.learning_rate, betas=(0.9, 0.98), weight_decay=0.1)
    warm = min(effort.warmup, steps // 5) + 1
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
    )
    good = 0
    model.train()
    for step in range(1, steps + 1):
        if before_step is not None:
            before_step(step)
        at = torch.randint(len(texts.ids), (effort.batch_size,), generator=generator)
        logits = model(input_ids=texts.ids[at], use_cache=False).logits
        optimiser.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), texts.labels[at].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if before_step is None and step % LOOK_EVERY == 0:
            good = good + 1 if float(recall(model, task, n=250, seed=1)) >= ENOUGH else 0
            if good == 2:
                return step
    return steps


def examine(name: str, task_name: str, seed: int, effort: Effort) -> Found:
    """Train and measure one model on one task, in this process, on one thread."""
    torch.set_num_threads(1)
    task, start, found = TASKS[task_name], time.perf_counter(), Found()
    sizes = ModelConfig(**SIZES, **MODELS[name])
    vocabulary = {"vocab_size": task.vocabulary, "bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[sizes.family].build(sizes, vocabulary))
    begin_small(model)
    found.n_parameters = model.num_parameters()

    def measure(phase: str, of: PreTrainedModel, **how: Any) -> None:
        found.accuracy[phase] = float(recall(of, task, n=effort.n_texts, chips=effort.chips, **how))

    found.steps = fit(model, task, effort.steps, effort, seed)
    measure("digital", model)
    hardware = hardware_for(model)
    if hardware is not None:
        gentle = replace(effort, learning_rate=effort.learning_rate / 3)
        analog = put_into_cells(model, hardware, task, seed)
        fit(analog, task, effort.on_cells, gentle, seed + 1)
        measure("cells", analog)
        measure("cells, typical", analog, nonideality=presets.typical())
        noisy = replace(hardware, noise=presets.typical())
        # chips that are not measured: those are numbered from 0
        fit(analog, task, effort.on_cells, gentle, seed + 2, lambda step: meet_chip(analog, noisy, 10_000 + step))
        measure("cells trained under it", analog, nonideality=presets.typical())
    found.seconds = time.perf_counter() - start
    return found


def table(results: dict[tuple[str, str], list[Found]], effort: Effort) -> Table:
    """Mean accuracy over seeds in percent, by model, task and phase."""
    seeds = max(len(found) for found in results.values())
    shown = Table(
        title=f"Recall, accuracy in %: {effort.n_texts} texts, {effort.chips} chips, {seeds} seeds;"
        f" guessing {', '.join(f'{task.name} {100 * task.chance:.0f}' for task in TASKS.values())}"
    )
    for column in ("model", "parameters", "task", "steps", *PHASES):
        shown.add_column(column, justify="left" if column in ("model", "task") else "right")
    for (name, task), found in sorted(results.items(), key=lambda pair: (list(MODELS).index(pair[0][0]), pair[0][1])):
        cells = [
            f"{100 * fmean(one.accuracy[phase] for one in found):.1f}" if phase in found[0].accuracy else "–"
            for phase in PHASES
        ]
        steps = f"{fmean(one.steps for one in found):.0f}"
        shown.add_row(name, f"{found[0].n_parameters:,}", task, steps, *cells)
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all jobs, print the table, write `recall.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recall", description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS), help="default: all")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS), help="default: both")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0, 1, …, so many")
    parser.add_argument("--steps", type=int, default=None, help=f"most steps in digital; default: {Effort().steps}")
    parser.add_argument("--jobs", type=int, default=2, help="models at once, one thread each")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything: whether it runs")
    parser.add_argument(
        "--folder", type=Path, help="default: checkpoints/recall, with --quick checkpoints/recall_quick"
    )
    words = parser.parse_args(arguments)
    words.folder = words.folder or Path("checkpoints", "recall_quick" if words.quick else "recall")
    effort = QUICK if words.quick else Effort()
    effort = effort if words.steps is None else replace(effort, steps=words.steps)
    console = Console(highlight=False, stderr=True, width=WIDTH)
    results: dict[tuple[str, str], list[Found]] = {}
    with ProcessPoolExecutor(words.jobs, mp_context=get_context("spawn")) as pool:
        asked = {
            pool.submit(examine, name, task, seed, effort): (name, task)
            for seed in range(words.seeds)
            for name in words.models
            for task in words.tasks
        }
        failed: list[str] = []
        for done in as_completed(asked):
            name, task = asked[done]
            if (error := done.exception()) is not None:
                failed.append(f"{name}, {task} ({type(error).__name__}: {error})")
                continue
            found = done.result()
            results.setdefault((name, task), []).append(found)
            accuracies = ", ".join(f"{phase} {100 * value:.1f}" for phase, value in found.accuracy.items())
            console.print(f"{name}, {task}: {accuracies} ({found.steps} steps, {found.seconds:.0f} s)")
            rows = [{"model": key[0], "task": key[1]} | asdict(one) for key, of in results.items() for one in of]
            write_json(words.folder / "recall.json", {"effort": asdict(effort), "sizes": SIZES, "rows": rows})
    Console(highlight=False, width=WIDTH).print(table(results, effort))
    if failed:
        sys.exit("not measured: " + "; ".join(failed))


if __name__ == "__main__":
    main()
