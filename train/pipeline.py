"""Run stages in order; skip what a previous run finished with the same settings; leave whole folders only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from transformers import GPT2Config

from . import report
from .files import read_object, remove, require_writable, settle, write_json
from .lock import one_job
from .memory import keep_freed_memory
from .needs import require_all
from .pretrained import config_of
from .ranks import first_alone, join, together
from .record import is_same, record_of, rule_of, save, settings_of
from .run import HEARTBEAT, Run
from .stages import STAGES
from .tables import Say, bold, silent
from .tokens import prepare, require_vocabulary
from .windows import context_of, placed

if TYPE_CHECKING:
    from .schema import RunConfig
    from .stages.stage import Stage


def execute(config: RunConfig, say: Say, stages: Sequence[Stage] | None = None) -> None:
    """Carry out the configured stage, or all of them and the report.

    Args:
        config: of the run.
        say: gets what is told.
        stages: to be run in place of those that the config wants, such as one that is no stage of a route.

    Raises:
        RunError: anything that the user can put right.
    """
    require_writable(config.folder)
    keep_freed_memory()
    state = join(config.trainer)
    with one_job(config.folder, say, main_process=state.is_main_process), together():
        run = opened(config, say if state.is_main_process else silent, state)
        if config.stage.name == "tokenise":
            say(f"{Path(config.data.cache_dir) / run.data.fingerprint}: {run.data.sizes}")
            return
        if state.is_main_process:
            for known in (*STAGES.values(), *(stages or ())):
                settle(config.folder / known.folder)
        state.wait_for_everyone()
        require_all(run)
        for stage in [config.stage.stage(name) for name in config.stage.wanted()] if stages is None else stages:
            run_stage(replace(run, stage=stage))
        if config.stage.name in ("pipeline", "evaluate"):
            report.evaluate_run(run)
        if state.is_main_process:
            remove(config.folder / HEARTBEAT)


def opened(config: RunConfig, say: Say, state: PartialState) -> Run:
    """A run with its text, before its first stage."""
    source = config.model.source
    model = GPT2Config(n_positions=config.model.n_positions) if source is None else config_of(source)
    context = context_of(config.data, model)
    measurement = placed(config.measure, config.data, model)
    with first_alone(state):  # one process tokenises, the others find it done
        data = prepare(config.data, source, max(context, measurement.context or 0), say)
    if source is not None:
        require_vocabulary(data.tokenizer, model, f"model.source={source}")
    first = next(iter(STAGES.values()))
    return Run(config=config, data=data, context=context, measurement=measurement, stage=first, say=say)


def run_stage(run: Run) -> None:
    """Run one stage and put its model in place, unless that was done before with the same settings."""
    name, settings = run.stage.name, settings_of(run)
    if _finished(run, settings):
        return
    state = PartialState()
    if state.is_main_process:
        _clear_work(run, settings)
    state.wait_for_everyone()
    run.say(f"{bold(name)}: running")
    started = time.perf_counter()
    result = run.stage.run(run)
    seconds = time.perf_counter() - started
    for moment, value in result.perplexity.items():
        run.say(f"  perplexity, {moment}: {bold(f'{value:.2f}')}")
    if state.is_main_process:
        save(run, result, settings, seconds)
    state.wait_for_everyone()


def _finished(run: Run, settings: dict[str, Any]) -> bool:
    """Whether an earlier run left this stage's model; says so."""
    name = run.stage.name
    if run.config.restart:
        return False
    record = record_of(run.folder, run.say)
    if record is None:
        return False
    if not is_same(record["settings"], settings):
        run.say(f"{bold(name)}: an earlier run in {run.folder} had other settings; running it again")
        return False
    run.say(
        f"{bold(name)}: finished by an earlier run with the same settings, in {run.folder}; skipped (restart=true"
        " runs it again)"
    )
    if record["measured_tokens"] != len(run.text):
        run.say(
            f"  its perplexities were measured on {record['measured_tokens']:,} tokens, as it was run with another"
            " measure.tokens"
        )
    if (before := record.get("measured_with", rule_of(run))) != rule_of(run):
        by = ", ".join(f"measure.{name}={'null' if value is None else value}" for name, value in before.items())
        run.say(f"  its perplexities were measured with {by}, as it was run so")
    return True


def _clear_work(run: Run, settings: dict[str, Any]) -> None:
    """Leave nothing to resume from that was made with other settings."""
    mark = run.work / "settings.json"
    before = read_object(mark)
    other = mark.exists() and not is_same(before, settings)
    if other:
        what = "had other settings" if before is not None else "has settings that cannot be read"
        run.say(f"{bold(run.stage.name)}: what an interrupted run left in {run.work} {what}; starting the stage anew")
    if other or run.config.restart:
        remove(run.work)
    write_json(mark, settings)
