"""Where and from what a result came."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).parents[1]


def provenance(device: str) -> dict[str, Any]:
    """Commit, torch version, device, cores, threads, load and date: the fields that every result carries.

    The load is how many processes wanted a core in the minute before the run, on average: above zero, the machine was
        not quiet.
    """
    return {
        "commit": commit(),
        "torch": torch.__version__,
        "device": device_name(device),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """The commit of the working tree, `+dirty` behind it if files differ from it; `unknown` outside a repository."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+dirty" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device_name(device: torch.device | str) -> str:
    """Model of a GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else cpu_name()


def cpu_name() -> str:
    """Model of the processor, as its maker calls it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
