"""What is watched while a model trains: spikes and their batches, counters, scalers, and the best point."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aimc.models.arrays import gain_cell_layers
from tests.conftest import tiny_gpt2
from tests.train.conftest import same_weights, weights_of
from train import pipeline, replay
from train.alarms import Alarms, tell_full_normaliser
from train.errors import RunError
from train.resume import best_intact, best_of
from train.schema import RunConfig
from train.spikes import LEAST, Spike, Usual, _but_newest
from train.trainer import Diverged, HardwareAwareTrainer

Compose = Callable[..., RunConfig]
STEPS, AT = 26, 23
LONG = [
    f"trainer.linear.{k}={v}" for k, v in {"steps": STEPS, "log_every": 13, "save_every": 9, "eval_every": 9}.items()
]


def run(config: RunConfig) -> str:
    said: list[str] = []
    pipeline.execute(config, lambda what: said.append(str(what)))
    return "\n".join(said)


@pytest.fixture(scope="module")
def digital(tmp_path_factory: pytest.TempPathFactory, compose: Compose) -> Path:
    folder = tmp_path_factory.mktemp("digital")
    run(compose(folder, "stage.name=digital"))
    return folder


@pytest.fixture
def linear(tmp_path: Path, compose: Compose, digital: Path) -> Callable[..., RunConfig]:
    """The linear stage, long enough to know what is usual."""
    return lambda *more: compose(tmp_path, "stage.name=linear", f"previous={digital}", *LONG, *more)


def disturb(monkeypatch: pytest.MonkeyPatch, by: float, for_good: bool = True) -> None:
    """Multiply a weight just before one step, or only for its forward and backward pass."""
    original = HardwareAwareTrainer.training_step

    def training_step(self: HardwareAwareTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step != AT - 1 or self.spikes.step.ids:
            return original(self, *args, **kwargs)
        weight = self.model.transformer.ln_f.weight.data  # type: ignore[union-attr]
        before = weight.clone()
        weight.mul_(by)
        loss = original(self, *args, **kwargs)
        if not for_good:
            weight.copy_(before)
        return loss

    monkeypatch.setattr(HardwareAwareTrainer, "training_step", training_step)


@pytest.mark.parametrize("dropout", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_a_spike_is_told_saved_and_done_again_to_the_digit(
    dropout: str,
    tmp_path: Path,
    linear: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disturb(monkeypatch, 30.0)
    noise = ["nonideality=typical", "trainer.linear.noise.scale=1", "trainer.linear.accumulate=2", "model.dropout=0.1"]
    said = run(linear("trainer.spike_weights=true", f"trainer.linear.dropout={dropout}", *noise))
    folder = tmp_path / "spikes" / "linear" / f"step-{AT:07d}"
    (told,) = (line for line in said.splitlines() if "was usual" in line)
    assert f"at step {AT}; its batch is saved, to do it again: python -m train.replay '{folder}'" in told
    assert (tmp_path / "linear" / "model.safetensors").exists()  # and the training went on
    facts = json.loads((folder / "spike.json").read_text())
    assert facts["steps_before"] == AT - 1 and facts["loss"] > 2 * facts["usual_loss"] and facts["chip"] >= 2**32
    assert load_file(folder / "batch.safetensors")["input_ids"].shape == (2, 2, 32)
    monkeypatch.setattr("sys.argv", ["replay", str(folder)])
    replay.main()
    again = capsys.readouterr().out.splitlines()[2].split()
    assert float(again[2].rstrip(",")) == pytest.approx(facts["loss"], rel=1e-5)
    assert float(again[5]) == pytest.approx(facts["gradient_norm"], rel=1e-4)


def test_a_spike_is_left_out_or_ends_the_run_where_that_is_asked(
    tmp_path: Path, linear: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    disturb(monkeypatch, 30.0)
    with pytest.raises(Spike, match=rf"stage linear: the .* at step {AT}; its batch is saved.*on_spike=stop"):
        run(linear("trainer.on_spike=stop"))
    monkeypatch.undo()
    disturb(monkeypatch, math.nan, for_good=False)
    said = run(linear("trainer.on_spike=skip"))  # from the last point on
    (told,) = (line for line in said.splitlines() if "the loss became nan" in line)
    assert f"at step {AT}" in told and "the step is left out" in told
    assert all(torch.isfinite(x).all() for x in weights_of(tmp_path / "linear").values())
    log = json.loads((tmp_path / "linear" / "history.json").read_text())
    assert all(math.isfinite(line["loss"]) for line in log if "loss" in line)


def test_a_loss_that_is_no_number_says_where_its_batch_is(
    tmp_path: Path, linear: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    disturb(monkeypatch, math.nan)
    with pytest.raises(Diverged, match=rf"the loss became nan at step {AT}; .*its batch is saved.*replay"):
        run(linear())
    assert json.loads((tmp_path / "spikes" / "linear" / f"step-{AT:07d}" / "spike.json").read_text())["loss"] == "nan"


def test_an_undisturbed_run_is_told_nothing_and_resumes_knowing_what_is_usual(
    tmp_path: Path, linear: Callable[..., RunConfig]
) -> None:
    said = run(linear("trainer.best=loaded"))
    assert "usual" not in said and "counters" not in said and not (tmp_path / "spikes").exists()
    log = json.loads((tmp_path / "linear" / "history.json").read_text())
    drifts = [line["drift/query"] for line in log if "drift/query" in line]
    assert len(drifts) == 2 and drifts[-1] > 1


def test_what_is_usual_is_not_moved_by_a_spike() -> None:
    usual = Usual(100, 0.02)
    for i in range(LEAST - 1):
        usual.add(5 - 0.01 * i)
    assert usual.deviations(1e6) == 0  # nobody knows yet
    usual.add(4.8)
    before = usual.deviations(9.0)
    usual.add(1e6)
    assert before > 10 and usual.deviations(9.0) > 10 and usual.deviations(4.0) < 0
    assert usual.deviations(5.2) < 5


def test_the_windows_of_spikes_are_bounded(tmp_path: Path) -> None:
    folders = [tmp_path / f"step-{i:07d}" for i in (5, 120, 7)]
    assert _but_newest(folders, 2) == [folders[0]]


def test_a_damaged_or_missing_spike_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no saved step there"):
        replay.opened(tmp_path)


def test_full_counters_and_scalers_that_run_away_are_told_once() -> None:
    import aimc

    model = tiny_gpt2()
    aimc.convert(model, aimc.presets.gain_cell_cmos())
    said: list[str] = []
    alarms = Alarms(model, clip=0.1, drift=4.0, gradient=20.0, say=said.append)
    assert alarms.look(model, {"clip/A": 0.05, "clip/query": 0.9})["drift/key"] == 1.0 and not said
    _, layer = next(gain_cell_layers(model))
    with torch.no_grad():
        layer.scaler("key").scale[1] /= 5
    for _ in range(2):
        assert alarms.look(model, {"clip/A": 0.2})["drift/key"] == pytest.approx(5.0)
    assert len(said) == 2
    assert "counters (A) are full in 20.0% of their reads" in said[0]
    assert "the key scaler of layer 0, head 1 has changed by a factor of 5.0" in said[1]


def test_counters_whose_full_scales_are_fitted_clip_for_a_reason() -> None:
    import aimc

    model, said = tiny_gpt2(), []
    aimc.convert(model, aimc.presets.gain_cell_normalised())
    for factor, told in ((1.0, 2), (0.5, 0)):
        said.clear()
        for _, layer in gain_cell_layers(model):
            layer.normaliser_full_scale[0] = factor
        tell_full_normaliser(model, {"normaliser": 0.3}, said.append)
        Alarms(model, clip=0.1, drift=4.0, gradient=20.0, say=said.append).look(model, {"clip/A": 0.3})
        assert len(said) == told, said
    Alarms(model, clip=0.1, drift=4.0, gradient=20.0, say=said.append).look(model, {"clip/S_full": 0.3})
    assert "charge-to-pulse circuits" in said[0]


def test_gradients_that_are_usually_far_too_long_are_told_with_what_mends_it() -> None:
    import aimc

    for preset, mended in ((aimc.presets.gain_cell_cmos, False), (aimc.presets.gain_cell_normalised, True)):
        model, said = tiny_gpt2(), []
        hardware = preset()
        hardware.normaliser.least = 0.0
        aimc.convert(model, hardware)
        alarms = Alarms(model, clip=0.1, drift=4.0, gradient=20.0, say=said.append)
        alarms.look_at_gradients(model, usual=9.0, clipped_to=0.5)
        assert not said
        for _ in range(2):
            alarms.look_at_gradients(model, usual=140.0, clipped_to=0.5)
        (told,) = said
        assert "norm is 140 in most steps, and is clipped to 0.5" in told
        assert ("hardware.normaliser.least=0.25" in told) is mended


def test_gradients_of_a_digital_model_are_told_too() -> None:
    model, said = tiny_gpt2(), []
    alarms = Alarms(model, clip=0.1, drift=4.0, gradient=20.0, say=said.append)
    alarms.look_at_gradients(model, usual=140.0, clipped_to=1.0)
    (told,) = said
    assert "norm is 140" in told and "normaliser" not in told


def test_a_run_tells_of_gradients_that_are_usually_too_long(linear: Callable[..., RunConfig]) -> None:
    said = run(linear("trainer.linear.max_grad_norm=1e-3", "trainer.linear.log_every=1"))
    assert said.count("in most steps, and is clipped to 0.001") == 1


def test_the_best_point_is_kept_besides_the_last(
    tmp_path: Path, linear: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation is best after 9 of 27 steps: kept there, and where that is asked the stage ends with it."""
    losses = {9: 1.0, 18: 3.0, 26: 2.0}
    original = HardwareAwareTrainer.evaluate
    states: dict[int, dict[str, torch.Tensor]] = {}

    def evaluate(self: HardwareAwareTrainer, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = original(self, *args, **kwargs)
        self.state.log_history[-1]["eval_loss"] = losses[self.state.global_step]
        states[self.state.global_step] = {k: v.clone() for k, v in self.model.state_dict().items()}  # type: ignore[union-attr]
        return metrics

    monkeypatch.setattr(HardwareAwareTrainer, "evaluate", evaluate)
    points: list[list[str]] = []
    monkeypatch.setattr(
        "train.record.remove", lambda path: points.append(sorted(x.name for x in path.glob("checkpoint-*")))
    )
    run(linear("trainer.keep_points=1"))
    assert points == [["checkpoint-26", "checkpoint-9"]]
    last = weights_of(tmp_path / "linear")
    said = run(linear("trainer.keep_points=1", "trainer.best=loaded", "restart=true"))
    assert "validation loss was lowest, 1.0000, after step 9 of 26" in said
    best = weights_of(tmp_path / "linear")
    assert not same_weights(best, last) and all(best[name].equal(states[9][name]) for name in best)


def test_the_best_of_points_without_a_loss_is_none(tmp_path: Path) -> None:
    points = [tmp_path / "checkpoint-3", tmp_path / "checkpoint-6"]
    assert best_of(points, {}) is None and best_intact(tmp_path, {3: 1.0}) is None
    assert best_of(points, {3: 2.0, 6: 1.0, 9: 0.5}) == points[1]
