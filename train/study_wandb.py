"""A study in Weights & Biases: its config as nested values, a table and a plot a part, its files as an artifact."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .callbacks import wandb_mode
from .study_tables import rows_of

if TYPE_CHECKING:
    from .study_schema import StudyConfig

_log = logging.getLogger(__name__)


def log_study(settings: StudyConfig, results: Mapping[str, Any]) -> None:
    """One run of job type `study`, in `<folder>/wandb`, offline unless logged in; the studies of a sweep are a group,
    or else those of one checkpoint. Its summary is what a sweep may compare. Whatever goes wrong there is a warning:
    the study's own files are complete without it.

    Args:
        settings: of the study.
        results: by part, as in study.json.
    """
    try:
        _log_run(settings, results)
    except Exception as error:
        _log.warning("logger=wandb: %s: %s; the study is complete in %s", type(error).__name__, error, settings.folder)


def _log_run(settings: StudyConfig, results: Mapping[str, Any]) -> None:
    import wandb

    mode: Any = os.environ.get("WANDB_MODE") or wandb_mode()
    name = Path(settings.checkpoint).resolve()
    with wandb.init(
        project=settings.logger.project,
        dir=str(settings.folder),
        group=os.environ.get("WANDB_RUN_GROUP") or f"study {name.parent.name}/{name.name}",
        job_type="study",
        config=settings.facts,
        mode=mode,
    ) as run:
        for part, found in results.items():
            if isinstance(found, dict) and "error" in found:
                continue
            rows = list(rows_of(part, found))
            if rows:
                columns: list[str | int] = list(rows[0])
                table = wandb.Table(columns=columns, data=[[row[column] for column in rows[0]] for row in rows])
                run.log({part: table} | _plot(part, table))
        run.summary.update(_summary(results))
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"study-{name.parent.name}-{name.name}")  # as W&B demands
        artifact = wandb.Artifact(plain[:128], type="study")
        for file in (*settings.folder.glob("study.json"), *settings.folder.glob("*.csv")):
            artifact.add_file(str(file))
        run.log_artifact(artifact)


def _summary(results: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a study, one each: the rise of perplexity by everything, and the energy of the cheapest circuit."""
    ranking, circuits = (results.get(part) or {} for part in ("sensitivity", "specification"))
    found = {}
    if "all" in ranking:
        found = {"rise": ranking["rise"]["value"], "perplexity": ranking["all"]["value"]}
    if circuits.get("cheapest") is not None:
        found["energy_j"] = circuits["circuits"][circuits["cheapest"]]["energy_j"]
    return found


def _plot(part: str, table: Any) -> dict[str, Any]:
    """What one looks at first."""
    import wandb

    if part == "sensitivity":
        return {"rise by non-ideality": wandb.plot.bar(table, "label", "rise_alone", title="Rise of perplexity")}
    if part == "specification":
        return {"energy front": wandb.plot.scatter(table, "energy_j", "rise", title="Energy a token and rise")}
    return {}
