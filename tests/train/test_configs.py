"""Every YAML file composes, and every wrong value or key is refused on one line that names it and the remedy."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
from collections.abc import Callable
from itertools import groupby, zip_longest
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aimc import presets
from aimc.hardware import Noise
from tests.conftest import REPOSITORY
from tests.train.conftest import command, compose_config
from train import evaluate
from train.command import launch
from train.configs import checked
from train.errors import RunError
from train.schema import EvaluationConfig, RunConfig, WholeChipConfig
from train.screens import SCREENS, screen

CONF = REPOSITORY / "conf"
CHOICES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))
GROUPS = [choice for choice in CHOICES if "/" in choice]


def together(*groups: str) -> list[str]:
    """Choices in as few compositions as there are in the largest of the groups: the first of each, the second of each,
    and so on."""
    chosen = [choice for choice in GROUPS if choice.partition("/")[0] in groups]
    by_group = [list(of) for _, of in groupby(chosen, lambda choice: choice.partition("/")[0])]
    return [" ".join(filter(None, row)) for row in zip_longest(*by_group)]


ALONE = [choice for choice in GROUPS if choice.startswith("experiment/")]
"""What sets other groups."""
TOGETHER = together(*({choice.partition("/")[0] for choice in GROUPS} - {"experiment", "launcher"}))
TEXT_AND_NOISE = together("data", "nonideality")


def run_config(*overrides: str) -> RunConfig:
    return checked(compose_config("run", *overrides), RunConfig)


def test_every_effect_can_be_set_on_the_command_line() -> None:
    config = run_config("hardware.leakage.target_v=0", "hardware.storage_dac.inl=-0.01", "nonideality.tau_spread=0.3")
    assert (config.hardware.leakage.target_v, config.hardware.storage_dac.inl, config.nonideality.tau_spread) == (
        0.0,
        -0.01,
        0.3,
    )
    assert run_config("hardware.leakage.target_v=null").hardware.leakage.target_v is None


def test_the_entry_points_are_the_only_files_outside_the_groups() -> None:
    names = [choice for choice in CHOICES if "/" not in choice]
    assert names == ["characterise", "evaluation", "page", "real", "run", "study", "whole_chip"]
    assert len(GROUPS) >= 30


def overrides_of(choices: str) -> list[str]:
    return choices.replace("/", "=").split()


@pytest.mark.parametrize("choices", [*ALONE, *TOGETHER])
def test_every_choice_composes(choices: str) -> None:
    config = run_config(*overrides_of(choices))
    got = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(config)))
    for choice in choices.split():
        wanted = OmegaConf.load(CONF / f"{choice}.yaml")
        wanted.pop("defaults", None)
        assert isinstance(wanted, type(OmegaConf.create({})))
        node = got if "@package _global_" in (CONF / f"{choice}.yaml").read_text() else got[choice.partition("/")[0]]
        # What the file says is what the program gets.
        assert OmegaConf.to_container(OmegaConf.merge(node, wanted)) == OmegaConf.to_container(node), choice


def test_no_choice_is_left_out() -> None:
    launchers = [choice for choice in GROUPS if choice.startswith("launcher/")]
    assert sorted(" ".join([*ALONE, *TOGETHER, *launchers]).split()) == GROUPS


@pytest.mark.parametrize("choices", ["", *TEXT_AND_NOISE])
def test_every_choice_composes_into_an_evaluation(choices: str) -> None:
    overrides = overrides_of(choices)
    config = checked(compose_config("evaluation", "checkpoint=somewhere", *overrides), EvaluationConfig)
    assert config.checkpoint == "somewhere"


@pytest.mark.parametrize("choices", ["", *TEXT_AND_NOISE])
def test_every_choice_composes_into_a_whole_chip(choices: str) -> None:
    overrides = overrides_of(choices)
    config = checked(compose_config("whole_chip", "checkpoint=somewhere", *overrides), WholeChipConfig)
    assert config.checkpoint == "somewhere" and config.since_programming_s == 86400


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("static.preset=pcn", "static.preset=pcn: unknown; use one of pcm, reram, noiseless"),
        ("measure.chips=0", "measure: chips=0: must be a whole number of at least 1"),
        (
            "since_programming_s=-1",
            "since_programming_s=-1.0: must be at least 0 and finite; seconds since programming",
        ),
        ("calibration_batches=0", "calibration_batches=0: must be at least 1"),
    ],
)
def test_a_whole_chip_that_makes_no_sense_is_refused(override: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        checked(compose_config("whole_chip", "checkpoint=somewhere", override), WholeChipConfig)


def test_a_bare_run_is_the_shipped_model_on_the_published_cell() -> None:
    config = run_config()
    assert config.model.source == "checkpoints/shipped/digital"
    assert config.hardware == presets.gain_cell_cmos()
    assert config.nonideality == presets.typical()
    assert config.stage.name == "pipeline"


@pytest.mark.parametrize(
    ("choice", "preset"),
    [
        ("cmos", "gain_cell_cmos"),
        ("linear", "gain_cell_linear"),
        ("ideal", "ideal"),
        ("igzo", "igzo"),
        ("published",) * 2,
    ],
)
def test_hardware_by_name_is_the_preset(choice: str, preset: str) -> None:
    assert run_config(f"hardware={choice}").hardware == getattr(presets, preset)()


def test_nonidealities_by_name_are_the_presets() -> None:
    assert run_config("nonideality=none").nonideality == Noise()
    assert run_config("nonideality=typical").nonideality == presets.typical()


@pytest.mark.parametrize("choice", [c for c in GROUPS if c.startswith(("hardware/", "nonideality/"))])
def test_device_numbers_are_in_presets_not_in_yaml(choice: str) -> None:
    content = OmegaConf.to_container(OmegaConf.load(CONF / f"{choice}.yaml"))
    assert isinstance(content, dict)
    assert list(content) == ["defaults"]
    assert len(content["defaults"]) == 1
    assert "/preset/" in str(content["defaults"][0])


def test_the_recipe_follows_the_text_unless_named() -> None:
    assert run_config("data=openwebtext").trainer.recipe("linear").steps == 2800
    assert run_config("data=openwebtext", "trainer=embedded").trainer.recipe("linear").steps == 80


BAD = {
    "stage.fit_sequences=1": r"stage\.fit_sequences=1: one sequence alone leaves none to hold out",
    "hardware.array.window=100": (
        r"hardware\.array: array\.window=100: .*multiple of the sub-tile, array\.rows=64.*use 128"
    ),
    "hardware.array.rows=0": r"array\.rows=0: .*at least one token",
    "hardware.array.saturation_qk=-1": r"array\.saturation_qk=-1\.0: must be a positive",
    "hardware.input_dac.n_levels=1": r"hardware\.input_dac: n_levels=1: .*at least 2 levels; use null",
    "hardware.storage_dac.n_levels=-3": r"hardware\.storage_dac: n_levels=-3: .*at least 2 levels",
    "hardware.readout.n_levels=31": r"hardware\.readout: n_levels=31: .*even number",
    "hardware.storage_dac.v_min=0.95": (
        r"hardware\.storage_dac: .*clip range is empty or upside down; give v_min < v_max"
    ),
    "hardware.storage_dac.v_max=1.2": r"hardware: storage_dac.*cell\.supply_v=0\.9; set the range inside the supply",
    "hardware.leakage.tau_s=0": r"hardware\.leakage: leakage\.tau_s=0\.0: .*use null",
    "hardware.leakage.tau_s=-0.005": r"leakage\.tau_s=-0\.005: ",
    "hardware.leakage.token_time_s=0": r"leakage\.token_time_s=0\.0: must be a positive number of second",
    "hardware.leakage.target_v=-0.1": r"hardware\.leakage: leakage\.target_v=-0\.1: .*0 for ground",
    "hardware.leakage.target_v=1.0": r"hardware: leakage\.target_v=1\.0: .*cell\.supply_v=0\.9",
    "hardware.readout.inl=0.3": r"hardware\.readout: inl=0\.3: .*half an LSB",
    "hardware.cell.supply_v=0": r"hardware\.cell: cell\.supply_v=0\.0: must be a positive number of volt",
    "hardware.cell.supply_v=-0.9": r"cell\.supply_v=-0\.9: ",
    "hardware.cell.offset_v=-0.1": r"cell\.offset_v=-0\.1: must lie between 0",
    "hardware.cell.coefficients=[1.0]": r"cell\.coefficients=\[1\.0\]: ",
    "hardware.cell.gradient=none": r"cell\.gradient='none': unknown choice; use one of exact, linear",
    "hardware.backend=cuda": r"backend='cuda': unknown choice; use one of auto, eager",
    "nonideality.write_v=-0.001": r"nonideality: noise\.write_v=-0\.001: .*0 switches it off",
    "nonideality.read_qk=inf": r"noise\.read_qk=inf: ",
    "model.n_embd=130": r"model\.n_embd=130: must be a multiple of model\.n_head=4",
    "model.family=rwkv": r"model\.family=rwkv: unknown; use one of gpt2, ",
    "model.n_layer=0": r"model\.n_layer=0: must be at least 1",
    "model.dropout=1.5": r"model\.dropout=1\.5: must be at least 0 and below 1",
    "data.kind=web": r"data\.kind=web: unknown; use one of embedded, text, hub",
    "data.vocab_size=100": r"data\.vocab_size=100: must be at least 257",
    "data.context=0": r"data\.context=0: must be at least 2",
    "trainer.linear.batch_size=0": r"trainer\.linear\.batch_size=0: must be at least 1",
    "trainer.finetune.learning_rate=-1": r"trainer\.finetune\.learning_rate=-1\.0: must be above 0 and finite",
    "trainer.digital.steps=-5": r"trainer\.digital\.steps=-5: must be at least 0",
    "trainer.linear.beta2=1": r"trainer\.linear\.beta2=1\.0: ",
    "trainer.linear.min_lr_ratio=2": r"trainer\.linear\.min_lr_ratio=2\.0: .* at most 1; 0\.1 is usual",
    "trainer.eval_tokens=0": r"trainer\.eval_tokens=0: must be at least 1",
    "trainer.precision=int8": r"trainer\.precision=int8: unknown; use one of fp32, bf16, fp16",
    "trainer.device=tpu": r"trainer\.device=tpu: unknown; use one of auto, cpu",
    "stage.name=polish": r"stage\.name=polish: unknown; use one of digital, ",
    "stage.start=warm": r"stage\.start=warm: unknown; use one of statistics, published",
    "measure.chips=0": r"measure: chips=0: must be a whole number of at least 1",
    "stage.adapt_damping=1.5": r"stage\.adapt_damping=1\.5: .*0\.7 is usual",
    "measure.stride=0": r"measure: stride=0: must be a whole number of at least 1",
    "measure.tokens=1": r"measure: tokens=1: must be a whole number of at least 2",
    "logger.name=tensorboard": r"logger\.name=tensorboard: unknown; use one of none, wandb",
    "+window=64": r"window: unknown key; the keys there are model, hardware",
    "+model.layers=3": r"model\.layers: unknown key; the keys there are source, n_layer",
}


@pytest.fixture(scope="module")
def bare() -> DictConfig:
    """What Hydra composes of no words."""
    config = compose_config("run")
    assert isinstance(config, DictConfig)
    return config


@pytest.mark.parametrize("override", BAD)
def test_a_wrong_value_is_refused_on_one_line(override: str, bare: DictConfig) -> None:
    with pytest.raises(RunError) as caught:
        if override.startswith("+"):
            run_config(override)
        else:  # as Hydra reads and sets it, a quarter of a second sooner
            changed = copy.deepcopy(bare)
            (word,) = OverridesParser.create().parse_overrides([override])
            OmegaConf.update(changed, word.key_or_group, word.value())
            checked(changed, RunConfig)
    assert re.search(BAD[override], str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("split=all", r"split=all: unknown; use one of train, valid, test"),
        ("measure.chips=0", r"measure: chips=0: must be a whole number"),
        ("measure.stride=-1", r"measure: stride=-1: must be a whole number"),
        ("nonideality.mismatch_gain=-1", r"nonideality: noise\.mismatch_gain=-1\.0"),
    ],
)
def test_a_wrong_value_of_an_evaluation_is_refused(override: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        checked(compose_config("evaluation", "checkpoint=x", override), EvaluationConfig)


def test_an_evaluation_without_a_checkpoint_is_refused() -> None:
    with pytest.raises(RunError, match=r"checkpoint is not set; set checkpoint=…"):
        checked(compose_config("evaluation"), EvaluationConfig)


def line_of(work: Callable[[], object]) -> str:
    """The one line that the command prints of an error that Hydra found."""

    def main() -> None:
        work()

    with pytest.raises(SystemExit) as caught:
        launch(main)
    message = str(caught.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("trainer.linear.stepz=3", "trainer.linear.stepz"),
        ("hardware.array.windw=64", "hardware.array.windw"),
        ("windw=64", "windw"),
        ("trainer.linear.steps=many", "trainer.linear.steps"),
        ("hardware=memristor", "hardware/memristor"),
        ("trainer.linear.learning_rates.mlp=0", "the keys there are scalers, attention, rest"),
        ("nonideality.write_v=small", "nonideality.write_v"),
    ],
)
def test_an_unknown_key_or_type_on_the_command_line_is_named(override: str, name: str) -> None:
    assert name in line_of(lambda: compose_config("run", override))


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("trainer/mine.yaml", "linear:\n  stepz: 3\n", "stepz"),
        ("model/mine.yaml", "layers: 3\n", "layers"),
        ("hardware/mine.yaml", "defaults:\n  - /preset/hardware/gain_cell_cmos@_here_\narray:\n  windw: 3\n", "windw"),
        ("experiment/mine.yaml", "# @package _global_\nstage:\n  chipz: 3\n", "chipz"),
        ("experiment/mine.yaml", "# @package _global_\nwindw: 3\n", "windw"),
    ],
)
def test_an_unknown_key_in_a_yaml_file_is_named(tmp_path: Path, file: str, text: str, name: str) -> None:
    for path in CONF.rglob("*.yaml"):
        copy = tmp_path / path.relative_to(CONF)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(path.read_text())
    (tmp_path / file).write_text(text)
    group = file.split("/")[0]

    def work() -> None:
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            checked(hydra_compose("run", overrides=[f"{group}=mine"]), RunConfig)

    with pytest.raises((HydraException, OmegaConfBaseException)):
        work()
    assert name in line_of(work)


@pytest.mark.parametrize(
    ("module", "overrides", "message"),
    [
        ("train", ["experiment=shipped", "hardware.array.window=100"], "array.window=100"),
        ("train", ["experiment=shipped", "trainer.linear.stepz=1"], "trainer.linear.stepz"),
        ("train.evaluate", ["checkpoint=/nowhere"], "checkpoint=/nowhere: no model there"),
    ],
)
def test_the_command_ends_with_one_line_and_status_1(
    module: str,
    overrides: list[str],
    message: str,
    command_here: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = command(module, *overrides) if module == "train" else command_here(evaluate.main, *overrides)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]


@pytest.mark.parametrize("name", SCREENS)
def test_help_is_one_screen_and_its_examples_compose(name: str) -> None:
    words = screen(name, CONF)
    assert len(words.splitlines()) <= 26 and "--cfg job" in words
    for example in SCREENS[name].examples:
        compose_config(name, *shlex.split(example.partition("  #")[0]))
