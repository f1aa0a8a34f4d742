"""Runs that are killed, paired, short of disk, or given an odd place or text."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.faults.bench import Bench, Child, Outcome
from train import resume
from train.files import finish

STAGES = ("digital", "linear", "adapted", "finetuned")


def kills(bench: Bench) -> Outcome:
    """At random moments, then given again."""
    outcome = Outcome()

    def trial(number: int, moment: float) -> Iterator[Child]:
        out = bench.folder("kill")
        child = bench.run(bench.pipeline(out))
        while time.monotonic() - child.started < moment and not child.done():
            time.sleep(0.002)
        if not child.done():
            os.kill(child.pid, number)
        yield child
        finished = {s: (out / s / "stage.json").stat().st_ino for s in STAGES if (out / s / "stage.json").exists()}
        ended = child.status in (-9, 0) if number == signal.SIGKILL else child.status in (0, 75)
        ended |= child.status == -number and not out.exists()  # while Python started: nothing had begun
        again = bench.run(bench.pipeline(out))
        yield again
        kept = all((out / s / "stage.json").stat().st_ino == inode for s, inode in finished.items())
        what = f"signal {number} after {moment:.2f} s: {child.status}, then {again.status}: {again.said[-300:]}"
        outcome.note(ended and again.status == 0 and kept and bench.same(out), what)
        bench.drop(out)

    def trials() -> Iterator[Callable[[], Iterator[Child]]]:
        for i in bench.some(30, 150):
            number = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP)[i % 4]
            yield lambda number=number: trial(number, bench.random.uniform(0, bench.seconds))

    bench.all(trials())
    return outcome


def kills_in_writes(bench: Bench) -> Outcome:
    """SIGKILL inside the write of a point to resume from, and of a stage's folder: before, amid and after its end."""
    outcome = Outcome()

    def dying(module: object, name: str, countdown: int, after: bool) -> Callable[[], None]:
        original = getattr(module, name)

        def replaced(*args: object) -> object:
            nonlocal countdown
            countdown -= 1
            result = original(*args) if after or countdown else None
            if not countdown:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return lambda: setattr(module, name, replaced)

    def trial(before: Callable[[], None], name: str) -> Iterator[Child]:
        out = bench.folder("write")
        child = bench.run(bench.digital(out), before)
        yield child
        again = bench.run(bench.digital(out))
        yield again
        outcome.note(
            child.status == -9 and again.status == 0 and bench.same(out, ("digital",)),
            f"{name}: {child.status}, then {again.status}: {again.said[-300:]}",
        )
        bench.drop(out)

    from train import files

    places = [
        (dying(module, name, count, after), f"{name} {count} {after}")
        for module, name, count in (
            (resume, "finish", 1),
            (resume, "finish", 3),
            (resume, "put_in_place", 2),
            (files, "finish", 1),
            (files, "put_in_place", 1),
            (files, "write_manifest", 2),
        )
        for after in (False, True)
    ]
    bench.all([lambda b=b, n=n: trial(b, n) for (b, n), _ in zip(places, bench.some(len(places), 40), strict=False)])
    return outcome


def pairs(bench: Bench) -> Outcome:
    """Two runs on one cache, or on one output folder, started 0 to 2 s apart."""
    outcome = Outcome()
    (tokens,) = bench.cache.glob("text-*")
    for i in bench.some(10, 60):
        apart = bench.random.uniform(0, 2) if i % 3 else 0.0
        cache, outs = bench.folder("shared"), [bench.folder("pair") for _ in range(2)]
        shared_output = i % 2 == 1
        places = [outs[0]] * 2 if shared_output else outs
        first = bench.run(bench.digital(places[0], cache=cache))
        time.sleep(apart)
        second = bench.run(bench.digital(places[1], cache=cache))
        first.wait()
        second.wait()
        same = all(
            (cache / tokens.name / f"{split}.bin").read_bytes() == (tokens / f"{split}.bin").read_bytes()
            for split in ("train", "valid", "test")
        )
        ended = [child.status == 0 or (shared_output and child.ended_in_one_line()) for child in (first, second)]
        good = same and all(ended) and 0 in (first.status, second.status)
        good &= all(bench.same(place, ("digital",)) for place in set(places))
        outcome.note(
            good, f"{apart:.1f} s apart: {first.status}, {second.status}: {first.said[-200:]}{second.said[-200:]}"
        )
        bench.drop(cache, *outs)
    return outcome


