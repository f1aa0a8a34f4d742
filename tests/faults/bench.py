"""The bench: runs of the pipeline as children of one warm process, what they left, and whether it was right."""

from __future__ import annotations

import io
import os
import random
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file

from tests.train.conftest import TINY, same_weights, write_text_folder

N_AT_ONCE = 2


@dataclass(slots=True)
class Child:
    """A command that runs in a process of its own, forked from this one, which has imported everything."""

    pid: int
    log: Path
    started: float = field(default_factory=time.monotonic)
    status: int | None = None
    seconds: float = 0.0

    def done(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status, self.seconds = os.waitstatus_to_exitcode(status), time.monotonic() - self.started
        return self.status is not None

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit status; -9 where it took longer."""
        while not self.done():
            if time.monotonic() - self.started > seconds:
                os.kill(self.pid, 9)
            time.sleep(0.01)
        assert self.status is not None
        return self.status

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def ended_in_one_line(self) -> bool:
        """Whether it failed as it should: one line that begins with `error:` or `stopped`, and nothing of Python."""
        last = self.said.strip().splitlines()[-1:] or [""]
        return self.status in (1, 75) and "Traceback" not in self.said and last[0].startswith(("error: ", "stopped"))


@dataclass(slots=True)
class Outcome:
    """What came of the trials of one kind of fault."""

    n: int = 0
    held: int = 0
    failures: list[str] = field(default_factory=list)

    def note(self, good: bool, what: str) -> None:
        self.n += 1
        self.held += good
        if not good:
            self.failures.append(what)


class Bench:
    """A folder for the trials, with a text, and a run that nothing disturbed."""

    def __init__(self, root: Path, seed: int, deadline: float, scale: float) -> None:
        self.root, self.random, self.deadline, self.scale = root, random.Random(seed), deadline, scale
        self.text = write_text_folder(root / "text")
        self.cache = root / "cache"
        self.count = 0
        self.whole = root / "whole"
        child = self.run(self.pipeline(self.whole))
        if child.wait():
            raise SystemExit(f"the undisturbed run failed:\n{child.said}")
        self.seconds = child.seconds

    def some(self, n: int, at_most_s: float) -> Iterator[int]:
        """Up to so many trials, as long as there is time."""
        end = min(self.deadline, time.monotonic() + at_most_s)
        for i in range(max(2, round(n * self.scale))):
            if time.monotonic() > end:
                return
            yield i

    def folder(self, name: str = "trial") -> Path:
        self.count += 1
        return self.root / f"{name}-{self.count}"

    def settings(self, output: Path, *more: str, cache: Path | None = None, text: Path | None = None) -> list[str]:
        return [
            "experiment=smoke",
            *TINY,
            f"data.path='{text or self.text}'",
            f"data.cache_dir='{cache or self.cache}'",
            f"output_dir='{output}'",
            *more,
        ]

    def pipeline(self, output: Path, *more: str, **places: Path | None) -> list[str]:
        """Four stages, a point to resume from after every step."""
        every = [f"trainer.{recipe}.save_every=1" for recipe in ("digital", "linear", "finetune")]
        few = ["recipe=published", "stage.with_softmax=false", "stage.with_control=false"]
        return self.settings(output, *few, *every, *more, **places)

    def digital(self, output: Path, *more: str, **places: Path | None) -> list[str]:
        return self.settings(output, "stage=digital", "trainer.digital.save_every=1", *more, **places)

    def run(self, words: list[str], before: Callable[[], object] = lambda: None, encoding: str = "utf-8") -> Child:
        """`python -m train` with these words."""
        from train.__main__ import main

        self.count += 1
        return self.fork(lambda: main(), words, before, encoding)

    def fork(
        self,
        work: Callable[[], object],
        words: Iterable[str] = (),
        before: Callable[[], object] = lambda: None,
        encoding: str = "utf-8",
    ) -> Child:
        """Work in a child; it ends with the status of its SystemExit, or 99 and a traceback."""
        self.count += 1
        log = self.root / f"log-{self.count}"
        pid = os.fork()
        if pid:
            return Child(pid, log)
        status = 99
        try:
            file = log.open("wb", buffering=0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", buffering=0), encoding=encoding, write_through=True)
            sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", buffering=0), encoding=encoding, write_through=True)
            sys.argv = ["train", *words]
            before()
            work()
            status = 0
        except SystemExit as stop:
            if isinstance(stop.code, str):
                sys.stderr.write(f"{stop.code}\n")
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def all(self, trials: Iterable[Callable[[], Iterator[Child]]]) -> None:
        """Run trials, each of which yields the child that it waits for, a few at once."""
        running: list[tuple[Iterator[Child], Child]] = []
        waiting = iter(trials)
        while True:
            while len(running) < N_AT_ONCE and (trial := next(waiting, None)) is not None:
                steps = trial()
                if (child := next(steps, None)) is not None:
                    running.append((steps, child))
            if not running:
                return
            for entry in list(running):
                steps, child = entry
                if child.done() or time.monotonic() - child.started > 120:
                    child.wait()
                    running.remove(entry)
                    if (following := next(steps, None)) is not None:
                        running.append((steps, following))
            time.sleep(0.005)

    def same(self, output: Path, stages: Iterable[str] = ("digital", "linear", "adapted", "finetuned")) -> bool:
        """Whether stages have the weights of the undisturbed run."""
        return all(
            (output / stage / "model.safetensors").exists()
            and same_weights(
                load_file(output / stage / "model.safetensors"), load_file(self.whole / stage / "model.safetensors")
            )
            for stage in stages
        )

    def drop(self, *folders: Path) -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
