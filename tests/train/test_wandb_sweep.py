"""The sweeps that docs/ has for W&B's own agent: its code makes their command lines here, without a server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from transformers import AutoTokenizer

import aimc
from tests.conftest import REPOSITORY, small_arrays, tiny_gpt2
from tests.train.conftest import compose_config
from train.command import _settings
from train.schema import RunConfig
from train.study import study
from train.study_schema import StudyConfig

wandb_agent = pytest.importorskip("wandb.wandb_agent")
ENTRIES = {"train.study": ("study", StudyConfig), "train": ("run", RunConfig)}
"""Module of a sweep to its config and schema."""
RUN = "abc123"


def sweep_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "docs" / "howto" / f"wandb_{name}.yaml").read_text(encoding="utf-8"))


def first_point(sweep: dict[str, Any]) -> dict[str, Any]:
    """As the server sends it: a value a parameter."""
    values = {
        name: axis["values"][0] if "values" in axis else axis["min"] for name, axis in sweep["parameters"].items()
    }
    args = {name: {"value": value} for name, value in values.items()}
    return {"type": "run", "run_id": RUN, "program": sweep["program"], "args": args}


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """W&B's agent of a sweep, which asks no server; what it leaves in the environment goes with the test."""
    environment = {"WANDB_DIR": str(tmp_path), "WANDB_SWEEP_ID": "sweep1", "WANDB_MODE": "offline"}
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RUN_GROUP", "WANDB_RESUME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return wandb_agent.Agent(None, None, "sweep1")


def words_of(agent: Any, sweep: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line that the agent makes of the first point."""
    made: list[list[str]] = []

    class Noted:
        last_sigterm_time = None

        def __init__(self, command: list[str], **_: Any) -> None:
            made.append(command)

    monkeypatch.setattr(wandb_agent, "AgentProcess", Noted)
    agent._sweep_command = sweep["command"]
    agent._command_run(first_point(sweep))
    return made[0]


@pytest.mark.parametrize("name", ["study", "train"])
def test_every_field_is_there(name: str, agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of(name)
    environment, python, module, program, *words = words_of(agent, sweep, monkeypatch)
    assert (environment, python, module) == ("/usr/bin/env", "python", "-m")
    entry, schema = ENTRIES[program]
    settings: Any = _settings(compose_config(entry, *words), schema)
    assert settings.logger.name == "wandb"
    assert settings.folder == Path("checkpoints/sweep") / RUN  # no run of the sweep writes into another's folder
    assert os.environ["WANDB_RUN_GROUP"] == "checkpoints/sweep" and os.environ["WANDB_RESUME"] == "allow"


def test_the_page_shows_the_file() -> None:
    howto = REPOSITORY / "docs" / "howto"
    lines = (howto / "wandb_study.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
    shown = "".join(line for line in lines if not line.startswith("#"))
    assert f"```yaml\n{shown}```" in (howto / "wandb.md").read_text(encoding="utf-8")


@pytest.fixture
def tiny(tmp_path: Path, text_folder: Path, cache: Path) -> list[str]:
    """What makes a study of the sweep small."""
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "checkpoints" / "shipped" / "digital")
    model = tiny_gpt2(vocab_size=len(tokenizer))
    aimc.convert(model, small_arrays())
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    words = f"data=text data.path={text_folder} data.cache_dir={cache} measure.tokens=97 measure.context=16"
    words += " measure.stride=16 measure.chips=2 effects=[read_av] resamples=50 workers=1 sample_tokens=0"
    return [
        *words.split(),
        f"checkpoint={tmp_path / 'model'}",
        f"cache_dir={tmp_path}",
        f"output_dir={tmp_path / 'out'}",
    ]


def test_a_point_is_a_run_of_the_sweep(
    agent: Any, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = words_of(agent, sweep_of("study"), monkeypatch)[4:]
    wandb.teardown()  # what another test has begun does not read the environment again
    study(_settings(compose_config("study", *words, *tiny), StudyConfig))
    folder = tmp_path / "out" / RUN
    assert json.loads((folder / "study.json").read_text())["config"]["measure"]["seed"] == 0
    (run,) = (folder / "wandb").glob(f"offline-run-*-{RUN}")
    written = b"".join(file.read_bytes() for file in run.rglob("*") if file.is_file())
    assert str(tmp_path / "out").encode() in written  # the group
    assert b"rise_alone" in written and b"perplexity" in written


@pytest.mark.slow
def test_the_agent_runs_it(agent: Any, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of("study")
    monkeypatch.chdir(REPOSITORY)
    agent._sweep_command = [*sweep["command"], *tiny]
    agent._command_run(first_point(sweep))
    process = agent._run_processes[RUN]
    process.wait()
    assert process.poll() == 0
    assert (tmp_path / "out" / RUN / "study.json").exists()
