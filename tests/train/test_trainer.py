"""One training run: which parameters decay, what is logged, the logger that must not cost a run, and several
processes."""

from __future__ import annotations

import copy
import json
import logging
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb

import aimc
from tests.conftest import REPOSITORY
from tests.train.conftest import weights_of
from train import pipeline
from train.callbacks import logged_in_to_wandb
from train.errors import RunError
from train.models import digital_model
from train.pretrained import load_digital
from train.schema import RunConfig
from train.tokens import prepare
from train.trainer import HardwareAwareTrainer, Training, train

Compose = Callable[..., RunConfig]


def run(config: RunConfig) -> None:
    pipeline.execute(config, lambda what: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, compose: Compose) -> Path:
    """Digital and linear stages."""
    folder = tmp_path_factory.mktemp("base")
    for stage in ("digital", "linear"):
        run(compose(folder, f"stage.name={stage}"))
    return folder


@pytest.fixture
def trainer(tmp_path: Path, base: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch) -> HardwareAwareTrainer:
    """The trainer of a linear stage with settings that are all different, ready to start."""
    caught: list[HardwareAwareTrainer] = []

    def train(self: HardwareAwareTrainer, **kwargs: Any) -> None:
        self.create_optimizer_and_scheduler(num_training_steps=20)
        caught.append(self)

    monkeypatch.setattr(HardwareAwareTrainer, "train", train)
    values = {
        "steps": 20,
        "warmup_steps": 5,
        "learning_rate": 3e-3,
        "min_lr_ratio": 0.2,
        "weight_decay": 0.07,
        "beta1": 0.8,
        "beta2": 0.9,
        "max_grad_norm": 0.5,
        "accumulate": 3,
    }
    run(
        compose(
            tmp_path, "stage.name=linear", f"previous={base}", *(f"trainer.linear.{k}={v}" for k, v in values.items())
        )
    )
    return caught[0]


def test_only_matrices_decay(trainer: HardwareAwareTrainer) -> None:
    assert trainer.model is not None and trainer.optimizer is not None
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    decayed: set[str] = set()
    kept: set[str] = set()
    for group in trainer.optimizer.param_groups:
        (decayed if group["weight_decay"] else kept).update(names[id(p)] for p in group["params"])
    assert decayed | kept == set(names.values())
    assert decayed == {
        "transformer.wte.weight",
        "transformer.wpe.weight",
        *(f"transformer.h.0.{part}.weight" for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
    }
    scalers = {name for name in kept if ".gain_cell." in name}
    assert len(scalers) == 8  # gain and offset of query, key, value and output
    assert {name.rpartition(".")[2] for name in kept - scalers} == {"bias", "weight"}  # of norms, and biases


def test_the_optimiser_is_as_configured(trainer: HardwareAwareTrainer) -> None:
    assert trainer.optimizer is not None and trainer.lr_scheduler is not None
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    for group in trainer.optimizer.param_groups:
        assert group["betas"] == (0.8, 0.9)
        assert group["weight_decay"] in (0.0, 0.07)
    assert trainer.args.max_grad_norm == 0.5
    assert trainer.args.gradient_accumulation_steps == 3
    rates = []
    for _ in range(21):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    cosine = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * i / 15)) for i in range(16)]
    assert rates == pytest.approx([3e-3 * share for share in (0, 0.2, 0.4, 0.6, 0.8, *cosine)])


def test_the_log_of_a_converted_model(base: Path) -> None:
    lines = [line for line in json.loads((base / "linear" / "history.json").read_text()) if "loss" in line]
    assert len(lines) == 4
    for line in lines:
        assert line["perplexity"] == pytest.approx(math.exp(line["loss"]))
        assert 100 < line["perplexity"] < 400
        assert {key for key in line if key.startswith("clip/")} == {
            f"clip/{k}" for k in ("query", "key", "value", "S_off", "S_full", "A")
        }
        assert all(0 <= value <= 1 for key, value in line.items() if key.startswith("clip/"))
        assert {key for key in line if key.startswith("scaler/")} == {
            f"scaler/{part}_{number}" for part in ("query", "key", "value", "output") for number in ("scale", "offset")
        }
    assert [line["learning_rate"] for line in lines] == pytest.approx(
        [6e-4 * share for share in (0, 1, 0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.25)], rel=1e-6
    )
    assert all(line["tokens_per_s"] > 10 for line in lines[1:])
    # What is logged last is what stands in the checkpoint.
    scales = [
        layer.scaler("key").scale.detach()
        for _, layer in aimc.models.arrays.gain_cell_layers(aimc.from_pretrained(base / "linear"))
    ]
    assert lines[-1]["scaler/key_scale"] == pytest.approx(torch.stack(scales).mean().item(), rel=1e-6)
    assert lines[0]["scaler/key_scale"] != lines[-1]["scaler/key_scale"]


def test_the_log_of_a_digital_model_has_no_hardware(base: Path) -> None:
    lines = [line for line in json.loads((base / "digital" / "history.json").read_text()) if "loss" in line]
    assert not [key for line in lines for key in line if "/" in key]


