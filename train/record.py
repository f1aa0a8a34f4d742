"""What a finished stage leaves: its folder with model, tokenizer, card, log, and the record of the settings that shaped
it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from aimc.models.arrays import has_arrays
from aimc.models.manifest import damage_of

from .cards import model_card
from .files import read_object, remove, whole_folder, write_json, write_text
from .models import digest_of, digest_of_source
from .stages.stage import NOISE

if TYPE_CHECKING:
    from .run import Run
    from .stages.stage import StageResult

RECORD, HISTORY = "stage.json", "history.json"
_RECORDED = {"stage", "perplexity", "measured_tokens", "training_tokens", "notes", "settings"}
"""What others read of a record."""


def record_of(folder: Path, say: Callable[[Any], None]) -> dict[str, Any] | None:
    """What a finished stage wrote about itself; None where it did not finish, or its folder is damaged.

    Args:
        folder: of the stage.
        say: gets a line where it is damaged: it counts as unfinished.
    """
    if not (folder / "config.json").exists() and not (folder / RECORD).exists():
        return None
    record, damage = read_object(folder / RECORD), damage_of(folder)
    if damage is None:
        damage = _missing_in(folder, record)
    if damage is None:
        return record
    say(f"  the model in {folder} is damaged ({damage}); it counts as unfinished")
    return None


def _missing_in(folder: Path, record: dict[str, Any] | None) -> str | None:
    """What a folder without a manifest, by an older version, can be seen to lack."""
    if record is None or _RECORDED - record.keys() or not isinstance(record["perplexity"], dict):
        return f"{RECORD} cannot be read"
    if not list(folder.glob("*.safetensors")):
        return "no weights"
    try:
        return None if isinstance(history_of(folder), list) else f"{HISTORY} is no list"
    except (OSError, ValueError):
        return f"{HISTORY} cannot be read"


def history_of(folder: Path) -> list[dict[str, float]]:
    """A finished stage's training log."""
    return json.loads((folder / HISTORY).read_text(encoding="utf-8"))


def settings_of(run: Run) -> dict[str, Any]:
    """Everything that shapes the model of the run's stage: if it is the same, so is the model."""
    stage, config = run.stage, asdict(run.config)
    settings: dict[str, Any] = {"seed": run.config.seed, "context": run.context, "data": run.data.fingerprint}
    if stage.recipes:
        settings["trainer"] = {name: asdict(run.recipe(name)) for name in stage.recipes}
        settings["trainer"]["precision"] = run.config.trainer.precision
        if (processes := PartialState().num_processes) > 1:
            settings["processes"] = processes
    for place in stage.depends_on:
        settings[place] = reduce(dict.__getitem__, place.split("."), config)
    if stage.needs is None and (source := config["model"]["source"]) is not None and Path(source).exists():
        settings["source"] = digest_of_source(Path(source))
    if stage.needs is not None:
        settings["input"] = digest_of(run.input(stage.needs), stage.needs)
    settings |= _of_training(run)
    return json.loads(json.dumps(settings))  # as it will be read back, so that it compares


def rule_of(run: Run) -> dict[str, int | None]:
    """By which windows the run's perplexities are measured."""
    return {"context": run.measurement.context, "stride": run.measurement.stride}


def is_same(before: dict[str, Any] | None, settings: dict[str, Any]) -> bool:
    """Whether two settings shape the same model: a batch is the same on however many processes, and in however many
    micro-steps, it is read, a model however often it is saved on its way, and by whichever backend it computes."""
    return before is not None and _of_model(before) == _of_model(_as_told_by(before, settings))


def _as_told_by(before: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Settings, with no more of them than an older record tells."""
    older = dict(settings)
    for later in ("source", "teacher"):
        if later not in before:
            older.pop(later, None)
    if before.get("best") == "loaded" and "best" in settings:
        older["best"] = "loaded"
    return older


def _of_model(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the sequences of an optimiser step in place of how they are shared, and without what shapes no
    model."""
    processes, shaping = settings.get("processes", 1), {**settings, "processes": 1}
    shaping["trainer"] = {name: _of_steps(recipe, processes) for name, recipe in settings.get("trainer", {}).items()}
    if isinstance(hardware := settings.get("hardware"), dict):
        shaping["hardware"] = hardware | {"backend": None}
    return shaping


def _of_steps(recipe: Any, processes: int) -> Any:
    """A recipe, by optimiser steps; anything else as it is."""
    if not isinstance(recipe, dict) or not {"batch_size", "accumulate"} <= recipe.keys():
        return recipe
    together = recipe["batch_size"] * recipe["accumulate"] * processes
    return recipe | {"batch_size": together, "accumulate": 1, "save_every": None}


def _of_training(run: Run) -> dict[str, Any]:
    """What shapes the stage's training from outside its recipes, where they ask for it."""
    stage, trainer, data = run.stage, run.config.trainer, run.config.data
    recipes = {name: trainer.recipe(name) for name in stage.recipes}
    settings: dict[str, Any] = {}
    if "match" in recipes:
        options = {f"stage.{name}": getattr(run.config.stage, name) for name in ("match_own_stream", "match_patience")}
        settings |= {name: value for name, value in options.items() if value}
    if recipes and trainer.best == "loaded":
        settings["best"] = {"best": trainer.best, "eval_tokens": trainer.eval_tokens}
    if recipes and trainer.on_spike == "skip":
        settings["skipped"] = {"deviations": trainer.spike_deviations, "window": trainer.spike_window}
    if run.is_control and trainer.distill_control:
        settings["distill_control"] = True
    if run.fits_full_scales:
        settings["fits"] = stage.fits
    depends_on_noise = run.fits_full_scales and stage.fits == NOISE
    if depends_on_noise or (stage.analog and any(recipe.noise.scale for recipe in recipes.values())):
        settings["nonideality"] = asdict(run.config.nonideality)
    teachers = {name for name in map(run.teacher_name, recipes) if name not in (None, stage.needs)}
    if teachers:  # what the stage needs is among its settings anyway
        settings["teacher"] = " ".join(digest_of(run.input(name), name) for name in sorted(teachers))
    if recipes and data.is_generated and stage.needs is not None:
        settings["generated"] = asdict(data.generated) | {"by": digest_of(run.input("digital"), "digital")}
    return settings


def save(run: Run, result: StageResult, settings: dict[str, Any], seconds: float) -> None:
    """Put the stage's whole folder in place, and drop what it could have resumed from."""
    record = {
        "stage": run.stage.name,
        "perplexity": result.perplexity,
        "measured_tokens": len(run.text),
        "measured_with": rule_of(run),
        "training_tokens": max((int(line["tokens"]) for line in result.history), default=0),
        "training_steps": max((int(line["step"]) for line in result.history), default=0),
        "seconds": round(seconds, 1),
        "command": shlex.join(["python", "-m", "train", *sys.argv[1:]]),
        "notes": result.notes,
        "settings": settings,
    }
    with whole_folder(run.folder) as partial:
        result.model.config.use_cache = not has_arrays(result.model)  # the trainer switches it off
        result.model.save_pretrained(partial)
        run.data.tokenizer.save_pretrained(partial)
        write_json(partial / HISTORY, result.history)
        write_json(partial / RECORD, record)
        write_text(partial / "README.md", model_card(run, record, result.model))
    remove(run.work)
