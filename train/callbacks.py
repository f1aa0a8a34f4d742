"""What happens around the training loop: progress, interruption, and marks on finished checkpoints."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import WandbCallback
from transformers.trainer_callback import ProgressCallback

from aimc.models.hub import server_answers

from .files import read_object, write_json

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What asks a job to end: Ctrl-C; a scheduler or container that takes its machine away; a terminal that closes."""
BEAT_S = 5.0
"""Seconds between two beats, at least."""


class Progress(ProgressCallback):
    """One bar a stage that carries the last loss and validation perplexity, instead of a line of numbers every few
    steps."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage
        self.shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(f"  {self.stage}")

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """No second bar: measurements are short."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        names = {"loss": "loss", "eval_perplexity": "validation perplexity", "tokens_per_s": "tokens/s"}
        self.shown |= {names[key]: f"{value:.4g}" for key, value in (logs or {}).items() if key in names}
        if self.training_bar is not None:
            self.training_bar.set_postfix(self.shown)


class Heartbeat(TrainerCallback):
    """Says in a file, every few seconds, how far training is: whoever watches a job looks at its age."""

    def __init__(self, file: Path, stage: str) -> None:
        self.file, self.stage = file, stage
        self.last: float | None = None
        self.numbers: dict[str, float] = {}

    def on_log(self, *args: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        known = ("loss", "eval_loss", "learning_rate", "tokens_per_s")
        self.numbers |= {name: value for name, value in (logs or {}).items() if name in known}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.monotonic()  # a clock that nobody sets back
        if not state.is_world_process_zero or (self.last is not None and now - self.last < BEAT_S):
            return
        self.last = now
        place = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "host": socket.gethostname(), "pid": os.getpid()}
        steps = {"stage": self.stage, "step": state.global_step, "steps": state.max_steps}
        with suppress(OSError):  # watching must not end what is watched
            write_json(self.file, place | steps | self.numbers, durable=False)


class SaveAsAsked(TrainerCallback):
    """Where training goes on, points are saved as often as the settings say now; the parent would take that from the
    point that it goes on from."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.save_steps = int(args.save_steps)


class SaveBest(TrainerCallback):
    """Asks for a point to resume from where validation has never been as good.

    Args:
        losses: gives those of validation by step, the newest last.
    """

    def __init__(self, losses: Callable[[], dict[int, float]]) -> None:
        self.losses = losses

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        losses = self.losses()
        if losses and losses.get(state.global_step) == min(losses.values()):
            control.should_save = True


class StopOnSignal(TrainerCallback):
    """The first signal that asks the job to end (:data:`STOPPING`) ends the step, saves and stops; a second one is what
    it was before. A context manager around the training."""

    def __init__(self) -> None:
        self.asked = False
        """Whether this process got a signal; it may come at any time, so nobody else sets it."""
        self.caught = False
        """Whether all processes stop, as they have agreed behind a step."""

    def __enter__(self) -> None:
        before = {number: signal.getsignal(number) for number in STOPPING}
        # What is ignored stays so: `nohup` ignores SIGHUP.
        self._before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
        for number in self._before:
            signal.signal(number, self._handle)

    def __exit__(self, *exc: object) -> None:
        for number, old in self._before.items():
            signal.signal(number, old)

    def _handle(self, signum: int, frame: object) -> None:
        self.asked = True
        self.__exit__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.caught = self.asked
        if args.world_size > 1:  # all processes must stop at the same step, or the others wait for this one for ever
            self.caught = bool(reduce(torch.tensor(int(self.asked), device=args.device), "sum").item())
        if self.caught:
            control.should_save = True
            control.should_training_stop = True


class WandbLog(WandbCallback):
    """Weights & Biases as transformers feeds it: one run a stage, in `<folder>/wandb`, offline unless logged in.

    A logger must not cost a training run: whatever fails in it is told once, and the run goes on without it.

    Args:
        project: name there.
        folder: that gets the folder `wandb`.
        id_file: that keeps the run's id: training that is given again goes on in the same run, online and, once it is
            sent (`wandb sync --append`), offline. It goes with the points to resume from.
    """

    def __init__(self, project: str, folder: Path, id_file: Path) -> None:
        super().__init__()
        self.project, self.folder, self.id_file = project, folder, id_file
        self.failed = False

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any, **kwargs: Any) -> None:
        def start() -> None:
            if state.is_world_process_zero:
                if self._wandb.run is not None:
                    self._wandb.finish()
                mode: Any = os.environ.get("WANDB_MODE") or wandb_mode()
                known = (read_object(self.id_file) or {}).get("id")
                self._wandb.init(
                    project=self.project,
                    dir=str(self.folder),
                    name=args.run_name,
                    mode=mode,
                    id=known if isinstance(known, str) and known.isalnum() else uuid.uuid4().hex[:8],
                    resume=None if mode == "offline" else "allow",  # there, nobody knows what is on the server
                )
                assert self._wandb.run is not None
                write_json(self.id_file, {"id": self._wandb.run.id})
            super(WandbLog, self).setup(args, state, model, **kwargs)

        self._try(start)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        self._try(lambda: super(WandbLog, self).on_log(*args, **kwargs))

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self._try(lambda: super(WandbLog, self).on_save(*args, **kwargs))

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        def end() -> None:
            super(WandbLog, self).on_train_end(*args, **kwargs)
            if self._wandb.run is not None:
                self._wandb.finish()

        self._try(end)

    def _try(self, work: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            work()
        except Exception as error:
            logging.getLogger(__name__).warning(
                "logger=wandb: %s: %s; the run goes on without it, its curves are in history.json",
                type(error).__name__,
                error,
            )
            self.failed = True


def wandb_mode() -> str:
    """`online` where there is a key and a server that answers; its client would try for minutes to reach another.
    What is logged `offline` is sent later by `wandb sync`."""
    if not logged_in_to_wandb():
        return "offline"
    if server_answers(_wandb_server()):
        return "online"
    logging.getLogger(__name__).warning(
        "logger=wandb: %s does not answer; logging offline, send it later with wandb sync", _wandb_server()
    )
    return "offline"


def _wandb_server() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def logged_in_to_wandb() -> bool:
    """Whether `wandb login` left a key for the server in use; asks neither the network nor the user."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(_wandb_server()).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False
