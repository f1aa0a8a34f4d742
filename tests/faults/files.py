"""Files that are changed on the disk, of every kind that a run reads; and files from a stranger."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from aimc.models.manifest import MANIFEST
from tests.faults.bench import Bench, Child, Outcome


def corrupt(file: Path, draw: random.Random) -> str:
    """Change a file somehow; returns how."""
    data = bytearray(file.read_bytes())
    how = draw.choice(["bit", "block", "cut", "longer", "empty", "gone", "text"])
    at = draw.randrange(len(data)) if data else 0
    if how == "bit" and data:
        data[at] ^= 1 << draw.randrange(8)
    elif how == "block":
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    elif how == "cut":
        del data[at:]
    elif how == "longer":
        data += bytes(draw.choices(range(256), k=draw.randrange(1, 5000)))
    elif how == "empty":
        data.clear()
    elif how == "text":
        data[:] = draw.choice([b"[]", b"null", b"{}", b"3", b"\xff\xfe", b"not a file"])
    file.unlink()
    if how != "gone":
        file.write_bytes(data)
    return f"{file.name}: {how} at {at}"


def _several(bench: Bench, n: int, seconds: float, trial: Callable[[random.Random], Iterator[Child]]) -> None:
    bench.all(lambda seed=seed: trial(random.Random(seed)) for seed in bench.some(n, seconds))


def finished_stages(bench: Bench) -> Outcome:
    """A file of a finished stage, then the stage that starts from it and the stage itself."""
    outcome = Outcome()

    def trial(draw: random.Random) -> Iterator[Child]:
        out = Path(shutil.copytree(bench.whole, bench.folder("stage")))
        stage = draw.choice(["digital", "linear"])
        files = sorted(path for path in (out / stage).iterdir() if path.is_file() and path.name != "README.md")
        what = corrupt(draw.choice(files), draw)
        child = bench.run(bench.pipeline(out))
        yield child
        outcome.note(
            child.status == 0 and bench.same(out) or child.ended_in_one_line(), f"{stage}/{what}: {child.said[-400:]}"
        )
        bench.drop(out)

    _several(bench, 50, 80, trial)
    return outcome


def resume_points(bench: Bench) -> Outcome:
    """A file of what an interrupted run left, then the same command: the same weights."""
    outcome = Outcome()
    left = bench.folder("left")

    def dies() -> None:
        import os

        from train import record

        record.save = lambda *args: os._exit(9)  # every step done, nothing in place
        from train import pipeline

        pipeline.save = record.save

    bench.run(bench.digital(left), dies).wait()

    def trial(draw: random.Random) -> Iterator[Child]:
        out = Path(shutil.copytree(left, bench.folder("point")))
        files = sorted(path for path in (out / ".work" / "digital").rglob("*") if path.is_file())
        what = [corrupt(file, draw) for file in draw.sample(files, draw.randint(1, 3))]
        child = bench.run(bench.digital(out))
        yield child
        outcome.note(child.status == 0 and bench.same(out, ("digital",)), f"{what}: {child.said[-400:]}")
        bench.drop(out)

    _several(bench, 50, 60, trial)
    return outcome


def tokens(bench: Bench) -> Outcome:
    """A file of the token cache, or of a tokenisation that was killed: the same weights."""
    outcome = Outcome()

    def trial(draw: random.Random) -> Iterator[Child]:
        cache, out = Path(shutil.copytree(bench.cache, bench.folder("cache"))), bench.folder("out")
        (whole,) = cache.glob("text-*")
        if draw.random() < 0.3:
            import re
            import socket

            host = re.sub(r"[^\w.-]", "_", socket.gethostname())
            (whole / MANIFEST).unlink()
            whole = whole.rename(cache / f".{whole.name}.{host}.partial")
        files = sorted(path for path in whole.rglob("*") if path.is_file())
        what = corrupt(draw.choice(files), draw)
        child = bench.run(bench.digital(out, cache=cache))
        yield child
        outcome.note(child.status == 0 and bench.same(out, ("digital",)), f"{what}: {child.said[-400:]}")
        bench.drop(cache, out)

    _several(bench, 50, 60, trial)
    return outcome


def checkpoints(bench: Bench) -> Outcome:
    """A file of a checkpoint, then loading it: an error that names it, or the same numbers."""
    from train.models import load_any
    from train.pretrained import vocabulary_of

    outcome = Outcome()
    ids = torch.arange(32).view(1, 32)

    def numbers(folder: Path) -> torch.Tensor:
        vocabulary_of(str(folder), "checkpoint")
        with torch.no_grad():
            return load_any(str(folder))(ids).logits

    wanted = bench.root / "wanted.pt"
    bench.fork(lambda: torch.save(numbers(bench.whole / "finetuned"), wanted)).wait()

    def load(folder: Path) -> None:
        from train.command import run_command

        def compare() -> None:
            if not numbers(folder).equal(torch.load(wanted)):
                raise AssertionError("other numbers without a word")

        run_command(compare)

    def trial(draw: random.Random) -> Iterator[Child]:
        folder = Path(shutil.copytree(bench.whole / "finetuned", bench.folder("model")))
        what = corrupt(draw.choice(sorted(path for path in folder.iterdir() if path.is_file())), draw)
        child = bench.fork(lambda: load(folder))
        yield child
        outcome.note(child.status == 0 or child.ended_in_one_line(), f"{what}: {child.said[-400:]}")
        bench.drop(folder)

    _several(bench, 100, 40, trial)
    return outcome


class _Touch:
    """Pickled, a call that leaves a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.file,)