def test_the_last_smaller_batch_is_measured_too(tmp_path: Path, base: Path, compose: Compose) -> None:
    """Validation text of three sequences, batches of two."""
    values = []
    for tokens in (64, 96):
        run(compose(tmp_path / str(tokens), "stage.name=linear", f"previous={base}", f"trainer.eval_tokens={tokens}"))
        history = json.loads((tmp_path / str(tokens) / "linear" / "history.json").read_text())
        values.append(next(line["eval_loss"] for line in history if "eval_loss" in line))
    assert values[0] != values[1]


def test_validation_text_smaller_than_a_batch_is_measured(tmp_path: Path, compose: Compose) -> None:
    run(compose(tmp_path, "stage.name=digital", "trainer.eval_tokens=32"))
    history = json.loads((tmp_path / "digital" / "history.json").read_text())
    assert [line["step"] for line in history if "eval_perplexity" in line] == [2, 4]


def test_too_little_text_for_a_batch_names_the_remedy(tmp_path: Path, compose: Compose) -> None:
    with pytest.raises(
        RunError, match=r"fewer than one batch of 100000 × 32; give more text or set trainer\.digital\.batch_size lower"
    ):
        run(compose(tmp_path, "stage.name=digital", "trainer.digital.batch_size=100000"))
    with pytest.raises(RunError, match=r"fewer than one batch of 2 × 50000 × 32"):
        shared = ["trainer.digital.batch_size=2", "trainer.digital.accumulate=50000"]
        run(compose(tmp_path, "stage.name=digital", *shared))


def test_too_few_validation_tokens_name_the_remedy(tmp_path: Path, compose: Compose) -> None:
    with pytest.raises(
        RunError, match=r"trainer\.eval_tokens=31: fewer than one sequence of 32 tokens; give 32 or more"
    ):
        run(compose(tmp_path, "stage.name=digital", "trainer.eval_tokens=31"))


def test_mixed_precision_trains_and_saves_float32(tmp_path: Path, base: Path, compose: Compose) -> None:
    run(compose(tmp_path, "stage.name=linear", f"previous={base}", "trainer.precision=bf16"))
    mixed, full = weights_of(tmp_path / "linear"), weights_of(base / "linear")
    assert {tensor.dtype for tensor in mixed.values()} == {torch.float32}
    values = [
        json.loads((f / "linear" / "stage.json").read_text())["perplexity"]["linear cell, trained"]
        for f in (tmp_path, base)
    ]
    assert values[0] == pytest.approx(values[1], rel=0.02)
    config = compose(tmp_path)
    text = prepare(config.data, None, config.model.n_positions).tensor("test", config.measure.tokens)
    measured = aimc.perplexity(aimc.from_pretrained(tmp_path / "linear", dtype=torch.float32), text)
    assert values[0] == pytest.approx(float(measured), rel=1e-5)  # in the precision in which it was saved
    assert any(not mixed[name].equal(full[name]) for name in full)


@pytest.fixture
def logged_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key in the environment or on disk."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_logged_in_is_read_from_the_environment_or_the_netrc(
    tmp_path: Path, logged_out: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not logged_in_to_wandb()
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.other.org\n  login user\n  password nothing\n")
    netrc.chmod(0o600)
    assert not logged_in_to_wandb()
    netrc.write_text("machine api.wandb.ai\n  login user\n  password nothing\n")
    assert logged_in_to_wandb()
    netrc.write_text("this is no netrc")
    assert not logged_in_to_wandb()
    monkeypatch.setenv("WANDB_API_KEY", "not a key")
    assert logged_in_to_wandb()


def test_wandb_writes_an_offline_run_a_stage(tmp_path: Path, logged_out: None, compose: Compose) -> None:
    for stage in ("digital", "linear"):
        run(compose(tmp_path, f"stage.name={stage}", "logger=wandb"))
    files = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    contents = b"".join(file.read_bytes() for file in files)
    for text in (
        b"train/loss",
        b"train/clip/query",
        b"train/scaler/key_scale",
        b"eval/perplexity",
        f"{tmp_path.name}".encode(),
    ):
        assert text in contents, text
    assert wandb.run is None


