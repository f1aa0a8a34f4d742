"""The characterisation of a run: its models by name, its tables, its files."""

from __future__ import annotations

import csv
import io
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from aimc import plot
from aimc.circuit.cost.report import si
from aimc.evaluate.characterise import Characterisation, Plan, Point, Subject, UnknownModel, characterise
from aimc.evaluate.characterise.subjects import TABLE, checkpoint, of_config, subject
from aimc.hardware import ConfigError

from .characterisation_tables import (
    class_tables,
    crossover_table,
    estimate_table,
    machine_table,
    point_table,
    winner_table,
)
from .characterise_config import CharacteriseConfig
from .command import CONF
from .errors import RunError
from .files import write_json, write_text
from .models import digital_model, load_any
from .schema import ModelConfig
from .tables import Say

_VOCABULARY = 2048
SO_FAR = "characterisation.so_far.csv"
"""The points of a run that has not ended, or was stopped; results of an earlier one stay until it has."""


class _Vocabulary:
    """As much of a tokenizer as a fresh model asks for."""

    bos_token_id = eos_token_id = 0

    def __len__(self) -> int:
        return _VOCABULARY


def subjects(settings: CharacteriseConfig) -> list[Subject]:
    """The models of a run.

    Raises:
        RunError: a name that is none.
    """
    try:
        return [_subject(name, settings.seed) for name in dict.fromkeys(settings.models)]
    except UnknownModel as error:
        raise RunError(str(error)) from error


def _subject(name: str, seed: int) -> Subject:
    file = CONF / "model" / f"{name}.yaml"
    if file.exists():
        config = _model_config(file)
        if config.source is not None:
            source = config.source
            if name in TABLE and not Path(source).exists():
                return subject(name)  # cost does not ask for its weights, so nothing is downloaded for it
            return checkpoint(source, lambda: load_any(source))
        vocabulary: Any = _Vocabulary()
        return of_config(name, digital_model(config, vocabulary, seed).config)
    if (Path(name) / "config.json").exists():
        return checkpoint(name, lambda: load_any(name))
    return subject(name)


def _model_config(file: Path) -> ModelConfig:
    """A choice of conf/model/ as it is checked everywhere else."""
    written: Any = OmegaConf.load(file)
    written.pop("defaults", None)
    result = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), written))
    assert isinstance(result, ModelConfig)
    return result


def run(settings: CharacteriseConfig, models: list[Subject], say: Say) -> None:
    """Measure, show and write.

    Raises:
        RunError: no GPU where one is asked for, or arrays whose cost is not defined.
    """
    plan = _plan(settings)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    say(f"{_machine(plan.device)}, {str(plan.dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads")
    folder = settings.folder
    points: list[Point] = []

    def told(point: Point) -> None:
        points.append(point)
        write_text(folder / SO_FAR, csv_text(points))
        say(f"  {_line(point)}")

    try:
        found = characterise(models, plan, told)
    except ConfigError as error:
        raise RunError(str(error)) from error
    shown = (point_table(found), *class_tables(found), machine_table(found), estimate_table(found))
    for table in (*shown, crossover_table(found), winner_table(found)):
        if table is not None:
            say(table)
    for model, why in found.notes.items():
        say(f"{model}: attention is not on arrays: {why}")
    write_json(folder / "characterisation.json", record(found, plan))
    write_text(folder / "characterisation.csv", csv_text(found.points))
    plot.save(plot.characterisation(found, title=_machine(plan.device)), folder / "characterisation.png")
    (folder / SO_FAR).unlink(missing_ok=True)


def _plan(settings: CharacteriseConfig) -> Plan:
    there = torch.cuda.is_available()
    if settings.device == "cuda" and not there:
        raise RunError("device=cuda: PyTorch finds no GPU here, so nothing can run on one; set device=cpu or auto")
    device = "cuda" if there and settings.device != "cpu" else "cpu"
    default = torch.bfloat16 if device == "cuda" else torch.float32
    return Plan(
        lengths=settings.lengths,
        device=device,
        dtype=default if settings.dtype == "auto" else getattr(torch, settings.dtype),
        batch=settings.batch,
        new_tokens=settings.new_tokens,
        repetitions=settings.repetitions,
        point_s=settings.point_s,
        memory_bytes=None if settings.memory_gb is None else settings.memory_gb * 1e9,
        max_operators=settings.max_operators,
        hardware=settings.hardware,
        most_slots=settings.most_slots,
        seed=settings.seed,
    )


def _machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _line(point: Point) -> str:
    if point.not_run:
        return f"{point.model}, {point.length:,} tokens: {point.not_run}"
    return (
        f"{point.model}, {point.length:,} tokens: first token {si(point.first_token_s, 's')}, then"
        f" {si(point.token_s, 's')} a token, peak {si(point.peak_bytes, 'B')}"
        f"{f'; without {point.left_out}' if point.left_out else ''}"
    )


def csv_text(points: list[Point]) -> str:
    """Every number of every point."""
    out = io.StringIO()
    rows = [point.flat() for point in points]
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def record(found: Characterisation, plan: Plan) -> dict[str, Any]:
    """What a file of results holds."""
    return {
        "machine": _machine(plan.device),
        "device": plan.device,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "roofline": asdict(found.roofline) if found.roofline else None,
        "points": [asdict(point) | {"peak_bytes": point.peak_bytes} for point in found.points],
        "estimates": [asdict(estimate) for estimate in found.estimates],
        "crossovers": [asdict(crossover) for crossover in found.crossovers],
        "winners": [asdict(winner) for winner in found.winners],
        "notes": found.notes,
    }
