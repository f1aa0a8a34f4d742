"""An entry point: a Hydra config by name, checked at the door, then the work; what the user can put right becomes one
line and exit status 1."""

from __future__ import annotations

import errno
import io
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from .characterise_config import CharacteriseConfig
from .configs import checked, register
from .door import guard
from .effects import require_effect
from .errors import RESUME, RunError
from .schema import EvaluationConfig, RealConfig, RunConfig, WholeChipConfig
from .screens import screen
from .spellings import respelled
from .study_schema import PageConfig, StudyConfig
from .sweep import folder_of_job, group_in_wandb

CONF = Path(__file__).absolute().parent.parent / "conf"
"""The configs, beside this package: in a clone as once installed."""
Settings = TypeVar(
    "Settings", RunConfig, EvaluationConfig, RealConfig, WholeChipConfig, CharacteriseConfig, StudyConfig, PageConfig
)


def command_line(name: str, schema: type[Settings], work: Callable[[Settings], None]) -> Callable[[], None]:
    """The `main` of an entry point.

    Args:
        name: of the config, a file in :data:`CONF`.
        schema: what it is checked against.
        work: what is done with it.
    """
    register()
    guard()
    composed = False

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)
    def compose(config: DictConfig) -> None:
        nonlocal composed
        composed = True
        run_command(lambda: work(_settings(config, schema)))

    def main() -> None:
        if {"-h", "--help"} & set(sys.argv[1:]):
            sys.stdout.write(screen(name, CONF))
            return
        sys.argv[1:], warnings = respelled(sys.argv[1:], name)
        for warning in warnings:
            sys.stderr.write(f"warning: {warning}\n")
        try:
            launch(compose)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            if composed:  # a mistake in the program
                raise
            sys.exit(f"error: {printable(' '.join(str(error).split()))}{printable(_typed())}")

    return main


def _settings(config: DictConfig, schema: type[Settings]) -> Settings:
    settings = checked(config, schema)
    if HydraConfig.initialized():
        require_effect(settings, HydraConfig.get().overrides.task)
    folder = folder_of_job(settings.folder)
    if folder != settings.folder:
        sys.stderr.write(f"this job of the sweep writes into {folder}\n")
        group_in_wandb(settings.folder)
    settings.output_dir = str(folder)
    return settings


def launch(main: Callable[[], None]) -> None:
    """Run a Hydra `main`; print what Hydra says of a wrong command line or YAML file on one line too."""
    # Lets the error through to here; without it Hydra prints its own page.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        lines = [
            line.strip() for part in (error, error.__cause__) if part is not None for line in str(part).splitlines()
        ]
        told = [
            line for line in dict.fromkeys(lines) if line and "_type=" not in line and not line.startswith("To append")
        ]
        if "hydra/launcher/" in (words := "; ".join([*(line.rstrip(".;") for line in told), *_keys_there(error)])):
            words = f"{told[0]}: pip install 'aimc[study]' for joblib, hydra-submitit-launcher for SLURM"
        if not any(word.partition("=")[0].lstrip("+~") in words for word in sys.argv[1:]):
            words += _typed()
        sys.exit(f"error: {printable(words)}")


def _typed() -> str:
    """For a message that does not say which setting it is about."""
    return f"; check the command line: {shlex.join(sys.argv[1:])}" if sys.argv[1:] else ""


def printable(text: str) -> str:
    """A text on one line that no terminal takes for a command: what cannot be printed is shown by its number."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _keys_there(error: BaseException) -> list[str]:
    """Where a key is unknown: which there are."""
    found = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    schema = getattr(found, "object_type", None)
    if not isinstance(found, (ConfigAttributeError, ConfigKeyError)) or not is_dataclass(schema):
        return []
    return [f"the keys there are {', '.join(item.name for item in fields(schema))}"]


def run_command(work: Callable[[], None]) -> None:
    """Run `work`; print the message of a :class:`RunError` instead of a traceback."""
    # The tokenizer's threads and the data loader's processes do not mix.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # bars of loading and saving; the trainer has its own
    for noisy in ("wandb", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C: whatever holds a lock lets go of it, and the status says: go on
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _stop)
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows ASCII alone gets a question mark for the rest
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        _told(work)
    except RunError as error:
        sys.stderr.write(f"{'stopped' if error.status == RESUME else 'error'}: {printable(str(error))}\n")
        sys.exit(error.status)
    except KeyboardInterrupt as stop:
        what = f" by {stop}" if str(stop) else ""
        sys.stderr.write(f"stopped{what} outside of training; what is finished is kept, the same command goes on\n")
        sys.exit(RESUME)


DISK = tuple(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ENOTDIR", "EISDIR", "ENAMETOOLONG")
    if hasattr(errno, name)
)
"""What the system says of a disk that is full, read-only or broken, or of a path that leads nowhere."""


def _told(work: Callable[[], None]) -> None:
    """Run `work`; a disk that fails it is no mistake of the program."""
    try:
        work()
    except OSError as error:
        if error.errno not in DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise RunError(
            f"{where}{error.strerror}; what was saved before is intact: make room, or choose other folders (output_dir,"
            " data.cache_dir), and give the command again"
        ) from error


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)