def strangers(bench: Bench) -> Outcome:
    """Pickles, code, paths and calls in checkpoints and configs: nothing of it runs, nothing outside is read."""
    from train.command import run_command
    from train.models import load_any

    outcome, ran = Outcome(), bench.root / "ran"
    source = bench.whole / "digital"

    def with_files(**files: bytes | None) -> Path:
        folder = Path(shutil.copytree(source, bench.folder("stranger"), ignore=shutil.ignore_patterns(MANIFEST)))
        for name, content in files.items():
            path = folder / name.replace("__", ".")
            path.unlink() if content is None else path.write_bytes(content)
        return folder

    evil = pickle.dumps({"a": _Touch(ran)})
    config = json.loads((source / "config.json").read_text())
    code = f"import pathlib; pathlib.Path({str(ran)!r}).touch()\nclass Evil: pass\n".encode()
    mapped = {**config, "auto_map": {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil"}}
    index = json.dumps(
        {"metadata": {}, "weight_map": {"transformer.wte.weight": str(source / "model.safetensors")}}
    ).encode()
    folders = [
        with_files(pytorch_model__bin=evil),
        with_files(pytorch_model__bin=evil, model__safetensors=None),
        with_files(model__safetensors=evil),
        with_files(config__json=json.dumps(mapped).encode(), evil__py=code),
        with_files(config__json=json.dumps({**mapped, "model_type": "evil"}).encode(), evil__py=code),
        with_files(**{"model__safetensors": None, "model.safetensors.index.json": index}),
        with_files(training_args__bin=evil, optimizer__pt=evil),
    ]
    for number, folder in enumerate(folders):
        child = bench.fork(lambda folder=folder: run_command(lambda: (load_any(str(folder)), None)[1]))
        child.wait()
        outcome.note(
            not ran.exists() and child.status in (0, 1) and "Traceback" not in child.said,
            f"{number}: {child.said[-400:]}",
        )
    call = f"{{_target_: os.mkdir, path: '{ran}'}}"
    for word in (
        f"+hydra.callbacks.x={call}",
        f"+hydra.launcher.x={call}",
        f"hydra.sweeper={call}",
        f"+model.x={call}",
        "hydra.launcher._target_=os.mkdir",
    ):
        child = bench.run(bench.digital(bench.folder(), word))
        child.wait()
        outcome.note(
            not ran.exists() and child.status == 1 and "Traceback" not in child.said, f"{word}: {child.said[-300:]}"
        )
    return outcome
