"""Several processes of one run, as `torchrun` starts them, out of a server that has imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

PRELOADED = ["tests.train.processes", "train.pipeline", "train.stages", "train.trainer", "aimc.ops.eager"]


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run_together(
    overrides: list[str], logs: Path, n: int = 2, timeout_s: float = 120.0, before: Callable[[int], None] | None = None
) -> list[int | None]:
    """Exit status of each process of a run; what they said is in `logs`, a file each, by number.

    Args:
        overrides: of the command.
        logs: folder.
        n: processes.
        timeout_s: after which they are killed.
        before: called first in each process, with its number.
    """
    logs.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port = free_port()
    workers = [
        context.Process(target=_work, args=(rank, n, port, overrides, logs / f"{rank}.txt", before))
        for rank in range(n)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout_s)
        if worker.is_alive():
            worker.kill()
    return [worker.exitcode for worker in workers]


def _work(rank: int, n: int, port: int, overrides: list[str], log: Path, before: Callable[[int], None] | None) -> None:
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in environment.items()} | {"MASTER_ADDR": "127.0.0.1"}
    sys.stdout = sys.stderr = log.open("w", encoding="utf-8", buffering=1)
    sys.argv = ["train", *overrides]

    import torch

    from train.__main__ import main

    torch.set_num_threads(1)
    if before is not None:
        before(rank)
    main()