def test_wandb_goes_on_in_the_same_run(
    tmp_path: Path, logged_out: None, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: HardwareAwareTrainer, *args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    steps = HardwareAwareTrainer.training_step
    monkeypatch.setattr(HardwareAwareTrainer, "training_step", stop)
    with pytest.raises(KeyboardInterrupt):
        run(compose(tmp_path, "stage.name=digital", "logger=wandb"))
    wandb.finish()
    monkeypatch.setattr(HardwareAwareTrainer, "training_step", steps)
    time.sleep(1)  # their folders go by the second
    run(compose(tmp_path, "stage.name=digital", "logger=wandb"))
    folders = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(folders) == 2 and len({name.rpartition("-")[2] for name in folders}) == 1, folders


def test_wandb_stages_are_the_run_of_the_agent(
    tmp_path: Path, logged_out: None, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "fromagent"}.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # what another test has begun does not read the environment again
    run(compose(tmp_path, "stage.name=digital", "logger=wandb"))
    wandb.teardown()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert folder.name.endswith("-fromagent")


@pytest.mark.parametrize(
    "broken", [pytest.param("wandb.init", marks=pytest.mark.slow), "transformers.integrations.WandbCallback.on_log"]
)
def test_wandb_trouble_does_not_cost_the_run(
    tmp_path: Path,
    logged_out: None,
    compose: Compose,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: str,
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise wandb.errors.CommError("no network")

    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(broken, fail)
    with caplog.at_level(logging.WARNING, logger="train.callbacks"):
        run(compose(tmp_path, "stage.name=digital", "logger=wandb"))
    told = [r.getMessage() for r in caplog.records if r.name == "train.callbacks"]
    assert told == ["logger=wandb: CommError: no network; the run goes on without it, its curves are in history.json"]
    digital, expected = weights_of(tmp_path / "digital"), weights_of(base / "digital")
    assert all(digital[name].equal(expected[name]) for name in expected)


def test_no_logger_leaves_no_wandb_folder(base: Path) -> None:
    assert not (base / "wandb").exists()


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(
    tmp_path: Path, smoke: Callable[..., list[str]], compose: Compose
) -> None:
    """`torchrun` on two CPU processes: the same sequences a step, so the same weights up to the order of sums."""
    for stage in ("digital", "linear"):
        run(compose(tmp_path / "one", f"stage.name={stage}", "trainer.linear.batch_size=4", "model.dropout=0"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "train"]
    done = subprocess.run(
        [*torchrun, *smoke(tmp_path / "two", "stage=linear", f"previous={tmp_path / 'one'}")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("linear: running") == 1  # the second process is silent
    assert {p.name for p in (tmp_path / "two").iterdir() if not p.name.startswith(".")} == {"linear"}
    told = json.loads((tmp_path / "two" / "linear" / "stage.json").read_text())
    assert told["training_tokens"] == 4 * 2 * 2 * 32
    assert not (tmp_path / "two" / ".work" / "linear").exists()
    one, two = weights_of(tmp_path / "one" / "linear"), weights_of(tmp_path / "two" / "linear")
    start = weights_of(tmp_path / "one" / "digital")
    moved = max(float((one[name] - start[name]).abs().max()) for name in start)
    assert moved > 1e-4
    off = sum(float((one[name] - two[name]).square().sum()) for name in start) ** 0.5
    way = sum(float((one[name] - start[name]).square().sum()) for name in start) ** 0.5
    assert off < 0.02 * way


def test_distillation_weighs_text_against_teacher(tmp_path: Path, compose: Compose) -> None:
    """A model that starts as its teacher diverges from it by nothing: the first loss is the text's share alone. Where
    that is none, what the text would have cost is not computed."""
    first, labelled = {}, {}
    for weight in (0.0, 0.5, 1.0):
        config = compose(
            tmp_path / str(weight),
            "model.dropout=0",
            f"trainer.linear.distillation={weight}",
            "trainer.linear.accumulate=2",
            "trainer.linear.steps=1",
        )
        data = prepare(config.data, None, config.model.n_positions)
        teacher = digital_model(config.model, data.tokenizer, 0)
        student = copy.deepcopy(teacher)
        with_labels: set[bool] = set()

        def saw(model: torch.nn.Module, args: Any, kwargs: dict[str, Any], seen: set[bool] = with_labels) -> None:
            if model.training:
                seen.add(kwargs.get("labels") is not None)

        student.register_forward_pre_hook(saw, with_kwargs=True)
        training = Training(
            stage="linear",
            setting="trainer.linear",
            recipe=config.trainer.recipe("linear"),
            shared=config.trainer,
            context=config.model.n_positions,
            folder=tmp_path / str(weight),
        )
        log = train(student, data, training, teacher)
        first[weight], labelled[weight] = log[0]["loss"], with_labels
        assert not (weight and teacher.config.use_cache), "nothing is decoded"
    assert first[0.0] > 4
    assert first[0.5] == pytest.approx(0.5 * first[0.0], rel=1e-4)
    assert first[1.0] == pytest.approx(0.0, abs=1e-5)
    assert labelled == {0.0: {True}, 0.5: {True}, 1.0: {False}}


def test_logged_validation_perplexity_is_the_models_own(base: Path, compose: Compose) -> None:
    """Recomputed from the saved model: mean over all predicted tokens of the validation sequences."""
    config = compose(base)
    history = json.loads((base / "digital" / "history.json").read_text())
    logged = [line["eval_perplexity"] for line in history if "eval_perplexity" in line][-1]
    data = prepare(config.data, None, config.model.n_positions)
    sequences = data.tensor("valid", config.trainer.eval_tokens).view(-1, config.model.n_positions)
    model = load_digital(str(base / "digital"))
    with torch.no_grad():
        logits = model(sequences).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), sequences[:, 1:]).exp()
    assert logged == pytest.approx(float(expected), rel=1e-5)