def full_disks(bench: Bench) -> Outcome:
    """A disk too small for what is saved, or for the tokens; then the same command with room."""
    outcome = Outcome()
    can_mount = _mounted(bench.root / "probe", 1)
    if can_mount:
        _unmount(bench.root / "probe")
    for i in bench.some(8, 45):
        place = bench.folder("disk")
        size = bench.random.randint(60, 600) if i % 2 == 0 else bench.random.randint(8, 60)
        limits = (0, 0) if can_mount else (1000 * size, resource.RLIM_INFINITY)
        if can_mount:
            _mounted(place, size)
        else:
            place.mkdir()
        out, cache = (place / "out", bench.cache) if i % 2 == 0 else (bench.folder("out"), place / "cache")
        child = bench.run(bench.digital(out, cache=cache), lambda limits=limits: _limited(limits))
        child.wait()
        good = child.status == 0 or child.ended_in_one_line()
        if can_mount:
            subprocess.run(["mount", "-o", "remount,size=200m", str(place)], check=True, capture_output=True)
        again = bench.run(bench.digital(out, cache=cache))
        good &= again.wait() == 0 and bench.same(out, ("digital",))
        outcome.note(good, f"{child.status}: {child.said[-400:]} then {again.status}: {again.said[-300:]}")
        if can_mount:
            _unmount(place)
        bench.drop(place, out)
    return outcome


def _limited(limits: tuple[int, int]) -> None:
    """No file longer than that, where no small disk can be had."""
    if limits[0]:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _mounted(place: Path, kilobytes: int) -> bool:
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)], capture_output=True, check=False
    )
    return done.returncode == 0


def _unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


def odd_places(bench: Bench) -> Outcome:
    """Files in place of folders, links, names of every kind, a terminal of ASCII alone, a clock that jumps."""
    outcome = Outcome()
    file = bench.folder("file")
    file.write_text("a file")
    for words, right in (
        (bench.digital(file), False),
        (bench.digital(bench.folder(), cache=file), False),
        (bench.digital(Path("/proc/nowhere")), False),
        (bench.digital(bench.folder("with space, ünïcode, 文")), True),
        (bench.digital(bench.folder("[/]mark[bold]up")), True),
    ):
        child = bench.run(words)
        child.wait()
        outcome.note(child.status == 0 if right else child.ended_in_one_line(), f"{words[-3:]}: {child.said[-300:]}")
    out = bench.folder("links")
    (out / "elsewhere").mkdir(parents=True)
    (out / "digital").symlink_to(out / "elsewhere" / "digital")
    for more in ((), ("restart=true",)):
        child = bench.run(bench.digital(out, *more))
        good = child.wait() == 0 and (out / "digital").is_symlink() and bench.same(out, ("digital",))
        outcome.note(good, f"a link {more}: {child.said[-300:]}")
    child = bench.run(bench.digital(bench.folder("ascii")), encoding="ascii")
    outcome.note(child.wait() == 0, f"ASCII: {child.said[-300:]}")
    out = bench.folder("clock")
    child = bench.run(bench.digital(out), lambda: setattr(time, "time", lambda: 1e6 * (bench.random.random() - 0.5)))
    outcome.note(child.wait() == 0 and bench.same(out, ("digital",)), f"a clock that jumps: {child.said[-300:]}")
    place, cache = bench.folder("read-only"), bench.folder("cache")
    if _mounted(place, 1000):
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True, capture_output=True)
        child = bench.run(bench.digital(place / "out", cache=cache))
        child.wait()
        outcome.note(child.ended_in_one_line(), f"read-only output: {child.said[-300:]}")
        _unmount(place)
    return outcome


