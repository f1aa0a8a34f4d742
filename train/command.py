"""What a command line does about errors: those of the user's making become one line and exit status 1."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from .errors import RunError


def launch(main: Callable[[], None]) -> None:
    """Run a Hydra `main`; print what Hydra says of a wrong command line or YAML file on one line too."""
    os.environ.setdefault(
        "HYDRA_FULL_ERROR", "1"
    )  # lets the error through to here; without it Hydra prints its own page
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        lines = [
            line.strip() for part in (error, error.__cause__) if part is not None for line in str(part).splitlines()
        ]
        told = [
            line for line in dict.fromkeys(lines) if line and "_type=" not in line and not line.startswith("To append")
        ]
        sys.exit(f"error: {'; '.join(line.rstrip('.;') for line in told)}")


def run_command(work: Callable[[], None]) -> None:
    """Run `work`; print the message of a :class:`RunError` instead of a traceback."""
    os.environ.setdefault(
        "TOKENIZERS_PARALLELISM", "false"
    )  # the tokenizer's threads and the data loader's processes do not mix
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # bars of loading and saving; the trainer has its own
    for noisy in ("wandb", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        work()
    except RunError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted before there was anything to save; the same command starts again")
