"""Files that rot, disks that fill, jobs that are ended: each is found and told, and nothing else comes of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from aimc.models import manifest
from aimc.models.manifest import MANIFEST, checksum, damage_of
from tests.conftest import REPOSITORY
from tests.train.conftest import english, same_weights, weights_of, write_text_folder
from train import cache, pipeline, tokens
from train.callbacks import Heartbeat
from train.errors import RESUME, RunError
from train.files import saving, settle, whole_folder, write_json
from train.record import record_of
from train.resume import last_intact
from train.schema import DataConfig, RunConfig
from train.shared import LostWorker
from train.trainer import HardwareAwareTrainer, Interrupted

Compose = Callable[..., RunConfig]


class Killed(BaseException):
    """Stands for a process that ends without warning."""


def run(config: RunConfig) -> str:
    said: list[str] = []
    pipeline.execute(config, lambda what: said.append(str(what)))
    return "\n".join(said)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Act when `step` steps are done."""
    original = HardwareAwareTrainer.training_step

    def training_step(self: HardwareAwareTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == step:
            action()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(HardwareAwareTrainer, "training_step", training_step)


def killed() -> None:
    raise Killed


def miscount(file: Path) -> None:
    """Of what is done, as one bit can."""
    text = file.read_text()
    assert '"documents": 3,' in text
    file.write_text(text.replace('"documents": 3,', '"documents": 2,'))


def flip(file: Path) -> None:
    """Change one bit in the middle, as a disk does."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


DAMAGES: dict[str, Callable[[Path], object]] = {"flipped": flip, "cut": cut, "gone": Path.unlink}
SAVED = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, compose: Compose) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(compose(folder, "stage.name=digital"))
    return folder / "digital"


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, compose: Compose) -> Path:
    """What a digital stage that was killed after its third step has left: points of steps 2 and 3."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 3, killed)
        with pytest.raises(Killed):
            run(compose(folder, "stage.name=digital", "trainer.digital.save_every=1"))
    return folder / ".work" / "digital"


@pytest.mark.parametrize("name", [*SAVED, MANIFEST])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_point_is_not_resumed_from(interrupted: Path, tmp_path: Path, name: str, damage: str) -> None:
    """All that a point holds is looked at before anything is loaded."""
    folder = Path(shutil.copytree(interrupted, tmp_path / "work"))
    assert last_intact(folder, pytest.fail) == folder / "checkpoint-3"
    DAMAGES[damage](folder / "checkpoint-3" / name)
    said: list[str] = []
    assert last_intact(folder, said.append) == folder / "checkpoint-2"
    if (name, damage) != (MANIFEST, "gone"):
        assert len(said) == 1 and f"{name} " in said[0] and "checkpoint-3 is damaged" in said[0]


def test_training_goes_on_from_the_last_good_point_to_the_same_weights(
    interrupted: Path, tmp_path: Path, compose: Compose, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Path(shutil.copytree(interrupted, tmp_path / ".work" / "digital"))
    (work / "checkpoint-3" / "optimizer.pt").unlink()
    steps: list[int] = []
    at_step(monkeypatch, 2, lambda: steps.append(2))
    said = run(compose(tmp_path, "stage.name=digital", "trainer.digital.save_every=1"))
    assert "checkpoint-3 is damaged (optimizer.pt is missing) and is not resumed from" in said
    assert steps == [2] or "had other settings" in said
    assert same_weights(weights_of(tmp_path / "digital"), weights_of(undisturbed))


@pytest.mark.slow
def test_a_damaged_settings_file_starts_the_stage_anew(
    interrupted: Path, tmp_path: Path, compose: Compose, undisturbed: Path
) -> None:
    work = Path(shutil.copytree(interrupted, tmp_path / ".work" / "digital"))
    cut(work / "settings.json")
    said = run(compose(tmp_path, "stage.name=digital", "trainer.digital.save_every=1"))
    assert "has settings that cannot be read; starting the stage anew" in said
    assert same_weights(weights_of(tmp_path / "digital"), weights_of(undisturbed))


@pytest.mark.parametrize("name", ["stage.json", "history.json", "model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("listed", [True, False])
def test_a_finished_stage_that_is_damaged_counts_as_unfinished(
    undisturbed: Path, tmp_path: Path, name: str, damage: str, listed: bool
) -> None:
    """Also in a folder of an older version, without checksums, as far as can be seen there."""
    folder = Path(shutil.copytree(undisturbed, tmp_path / "digital"))
    assert record_of(folder, pytest.fail) is not None
    DAMAGES[damage](folder / name)
    if not listed:
        (folder / MANIFEST).unlink()
        if (
            damage == "flipped"
            or name in ("config.json", "tokenizer.json")
            or (name, damage) == ("model.safetensors", "cut")
        ):
            return  # what nobody wrote down cannot be compared
    said: list[str] = []
    assert record_of(folder, said.append) is None
    assert len(said) == 1 and "counts as unfinished" in said[0]


def test_a_stage_with_a_damaged_record_is_run_again(undisturbed: Path, tmp_path: Path, compose: Compose) -> None:
    folder = Path(shutil.copytree(undisturbed, tmp_path / "digital"))
    cut(folder / "stage.json")
    said = run(compose(tmp_path, "stage.name=digital"))
    assert "skipped" not in said and "counts as unfinished" in said
    assert same_weights(weights_of(folder), weights_of(undisturbed)) and damage_of(folder) is None


@pytest.mark.slow
def test_restart_reads_no_record(undisturbed: Path, tmp_path: Path, compose: Compose) -> None:
    folder = Path(shutil.copytree(undisturbed, tmp_path / "digital"))
    cut(folder / "stage.json")
    assert "unfinished" not in run(compose(tmp_path, "stage.name=digital", "restart=true"))
    assert same_weights(weights_of(folder), weights_of(undisturbed))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_to_end_saves_and_says_resume_me(
    tmp_path: Path, compose: Compose, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(pipeline, "remove", lambda path: None)  # the heartbeat stays
    before = signal.signal(number, signal.default_int_handler)
    try:
        at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted, match=r"interrupted at step 2; saved in .*; the same command goes on") as stop:
            run(compose(tmp_path, "stage.name=digital"))
        assert stop.value.status == RESUME == 75
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    beat = json.loads((tmp_path / ".heartbeat.json").read_text())
    assert beat["stage"] == "digital" and (beat["step"], beat["steps"]) == (1, 4) and beat["pid"] == os.getpid()
    monkeypatch.undo()
    run(compose(tmp_path, "stage.name=digital"))
    assert same_weights(weights_of(tmp_path / "digital"), weights_of(undisturbed))
    assert not (tmp_path / ".heartbeat.json").exists()


def test_a_reader_that_dies_is_told_and_the_next_try_goes_on(
    tmp_path: Path, compose: Compose, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(tmp_path, "stage.name=digital", "trainer.workers=1", "trainer.digital.save_every=1")
    at_step(monkeypatch, 2, lambda: [os.kill(int(child.pid or 0), signal.SIGKILL) for child in active_children()])
    with pytest.raises(
        LostWorker, match=r"stage digital: a process that reads the text died .*trainer\.workers=0"
    ) as stop:
        run(config)
    assert stop.value.status == RESUME
    monkeypatch.undo()
    run(config)
    assert same_weights(weights_of(tmp_path / "digital"), weights_of(undisturbed))


@pytest.mark.slow
def test_a_signal_that_is_ignored_stays_ignored(
    tmp_path: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nohup` ignores SIGHUP, and means it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGHUP))
        run(compose(tmp_path, "stage.name=digital"))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "digital" / "stage.json").exists()


WAIT = """
import signal, sys, time
from train.command import run_command
def work():
    print("ready", flush=True)
    time.sleep(60)
run_command(work)
"""


@pytest.mark.slow
def test_a_signal_outside_of_training_says_resume_me_too() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert process.returncode == RESUME
    assert said == "stopped by SIGTERM outside of training; what is finished is kept, the same command goes on\n"


def test_a_heartbeat_stops_nothing_and_is_not_too_frequent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class State:
        is_world_process_zero, global_step, max_steps = True, 1, 9

    (tmp_path / "file").write_text("")
    nowhere: TrainerCallback = Heartbeat(tmp_path / "file" / "beat.json", "linear")
    nowhere.on_step_end(None, State(), None)  # type: ignore[arg-type]  # cannot be written
    beating = Heartbeat(tmp_path / "beat.json", "linear")
    monkeypatch.setattr(time, "time", lambda: -1e9)  # a clock that was set back
    for step in range(1, 5):
        State.global_step = step
        beating.on_step_end(None, State(), None)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "beat.json").read_text())["step"] == 1


def settings(path: Path, place: Path) -> DataConfig:
    return DataConfig(kind="text", path=str(path), vocab_size=300, cache_dir=str(place))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_folder(tmp_path_factory.mktemp("text"))


CACHED = ("train.bin", "valid.bin", "test.bin", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", MANIFEST)


@pytest.mark.parametrize(("name", "damage"), [(name, list(DAMAGES)[i % 3]) for i, name in enumerate(CACHED)])
def test_damaged_tokens_are_made_again_and_that_is_said(text: Path, tmp_path: Path, name: str, damage: str) -> None:
    first = tokens.prepare(settings(text, tmp_path), None, 32, pytest.fail)
    wanted = first.tensor("train")
    file = tmp_path / first.fingerprint / name
    assert file.exists()
    DAMAGES[damage](file)
    said: list[str] = []
    second = tokens.prepare(settings(text, tmp_path), None, 32, said.append)
    assert len(said) == 1 and said[0].endswith("; it is made again")
    assert name == MANIFEST or name in said[0]
    assert second.tensor("train").equal(wanted)


def test_large_tokens_are_opened_without_being_read(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LARGE", 1000)
    config = settings(text, tmp_path)
    first = tokens.prepare(config, None, 32)
    wanted, read = first.tensor("train"), []
    monkeypatch.setattr(manifest, "checksum", lambda path: (read.append(path.name), checksum(path))[1])
    tokens.prepare(config, None, 32)
    assert "train.bin" not in read and read
    flip(tmp_path / first.fingerprint / "train.bin")
    said: list[str] = []
    assert tokens.prepare(config, None, 32, said.append).tensor("train").equal(wanted)
    assert "train.bin is not what was saved" in said[0]


@pytest.mark.parametrize(
    ("name", "damage"), [("train.bin", "flipped"), (cache.PROGRESS, "cut"), ("tokenizer/tokenizer.json", "gone")]
)
def test_a_damaged_half_of_a_tokenisation_is_begun_anew(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str
) -> None:
    wanted = tokens.prepare(settings(text, tmp_path / "whole"), None, 32).tensor("train")
    monkeypatch.setattr(cache, "finish", lambda folder: killed())
    with pytest.raises(Killed):
        tokens.prepare(settings(text, tmp_path / "cut"), None, 32)
    monkeypatch.undo()
    (half,) = (tmp_path / "cut").glob(".*.partial")
    (DAMAGES | {"miscounted": miscount})[damage](half / name)
    again = tokens.prepare(settings(text, tmp_path / "cut"), None, 32)
    assert again.tensor("train").equal(wanted)
    assert not list((tmp_path / "cut").glob(".*.partial"))


def test_a_cache_that_cannot_be_written_is_named(text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"data\.cache_dir=.*file: cannot be written .*choose another with data"):
        tokens.prepare(settings(text, tmp_path / "file"), None, 32)


def full(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_while_tokenising_is_one_line_and_the_next_try_goes_on(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache.Growing, "write", full)
    with pytest.raises(
        RunError, match=r"data\.cache_dir=.*: cannot be written \(No space left on device\); .*; make room, or choose"
    ):
        tokens.prepare(settings(text, tmp_path), None, 32)
    monkeypatch.undo()
    assert len(tokens.prepare(settings(text, tmp_path), None, 32).splits["train"]) > 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("file write failed"),
    ],
)
def test_a_full_disk_while_saving_leaves_the_last_point(
    tmp_path: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """torch tells of it by another exception than the system."""
    original = HardwareAwareTrainer._save_rng_state

    def fail(self: HardwareAwareTrainer, output_dir: str) -> None:
        if self.state.global_step == 3:
            raise error
        original(self, output_dir)

    monkeypatch.setattr(HardwareAwareTrainer, "_save_rng_state", fail)
    with pytest.raises(RunError, match=r"output_dir=.*: cannot be written .*the last point to resume from is intact"):
        run(compose(tmp_path, "stage.name=digital", "trainer.digital.save_every=1"))
    work = tmp_path / ".work" / "digital"
    assert last_intact(work, pytest.fail) == work / "checkpoint-2" and not (work / ".partial").exists()


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "folder"
    for text in ("old", "new"):
        with whole_folder(place) as partial:
            (partial / "file").write_text(text)
    assert (place / "file").read_text() == "new" and damage_of(place) is None
    with pytest.raises(RunError, match="No space left"), whole_folder(place) as partial:
        (partial / "file").write_text("newer")
        full()
    assert (place / "file").read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["folder"]
    place.rename(tmp_path / ".folder.partial")  # killed between the two renames
    settle(place)
    assert (place / "file").read_text() == "new"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "other disk").mkdir()
    link = tmp_path / "folder"
    link.symlink_to(tmp_path / "other disk" / "models")  # leads to nothing yet
    for text in ("old", "new"):
        with whole_folder(link) as partial:
            (partial / "file").write_text(text)
    assert link.is_symlink() and (tmp_path / "other disk" / "models" / "file").read_text() == "new"
    assert {p.name for p in tmp_path.iterdir()} == {"folder", "other disk"}
    assert [p.name for p in (tmp_path / "other disk").iterdir()] == ["models"]


def test_everything_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a loss of power leaves a name for nothing: files first, then their folder, the rename, the folder above."""
    events: list[str] = []
    original = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), original(fd)))
    write_json(tmp_path / "a.json", {})
    assert events == [str(tmp_path / ".a.json.partial"), str(tmp_path)]
    events.clear()
    with whole_folder(tmp_path / "folder") as partial:
        (partial / "file").write_text("x")
    partial_name = str(tmp_path / ".folder.partial")
    assert set(events[:-2]) == {f"{partial_name}/file", f"{partial_name}/{MANIFEST}"}
    assert events[-2:] == [partial_name, str(tmp_path)]


def test_a_full_disk_is_known_by_whatever_library_met_it(tmp_path: Path) -> None:
    """tokenizers and safetensors are written in Rust, and raise kinds of their own."""
    with pytest.raises(RunError, match=r"No space left on device"), saving(tmp_path, "output_dir"):
        raise Exception("No space left on device (os error 28)")


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a mistake"), saving(tmp_path, "output_dir"):
        raise ValueError("a mistake")


@pytest.mark.parametrize(
    "text", ["a" * 300_000, "\0" * 50_000, " " * 50_000, "ab1" * 30_000, "x" * 999, "", "\n" * 2001]
)
def test_words_without_end_are_cut_and_lose_nothing(text: str) -> None:
    from train.corpus import LONGEST_WORD, pieces

    for whole in (text, f"before {text} after, {english(500)}"):
        cut_up = pieces(whole)
        assert "".join(cut_up) == whole and len(cut_up) >= 1
        assert all(len(piece) <= LONGEST_WORD + 600 for piece in cut_up)
    assert pieces(english(20_000)) == [english(20_000)]


def test_a_word_without_end_is_tokenised_quickly(tmp_path: Path) -> None:
    folder = write_text_folder(tmp_path / "text")
    word = "".join(np.random.default_rng(0).choice(list("abcdefghij"), 200_000))
    (folder / "train.txt").write_text(english(20_000) + word)
    started = time.monotonic()
    data = tokens.prepare(settings(folder, tmp_path / "cache"), None, 32)
    assert time.monotonic() - started < 10
    assert data.tokenizer.decode(data.tensor("train")) == (folder / "train.txt").read_text() + tokens.END_OF_TEXT
