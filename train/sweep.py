"""Where a job of a sweep writes, of Hydra's (`-m seed=1,2`) or of W&B's agent: into a folder of its own, so that no job
overwrites another's; and what W&B calls them together."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

_LONGEST = 120


def agent_run() -> str | None:
    """The id of the run that `wandb agent` has started this process for; None: nothing of the kind did."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def group_in_wandb(folder: Path) -> None:
    """Have W&B show the jobs of a sweep as a group, named after the folder that they share, unless the user has set a
    name. What an agent has started is one run there, whatever number of stages it trains."""
    os.environ.setdefault("WANDB_RUN_GROUP", str(folder)[-_LONGEST:])
    if agent_run():
        os.environ.setdefault("WANDB_RESUME", "allow")


def folder_of_job(folder: Path) -> Path:
    """`folder` itself, or inside a sweep its sub-folder, named after what this job has for itself or by W&B's agent."""
    folder = folder / (agent_run() or "")
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return folder
    return folder / name_of_job(HydraConfig.get().overrides.task, sys.argv[1:])


def name_of_job(overrides: Iterable[str], command_line: Iterable[str]) -> str:
    """`seed=1` for the job of `seed=1,2`: the overrides of the job that do not stand so on the command line.

    They tell jobs apart, whatever swept them. Where the output folder itself was swept, it does so already.
    """
    given = set(command_line)
    own = [item for item in overrides if item not in given and not item.lstrip("+").startswith("output_dir=")]
    name = re.sub(r"[^\w=.,+-]+", "_", ",".join(own))
    if len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}-{hashlib.sha256(','.join(own).encode()).hexdigest()[:8]}"