def crashes(bench: Bench) -> Outcome:
    """A process that reads the text, or one of two that train, dies; then the same command, by one process."""
    from tests.train.processes import free_port
    from train.tokens import Blocks
    from train.trainer import HardwareAwareTrainer

    outcome = Outcome()
    for _ in bench.some(3, 20):
        out = bench.folder("reader")
        point = out / ".work" / "digital" / "checkpoint-1"
        child = bench.run(bench.digital(out, "trainer.workers=2"), lambda point=point: _reader_dies(Blocks, point))
        child.wait()
        again = bench.run(bench.digital(out))
        good = child.status in (0, 75) and (child.status == 0 or child.ended_in_one_line()) and again.wait() == 0
        outcome.note(good and bench.same(out, ("digital",)), f"a reader: {child.status}: {child.said[-600:]}")
    for _ in bench.some(3, 40):
        out, port = bench.folder("rank"), free_port()
        ranks = [
            bench.run(
                bench.digital(out, "trainer.digital.batch_size=1"),
                lambda rank=rank, port=port: _as_rank(rank, port, HardwareAwareTrainer),
            )
            for rank in range(2)
        ]
        codes = [rank.wait() for rank in ranks]
        again = bench.run(bench.digital(out))
        good = codes == [75, -signal.SIGKILL] and ranks[0].ended_in_one_line() and again.wait() == 0
        outcome.note(good and "other settings" not in again.said, f"a rank: {codes}: {ranks[0].said[-300:]}")
    return outcome


def _reader_dies(blocks: Any, point: Path) -> None:
    """Where a process reads for another, once there is something to resume from."""
    original = blocks.__getitem__

    def read(self: object, index: int) -> object:
        if torch.utils.data.get_worker_info() is not None and point.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, index)

    blocks.__getitem__ = read


def _as_rank(rank: int, port: int, trainer: Any) -> None:
    """One of two processes, as torchrun starts them; the second dies at its third step."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()} | {"MASTER_ADDR": "127.0.0.1"})
    original = trainer.training_step

    def training_step(self: Any, *args: object, **kwargs: object) -> object:
        if rank == 1 and self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    trainer.training_step = training_step


def texts(bench: Bench) -> Outcome:
    """Texts that are none, or one word."""
    outcome = Outcome()
    prose = (bench.text / "train.txt").read_text()
    for name, content, right in (
        ("empty", b"", False),
        ("binary", bytes(range(256)) * 100, False),
        ("not UTF-8", "naïve".encode("latin-1") * 5000, False),
        ("200 KB of NULs", prose.encode() + b"\0" * 200_000, True),
        ("50 MB of one letter on one line", b"a" * 50_000_000, True),
        ("2 MB of random letters", bytes(bench.random.choices(b"abcdefghijklmnop", k=2_000_000)), True),
    ):
        text = Path(shutil.copytree(bench.text, bench.folder("text")))
        (text / "train.txt").write_bytes(content)
        child = bench.run(bench.digital(bench.folder(), text=text, cache=bench.folder("cache")))
        child.wait(90)
        good = child.status == 0 if right else child.ended_in_one_line()
        outcome.note(
            good and child.seconds < 60, f"{name}: {child.status} in {child.seconds:.0f} s: {child.said[-300:]}"
        )
        bench.drop(text)
    return outcome


def no_network(bench: Bench) -> Outcome:
    """Names on a hub that does not answer: one line in under 10 s; a logger's server that does not: the run goes on."""
    from huggingface_hub import constants

    outcome = Outcome()

    def unreachable() -> None:
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            del os.environ[name]
        constants.ENDPOINT = "https://hub.invalid"

    hub = ["data.kind=hub", "data.dataset=someone/text"]
    model = bench.settings(bench.folder(), "stage=digital", "model.source=someone/model")
    for words in (
        [word for word in bench.digital(bench.folder()) if not word.startswith("data.path")] + hub,
        [word for word in model if not word.startswith("model.n_")],
    ):
        child = bench.run(words, unreachable)
        child.wait()
        outcome.note(child.ended_in_one_line() and child.seconds < 10, f"{child.seconds:.0f} s: {child.said[-400:]}")
    out = bench.folder("wandb")
    key = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "https://wandb.invalid", "WANDB_SILENT": "true"}
    child = bench.run(bench.digital(out, "logger=wandb"), lambda: (unreachable(), os.environ.update(key)))
    good = child.wait(60) == 0 and bench.same(out, ("digital",))
    outcome.note(good and child.seconds < 40, f"W&B: {child.status} in {child.seconds:.0f} s: {child.said[-400:]}")
    return outcome


__all__ = ["crashes", "finish", "full_disks", "kills", "kills_in_writes", "no_network", "odd_places", "pairs", "texts"]
