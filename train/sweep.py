"""Where a job of a sweep (`-m seed=1,2`) writes: into a folder of its own, so that no job overwrites another's."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

_LONGEST = 120


def folder_of_job(folder: Path) -> Path:
    """`folder` itself, or inside a sweep the sub-folder that is named after what this job has for itself."""
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
