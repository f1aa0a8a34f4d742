"""What a recipe's fields do to a training run: loss, rates a group, adapters, noise; and that going on is exact with
all of them."""

from __future__ import annotations

import builtins
import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

import aimc
from aimc.hardware import Noise
from aimc.models.arrays import gain_cell_layers, hardware_of, set_hardware
from tests.train.conftest import compose_config, same_weights
from tests.train.test_resume import Killed, at_step, kill
from train.configs import checked
from train.dropout import dropout
from train.errors import RunError
from train.groups import groups_of
from train.models import digital_model
from train.noise import FIRST_FRESH, NoiseSchedule
from train.pipeline import execute, opened
from train.recipe import LearningRates, NoiseTraining, Recipe
from train.schema import RunConfig
from train.tokens import TokenData, prepare
from train.trainer import HardwareAwareTrainer, Training, train

Compose = Callable[..., RunConfig]
NOISE = aimc.presets.typical()
NOISY = NoiseTraining(scale=2.0, ramp=0.5)


@dataclass
class Parts:
    """What a training run is made of."""

    config: RunConfig
    data: TokenData
    digital: PreTrainedModel
    analog: PreTrainedModel

    def train(self, folder: Path, model: PreTrainedModel | None = None, **fields: Any) -> PreTrainedModel:
        """A model (a copy of the converted one unless given) after four steps of a recipe with these fields."""
        model = copy.deepcopy(self.analog) if model is None else model
        self.log = train(model, self.data, self.training(folder, **fields), copy.deepcopy(self.digital))
        return model

    def training(self, folder: Path, **fields: Any) -> Training:
        config = self.config
        return Training(
            stage="finetune",
            setting="trainer.finetune",
            recipe=replace(config.trainer.recipe("finetune"), **{"learning_rate": 3e-3, "eval_every": 4, **fields}),
            shared=config.trainer,
            context=32,
            folder=folder,
            nonideality=NOISE,
        )


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, compose: Compose) -> Parts:
    config = compose(tmp_path_factory.mktemp("parts"), "model.dropout=0")
    data = prepare(config.data, None, 32)
    digital = digital_model(config.model, data.tokenizer, 0)
    analog = copy.deepcopy(digital)
    aimc.convert(analog, config.hardware)
    aimc.initialise_scalers(analog, digital, [data.tensor("train", 128).view(4, 32)])
    return Parts(config, data, digital, analog)


def moved(before: PreTrainedModel, after: PreTrainedModel) -> set[str]:
    """Groups of the parameters that differ."""
    groups, old = groups_of(after), dict(before.named_parameters())
    return {groups[name] for name, p in after.named_parameters() if not p.equal(old[name])}


# --- clock


class Seconds:
    """A clock that goes on by as much at each look."""

    def __init__(self, a_look: float) -> None:
        self.now, self.a_look = 0.0, a_look

    def __call__(self) -> float:
        self.now += self.a_look
        return self.now


