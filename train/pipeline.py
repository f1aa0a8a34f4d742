"""Run stages in order; skip what a previous run finished with the same settings; leave whole folders only."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoConfig, GPT2Config, PretrainedConfig

import aimc
from aimc.models import llama2c

from . import report
from .cards import model_card
from .errors import RunError
from .files import require_writable, whole_folder, write_json, write_text
from .models import context_of, require_vocabulary
from .schema import RunConfig
from .stages import FOLDERS, INPUTS, STAGES, Run, StageResult, pipeline_stages, record_of
from .tokens import prepare


def execute(config: RunConfig, say: report.Say) -> None:
    """Carry out the configured stage, or all of them and the report.

    Raises:
        RunError: anything that the user can put right.
    """
    require_writable(Path(config.output_dir))
    run = _open(config, say)
    if config.stage.name == "evaluate":
        report.evaluate_run(run)
        return
    for stage in pipeline_stages(config.stage) if config.stage.name == "pipeline" else (config.stage.name,):
        run_stage(run, stage)
    if config.stage.name == "pipeline":
        report.evaluate_run(run)


def _open(config: RunConfig, say: report.Say) -> Run:
    source = config.model.source
    model = GPT2Config(n_positions=config.model.n_positions) if source is None else _config_of(source)
    context = context_of(config.data, model, config.stage.stride)
    state = PartialState(cpu=config.trainer.device == "cpu" or not torch.cuda.is_available())
    with state.main_process_first():  # one process tokenises, the others find it done
        data = prepare(config.data, source, context)
    if source is not None:
        require_vocabulary(data.tokenizer, model, f"model.source={source}")
    return Run(config, data, context, say if state.is_main_process else report.silent)


def _config_of(source: str) -> PretrainedConfig:
    try:
        checkpoint = llama2c.find_checkpoint(source)
        return AutoConfig.from_pretrained(source) if checkpoint is None else llama2c.load_config(checkpoint)
    except (OSError, ValueError) as error:
        raise RunError(
            f"model.source={source}: no model there ({str(error).splitlines()[0]}); check the path or the network"
        ) from error


def run_stage(run: Run, stage: str) -> None:
    """Run one stage and put its model in place, unless that was done before with the same settings."""
    folder, settings = run.folder(stage), _settings(run, stage)
    record = record_of(folder)
    if record is not None and not run.config.restart:
        if record["settings"] == settings:
            run.say(
                f"[bold]{stage}[/]: finished by an earlier run with the same settings, in {folder}; skipped"
                " (restart=true runs it again)"
            )
            if record["measured_tokens"] != len(run.test_tokens):
                run.say(
                    f"  its perplexities were measured on {record['measured_tokens']:,} tokens, as it was run with"
                    " another stage.test_tokens"
                )
            return
        run.say(f"[bold]{stage}[/]: an earlier run in {folder} had other settings; running it again")
    state = PartialState()
    if state.is_main_process:
        _clear_work(run, stage, settings)
    state.wait_for_everyone()
    run.say(f"[bold]{stage}[/]: running")
    started = time.perf_counter()
    result = STAGES[stage](run)
    seconds = time.perf_counter() - started
    for name, value in result.perplexity.items():
        run.say(f"  perplexity, {name}: [bold]{value:.2f}[/]")
    if state.is_main_process:
        _save(run, stage, result, settings, seconds)
    state.wait_for_everyone()


def _clear_work(run: Run, stage: str, settings: dict[str, Any]) -> None:
    """Leave nothing to resume from that was made with other settings."""
    work = run.work(stage)
    mark = work / "settings.json"
    other = mark.exists() and json.loads(mark.read_text(encoding="utf-8")) != settings
    if other:
        run.say(f"[bold]{stage}[/]: what an interrupted run left in {work} had other settings; starting the stage anew")
    if other or run.config.restart:
        shutil.rmtree(work, ignore_errors=True)
    write_json(mark, settings)


def _save(run: Run, stage: str, result: StageResult, settings: dict[str, Any], seconds: float) -> None:
    tokens = max((int(line["tokens"]) for line in result.history), default=0)
    record = {
        "stage": stage,
        "perplexity": result.perplexity,
        "measured_tokens": len(run.test_tokens),
        "training_tokens": tokens,
        "training_steps": max((int(line["step"]) for line in result.history), default=0),
        "seconds": round(seconds, 1),
        "command": shlex.join(["python", "-m", "train", *sys.argv[1:]]),
        "notes": result.notes,
        "settings": settings,
    }
    with whole_folder(run.folder(stage)) as partial:
        result.model.config.use_cache = not aimc.models.arrays.has_arrays(result.model)  # the trainer switches it off
        result.model.save_pretrained(partial)
        run.data.tokenizer.save_pretrained(partial)
        write_json(partial / "history.json", result.history)
        write_json(partial / "stage.json", record)
        write_text(partial / "README.md", model_card(run, stage, record, result.model))
    shutil.rmtree(run.work(stage), ignore_errors=True)


def _settings(run: Run, stage: str) -> dict[str, Any]:
    """Everything that shapes a stage's model: if it is the same, so is the model."""
    config = asdict(run.config)
    of_stage = {
        "digital": ["digital"],
        "control": ["linear", "finetune"],
        "linear": ["linear"],
        "finetune": ["finetune"],
        "joint": ["joint"],
    }
    budgets = of_stage.get(stage, [])
    settings: dict[str, Any] = {"seed": config["seed"], "context": run.context, "data": run.data.fingerprint}
    if budgets:
        settings |= {"trainer": {name: config["trainer"][name] for name in (*budgets, "precision")}}
    if stage == "digital":
        settings["model"] = config["model"]
    if stage == "joint":
        settings["static"] = config["static"]
    if stage in ("softmax", "linear", "adapt", "finetune", "joint"):
        settings["hardware"] = config["hardware"]
    if stage == "linear":
        settings["start"] = config["stage"]["start"]
    if stage in ("softmax", "linear", "adapt", "joint"):
        settings["calibration"] = {k: v for k, v in config["stage"].items() if k.startswith(("calibration", "adapt"))}
    if stage in INPUTS:
        settings["input"] = _digest(run.input(stage))
    return json.loads(json.dumps(settings))  # as it will be read back, so that it compares


def _digest(folder: Path) -> str:
    """Which model stands in a folder, by its weights."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return f"{FOLDERS.get(folder.name, folder.name)}-{digest.hexdigest()[:16]}"
