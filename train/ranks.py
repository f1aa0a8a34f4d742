"""Several processes that train as one, started by `torchrun` or a scheduler: how they meet, wait for each other, and
what is said where one of them dies."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from torch import distributed

from aimc.models.ranks import ALONE, Ranks

from .errors import RESUME, RunError

if TYPE_CHECKING:
    from .trainer_schema import TrainerConfig

PATIENCE = timedelta(days=7)
"""How long all wait while one prepares the text; a process that dies meanwhile is noticed at once."""
_SIGNS = ("connection closed by peer", "connection reset", "broken pipe", "timed out", "timeout", "remote peer")
"""Words, in lower case, of the errors of gloo and NCCL where another process does not answer."""


class LostRank(RunError):
    """Another process of the run does not answer."""

    status = RESUME


def join(trainer: TrainerConfig) -> PartialState:
    """This process among those of the run; the only one where no launcher started several.

    Raises:
        RunError: sharded training by one process, or processes of SLURM that cannot find each other.
    """
    _from_slurm()
    on_cpu = trainer.device == "cpu" or not torch.cuda.is_available()
    timeout = timedelta(seconds=trainer.timeout_s)
    _meet_again("gloo" if on_cpu else "nccl", timeout)
    state = PartialState(cpu=on_cpu, timeout=timeout)
    if trainer.sharding != "none" and state.num_processes == 1:
        raise RunError(
            f"trainer.sharding={trainer.sharding}: this is one process, and there is nobody to share the model with;"
            " start several with torchrun --nproc-per-node=N -m train …, or set trainer.sharding=none"
        )
    return state


def _meet_again(backend: str, timeout: timedelta) -> None:
    """After `torchrun --max-restarts` started all processes anew: where the dead ones met lie their addresses still, on
    which the new ones would wait, so they meet in another place of the same store (torch 2.13)."""
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if attempt == 0 or distributed.is_initialized():
        return
    n = int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.PrefixStore(f"attempt_{attempt}", distributed.TCPStore(host, port, n, False, timeout))
    rank = int(os.environ["RANK"])
    distributed.init_process_group(backend, store=store, rank=rank, world_size=n, timeout=timeout)


def _from_slurm() -> None:
    """Where `srun`, and not `torchrun`, started several processes: what `torchrun` would have told each of them."""
    n = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if n == "1" or "RANK" in os.environ:
        return
    nodes = os.environ.get("SLURM_STEP_NODELIST", "")
    try:
        found = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True, timeout=30
        )
        first = found.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise RunError(
            f"SLURM started {n} processes on {nodes}, and scontrol does not say which node is the first ({error}), so"
            " they cannot meet; start them with torchrun, or as one process (srun --ntasks=1)"
        ) from error
    job = int(os.environ["SLURM_JOB_ID"])
    os.environ |= {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": n,
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": os.environ["SLURM_STEP_TASKS_PER_NODE"].partition("(")[0].partition(",")[0],
        "MASTER_ADDR": first,
        "MASTER_PORT": os.environ.get("MASTER_PORT", str(20000 + job % 20000)),
    }


def everyone() -> Ranks:
    """All processes of the run, for what they share between its trainings, however long one has to wait."""
    state = PartialState()
    if not state.use_distributed:
        return ALONE
    return Ranks(state.process_index, state.num_processes, _patient_group())


@cache
def _patient_group() -> Any:
    return distributed.new_group(timeout=PATIENCE, backend="gloo")


@contextmanager
def first_alone(state: PartialState) -> Iterator[None]:
    """The block on the first process, however long it takes, then on the others, which find its work done."""
    group = distributed.new_group(timeout=PATIENCE, backend="gloo") if state.use_distributed else None
    try:
        if group is not None and not state.is_main_process:
            distributed.barrier(group)
        yield
        if group is not None and state.is_main_process:
            distributed.barrier(group)
    finally:
        if group is not None:
            distributed.destroy_process_group(group)


@contextmanager
def together() -> Iterator[None]:
    """Around all that the processes of a run do: one that is left behind by another says so, and all part in the end.

    Raises:
        LostRank: another process died, or does not answer.
    """
    with noticing():
        yield
    PartialState().destroy_process_group()


@contextmanager
def noticing() -> Iterator[None]:
    """Around work that processes share: says where another one is gone.

    Raises:
        LostRank: another process died, or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        state = PartialState()
        told = str(error).partition("\n")[0]
        if not state.use_distributed or not any(sign in str(error).lower() for sign in _SIGNS):
            raise
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, which comes a moment later
        raise LostRank(
            f"process {state.process_index} of {state.num_processes}: another process of this run ended or does not"
            f" answer ({told.strip()}); what it said is above or in the log of its node; the last point to resume from"
            " is intact, and the same command goes on from there"
        ) from error