def test_a_run_by_the_clock_ends_with_it_and_so_does_its_rate(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.clock.perf_counter", Seconds(1.0))
    fields = {"steps": 1000, "minutes": 0.5, "min_lr_ratio": 0.0, "log_every": 1, "eval_every": 1000}
    parts.train(tmp_path, **fields)
    lines = [line for line in parts.log if "learning_rate" in line]
    assert 10 <= len(lines) <= 16  # two looks a step
    assert lines[-1]["seconds"] >= 30 > lines[-2]["seconds"]
    assert lines[-1]["learning_rate"] < 3e-3 * 0.02
    assert lines[len(lines) // 2]["learning_rate"] == pytest.approx(1.5e-3, rel=0.3)
    assert [line["step"] for line in parts.log if "eval_loss" in line] == [lines[-1]["step"]]


def test_a_run_by_the_clock_that_was_killed_gets_what_is_left(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.clock.perf_counter", Seconds(1.0))
    fields = {"steps": 1000, "minutes": 0.5, "log_every": 1, "eval_every": 1000, "save_every": 5}
    at_step(monkeypatch, 6, kill)
    with pytest.raises(Killed):
        parts.train(tmp_path, **fields)
    monkeypatch.undo()
    monkeypatch.setattr("train.clock.perf_counter", Seconds(1.0))
    model = parts.train(tmp_path, **fields)
    steps = [line["step"] for line in parts.log if "learning_rate" in line]
    assert 10 <= steps[-1] <= 16
    assert same_weights(model.state_dict(), parts.train(tmp_path, **fields).state_dict())
    assert [line["step"] for line in parts.log if "learning_rate" in line][-1] == steps[-1]


# --- loss


def test_hidden_states_weigh_less_and_less(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distance that is always 1 and a teacher that is the student's start: the rest of the loss is the text's."""
    monkeypatch.setattr("train.trainer.hidden_distance", lambda *states: torch.ones(()) + 0 * states[0][1].sum())
    losses = []
    for weight in (0.0, 10.0):
        parts.train(tmp_path / str(weight), hidden_weight=weight, accumulate=2)
        losses.append([line["loss"] for line in parts.log if "loss" in line])
    assert [a - b for a, b in zip(losses[1], losses[0], strict=True)] == pytest.approx([10, 7.5, 5, 2.5], rel=1e-3)


def test_each_part_of_the_loss_changes_the_weights(parts: Parts, tmp_path: Path) -> None:
    results = []
    for number, fields in enumerate(({}, {"temperature": 2.0}, {"reverse_share": 0.5}, {"hidden_weight": 1.0})):
        results.append(parts.train(tmp_path / str(number), distillation=0.5, steps=1, **fields).state_dict())
    for one in results[1:]:
        assert not same_weights(results[0], one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 400}, "the teacher has vocab_size=400 and the model that learns 300, and each token's"),
        ({"n_layer": 2}, "the teacher has num_hidden_layers=2 and the model that learns 1"),
        ({"n_embd": 16}, "the teacher has hidden_size=16 and the model that learns 32"),
    ],
)
def test_a_teacher_of_another_kind_is_refused(
    parts: Parts, tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    sizes = {"vocab_size": 300, "n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 32} | changes
    stranger = replace(parts, digital=GPT2LMHeadModel(GPT2Config(**sizes)))
    with pytest.raises(RunError, match=f"^stage finetune: {message}"):
        stranger.train(tmp_path, distillation=0.5)


# --- groups


def test_every_parameter_is_in_its_group(parts: Parts) -> None:
    for model in (parts.digital, parts.analog):
        for name, group in groups_of(model).items():
            expected = "scalers" if ".gain_cell." in name else "attention" if ".attn." in name else "rest"
            assert group == expected, name
    assert {*groups_of(parts.analog).values()} == {"scalers", "attention", "rest"}
    assert {*groups_of(parts.digital).values()} == {"attention", "rest"}


def test_a_group_with_factor_zero_stays_as_it_is(parts: Parts, tmp_path: Path) -> None:
    rates = LearningRates(attention=0.0, rest=0.0)
    after = parts.train(tmp_path, learning_rates=rates)
    assert moved(parts.analog, after) == {"scalers"}
    assert all(p.requires_grad for p in after.parameters()), "frozen for the run only"
    assert moved(parts.analog, parts.train(tmp_path / "all")) == {"scalers", "attention", "rest"}


def test_each_group_learns_at_its_factor(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[HardwareAwareTrainer] = []
    at_step(monkeypatch, 2, seen.append)
    rates = LearningRates(scalers=4.0, attention=0.5)
    parts.train(tmp_path, learning_rates=rates, weight_decay=0.1)
    (trainer,) = seen
    assert trainer.optimizer is not None and trainer.model is not None
    groups, names = groups_of(parts.analog), {id(p): name for name, p in trainer.model.named_parameters()}
    found = {}
    for group in trainer.optimizer.param_groups:
        (name,) = {groups[names[id(p)]] for p in group["params"]}
        found[name] = group["initial_lr"] / 3e-3
        assert group["weight_decay"] == (0.0 if name == "scalers" or group["params"][0].ndim < 2 else 0.1)
    assert found == pytest.approx({"scalers": 4.0, "attention": 0.5, "rest": 1.0})
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(names)
    peak = max(line["learning_rate"] for line in parts.log if "loss" in line)
    assert peak == pytest.approx(3e-3), "the log has the recipe's own rate"


def test_nothing_left_to_train_is_refused(parts: Parts, tmp_path: Path) -> None:
    """The control of a recalibration: a digital model has no scalers."""
    rates = LearningRates(attention=0.0, rest=0.0)
    with pytest.raises(RunError, match=r"^trainer\.finetune\.learning_rates: stage finetune has no parameter in"):
        parts.train(tmp_path, copy.deepcopy(parts.digital), learning_rates=rates)


# --- adapters


def test_adapters_end_inside_the_weights(parts: Parts, tmp_path: Path) -> None:
    after = parts.train(tmp_path / "work", lora_rank=2)
    assert type(after) is type(parts.analog) and after.state_dict().keys() == parts.analog.state_dict().keys()
    assert all(p.requires_grad for p in after.parameters())
    old = dict(parts.analog.named_parameters())
    for name, parameter in after.named_parameters():
        if any(f".{part}.weight" in name for part in ("c_attn", "c_proj", "c_fc")):
            change = torch.linalg.svdvals((parameter - old[name]).detach())
            assert change[1] > 1e-7 and change[2] < 1e-3 * change[1], f"{name} changes by a matrix of rank 2"
        elif ".gain_cell." in name:
            assert not parameter.equal(old[name]), name
        else:
            assert parameter.equal(old[name]), name
    after.save_pretrained(tmp_path / "saved")
    again = aimc.from_pretrained(tmp_path / "saved")
    assert same_weights(again.state_dict(), after.state_dict())


def test_adapters_without_peft_name_the_extra(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(RunError, match=r"^trainer\.finetune\.lora_rank=4: needs peft; pip install 'aimc\[lora\]'"):
        parts.train(tmp_path, lora_rank=4)


# --- dropout


def test_without_dropout_a_model_trains_as_one_that_has_none(parts: Parts, tmp_path: Path) -> None:
    def with_dropout(p: float) -> Parts:
        changed = copy.copy(parts)
        changed.analog = copy.deepcopy(parts.analog)
        for module in changed.analog.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = p
        return changed

    has, has_none = with_dropout(0.4), with_dropout(0.0)
    off = has.train(tmp_path / "off", dropout=False)
    assert same_weights(off.state_dict(), has_none.train(tmp_path / "none").state_dict())
    assert not same_weights(off.state_dict(), has.train(tmp_path / "on").state_dict())
    assert {m.p for m in off.modules() if isinstance(m, torch.nn.Dropout)} == {0.4}, "put back"


def test_the_controls_dropout_is_its_own(tmp_path: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the recipes of what it is compared with, but for what `control_dropout` says."""
    worked: list[tuple[str, str, bool]] = []

    def noted(self: HardwareAwareTrainer, training: Training, *args: Any, **kwargs: Any) -> None:
        worked.append((training.stage, training.setting.rpartition(".")[2], training.recipe.dropout))
        original(self, training, *args, **kwargs)

    original = HardwareAwareTrainer.__init__
    monkeypatch.setattr(HardwareAwareTrainer, "__init__", noted)
    without = [f"trainer.{name}.dropout=false" for name in ("linear", "finetune")]
    without += [f"trainer.{name}.steps=1" for name in ("digital", "linear", "finetune")]
    stages = ("digital", "control", "linear")
    for name in stages:
        execute(compose(tmp_path, *without, f"stage.name={name}", "trainer.control_dropout=true"), lambda what: None)
    assert worked == [
        ("digital", "digital", True),
        ("control", "linear", True),
        ("control", "finetune", True),
        ("linear", "linear", False),
    ]
    execute(compose(tmp_path, *without, "stage.name=control"), lambda what: None)
    assert [dropout for *_, dropout in worked[4:]] == [False, False]


def test_the_control_reads_as_it_is_fine_tuned_what_blocks_match(
    tmp_path: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learning rate of single blocks is none for a whole model."""
    worked: list[Training] = []

    def noted(self: HardwareAwareTrainer, training: Training, *args: Any, **kwargs: Any) -> None:
        worked.append(training)
        original(self, training, *args, **kwargs)

    original = HardwareAwareTrainer.__init__
    monkeypatch.setattr(HardwareAwareTrainer, "__init__", noted)
    settings = ["trainer.match.learning_rate=3e-3", "trainer.match.steps=2", "trainer.match.batch_size=3"]
    settings += ["trainer.finetune.learning_rate=1e-4", "trainer.finetune.dropout=false"]
    for name in ("digital", "control"):
        execute(compose(tmp_path, "recipe=direct", *settings, f"stage.name={name}"), lambda what: None)
    first, second = (training.recipe for training in worked if training.stage == "control")
    assert (first.learning_rate, first.dropout, first.min_lr_ratio) == (1e-4, False, 1.0)
    assert (first.steps, first.batch_size) == (2, 3)
    assert (second.learning_rate, second.min_lr_ratio) == (1e-4, 0.1)


def test_dropout_that_is_no_layer_is_left_out_too() -> None:
    from transformers import OPTConfig, OPTForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 16, "ffn_dim": 16, "word_embed_proj_dim": 16, "num_attention_heads": 2}
    model = OPTForCausalLM(OPTConfig(vocab_size=50, num_hidden_layers=2, dropout=0.5, **sizes)).train()
    tokens = torch.arange(20)[None]
    with dropout(model, False):
        once, again = (model(tokens).logits for _ in range(2))
    assert once.equal(again)
    assert not model(tokens).logits.equal(model(tokens).logits)
    with pytest.raises(ZeroDivisionError), dropout(model, False):
        raise ZeroDivisionError
    assert not model(tokens).logits.equal(model(tokens).logits)
    with dropout(model, True):
        assert not model(tokens).logits.equal(model(tokens).logits)


# --- noise


def schedule(parts: Parts, **fields: Any) -> NoiseSchedule:
    recipe = Recipe(steps=100, noise=NoiseTraining(**{"scale": 2.0, **fields}))
    return NoiseSchedule(copy.deepcopy(parts.analog), recipe, NOISE, seed=5)


def test_the_scale_rises_and_chips_follow_each_other(parts: Parts) -> None:
    noise = schedule(parts, ramp=0.5, every=3)
    assert [noise.scale(step) for step in (0, 10, 25, 50, 99)] == pytest.approx([0.0, 0.4, 1.0, 2.0, 2.0])
    assert schedule(parts).scale(0) == 2.0
    chips = [noise.chip(step) for step in range(9)]
    assert [chips[i] for i in (1, 2)] == [chips[0]] * 2 and len({*chips}) == 3
    assert min(chips) >= FIRST_FRESH
    assert chips == [schedule(parts, every=3).chip(step) for step in range(9)], "the seed's own"
    other = NoiseSchedule(parts.analog, noise.recipe, NOISE, seed=6)
    assert other.chip(0) != chips[0]
    assert {schedule(parts, chip="7").chip(step) for step in range(9)} == {7}
    assert not NoiseSchedule(parts.digital, noise.recipe, NOISE, seed=5).is_on


def test_steps_meet_noise_and_nothing_else_does(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, int | None]] = []
    evaluated: list[list[str]] = []
    saved: list[dict[str, Any]] = []
    step, measure = HardwareAwareTrainer.training_step, HardwareAwareTrainer.prediction_step
    save = HardwareAwareTrainer._save_checkpoint

    def layer_of(trainer: HardwareAwareTrainer) -> Any:
        assert trainer.model is not None
        return next(gain_cell_layers(trainer.model))[1]

    def training_step(self: HardwareAwareTrainer, *args: Any, **kwargs: Any) -> Any:
        layer = layer_of(self)
        seen.append((layer.machine.noise.mismatch_gain / NOISE.mismatch_gain, layer.chip_seed))
        return step(self, *args, **kwargs)

    def prediction_step(self: HardwareAwareTrainer, *args: Any, **kwargs: Any) -> Any:
        evaluated.append(layer_of(self).machine.noise.active())
        return measure(self, *args, **kwargs)

    def _save_checkpoint(self: HardwareAwareTrainer, *args: Any, **kwargs: Any) -> None:
        saved.append(copy.deepcopy(layer_of(self).hardware.to_dict()))
        save(self, *args, **kwargs)

    for function in (training_step, prediction_step, _save_checkpoint):
        monkeypatch.setattr(HardwareAwareTrainer, function.__name__, function)
    after = parts.train(tmp_path, noise=NOISY)
    assert [scale for scale, _ in seen] == pytest.approx([0.0, 1.0, 2.0, 2.0])
    assert len({chip for _, chip in seen}) == 4
    assert not any(evaluated) and evaluated
    assert saved == [hardware_of(parts.analog).to_dict()] * 2
    assert hardware_of(after) == hardware_of(parts.analog) and after.config.aimc == parts.analog.config.aimc
    on_disk = aimc.from_pretrained(tmp_path / "checkpoint-4")
    assert not hardware_of(on_disk).noise.active() and on_disk.config.aimc["chip_seed"] is None
    assert [line["noise/scale"] for line in parts.log if "loss" in line] == pytest.approx([0.0, 1.0, 2.0, 2.0])
    assert [line["eval_noise_scale"] for line in parts.log if "eval_loss" in line] == [0.0]
    assert not same_weights(after.state_dict(), parts.train(tmp_path / "clean").state_dict())

    evaluated.clear()
    parts.train(tmp_path / "noisy", noise=replace(NOISY, evaluate="noisy", chip="7"))
    assert evaluated and all("read_qk" in names for names in evaluated)
    assert [line["eval_noise_scale"] for line in parts.log if "eval_loss" in line] == [2.0]
    assert [chip for _, chip in seen[-4:]] == [7] * 4


def test_noise_of_the_hardware_itself_comes_back(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a step that ends with an exception."""
    model, own = copy.deepcopy(parts.analog), Noise(read_av=0.01)
    set_hardware(model, replace(hardware_of(model), noise=own))
    at_step(monkeypatch, 1, kill)
    with pytest.raises(Killed):
        parts.train(tmp_path, model, noise=NOISY)
    assert hardware_of(model).noise == own and next(gain_cell_layers(model))[1].chip_seed is None


def test_a_scale_of_nothing_is_refused(tmp_path: Path, compose: Compose) -> None:
    with pytest.raises(RunError, match=r"^trainer\.finetune\.noise\.scale=1\.0: it scales `nonideality`, and"):
        compose(tmp_path, "nonideality=none", "trainer.finetune.noise.scale=1")


# --- going on


@pytest.mark.parametrize(
    "fields",
    [
        {"noise": NOISY, "distillation": 0.5, "hidden_weight": 1.0, "temperature": 2.0, "reverse_share": 0.5},
        pytest.param({"lora_rank": 2, "learning_rates": LearningRates(scalers=3)}, marks=pytest.mark.slow),
    ],
    ids=["fresh chips, teacher", "adapters"],
)
def test_a_killed_run_ends_with_the_same_weights(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    undisturbed = parts.train(tmp_path / "undisturbed", **fields)
    at_step(monkeypatch, 3, kill)
    with pytest.raises(Killed):
        parts.train(tmp_path / "killed", **fields)
    monkeypatch.undo()
    steps: list[int] = []
    at_step(monkeypatch, 3, lambda trainer: steps.append(3))
    torch.manual_seed(99)
    resumed = parts.train(tmp_path / "killed", **fields)
    assert steps == [3] and (tmp_path / "killed" / "checkpoint-2").exists()
    assert same_weights(undisturbed.state_dict(), resumed.state_dict())


# --- the command line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.finetune.noise.chip=frozen", "trainer.finetune.noise.chip=frozen: no number of a chip, and a frozen"),
        ("trainer.finetune.noise.ramp=2", "trainer.finetune.noise.ramp=2.0: must be at least 0 and at most 1"),
        ("trainer.finetune.teacher=gpt4", "trainer.finetune.teacher=gpt4: unknown; use one of digital, control"),
        (
            "+trainer.linear.learning_rates.mlp=0",
            "trainer.linear.learning_rates.mlp: unknown key; the keys there are s",
        ),
    ],
)
def test_a_wrong_recipe_is_refused(override: str, message: str) -> None:
    with pytest.raises(RunError) as caught:
        checked(compose_config("run", override), RunConfig)
    assert str(caught.value).startswith(message)


def test_all_groups_frozen_is_refused() -> None:
    with pytest.raises(RunError, match="^scalers=0: every group is frozen"):
        LearningRates(scalers=0, attention=0, rest=0)


def test_the_control_as_teacher(tmp_path: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must be there before anything trains; then the stage depends on it."""
    learns = [f"trainer.{name}.{field}" for name in ("linear", "finetune") for field in ("teacher=control", "steps=1")]
    learns += ["trainer.linear.distillation=0.5", "stage.with_softmax=false", "trainer.digital.steps=1"]
    with pytest.raises(RunError, match="stage linear learns from the control model, and there is none in"):
        execute(compose(tmp_path, *learns, "stage.with_control=false"), lambda what: None)
    assert not (tmp_path / "digital").exists()

    taught: list[tuple[str, bool]] = []

    def noted(self: HardwareAwareTrainer, training: Training, teacher: PreTrainedModel | None, **kwargs: Any) -> None:
        name = "none" if teacher is None else Path(teacher.name_or_path).name
        taught.append((f"{training.stage} by {name}", bool(training.recipe.distillation)))
        original(self, training, teacher, **kwargs)

    original = HardwareAwareTrainer.__init__
    monkeypatch.setattr(HardwareAwareTrainer, "__init__", noted)
    for stage in ("digital", "control", "linear"):
        execute(compose(tmp_path, *learns, f"stage.name={stage}", "trainer.distill_control=true"), lambda what: None)
    assert taught == [
        ("digital by none", False),
        ("control by digital", True),
        ("control by none", False),
        ("linear by control", True),
    ]


def test_by_the_clock_no_more_text_is_read_than_may_be_needed(
    tmp_path: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.run.MOST_BATCHES", 2)
    for minutes, n in (("null", 3), ("1", 2)):
        config = compose(tmp_path, "trainer.match.steps=3", f"trainer.match.minutes={minutes}")
        run = opened(config, lambda what: None, PartialState())
        assert len(run.sequences("match")) == n
