"""A stage owns its facts: everything that needs one reads it there, and importing them is light."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from omegaconf import OmegaConf
from transformers import GPT2Config

import aimc
from tests.conftest import REPOSITORY
from train import pipeline
from train.__main__ import main
from train.errors import RunError
from train.pretrained import config_of, load_digital
from train.record import settings_of
from train.report import last_analog
from train.run import Run
from train.schema import RunConfig, StageConfig
from train.stages import RECIPES, ROUTES, STAGES, SWITCHES
from train.stages.stage import LEVELS, NOISE
from train.tokens import prepare
from train.windows import placed

SHIPPED = REPOSITORY / "checkpoints" / "shipped"


def test_facts_are_light() -> None:
    code = "import sys, train.schema; print([m for m in ('torch', 'transformers', 'aihwkit') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_fact_is_one_that_can_be_used() -> None:
    config = OmegaConf.structured(RunConfig)
    assert len({stage.folder for stage in STAGES.values()}) == len(STAGES)
    assert {name for route in ROUTES.values() for name in route} == set(STAGES)
    for route in ROUTES.values():
        for place, (name, stage) in enumerate(route.items()):
            assert stage.name == name and (stage.needs is None or list(route).index(stage.needs) < place)
            assert list(route) == [name for name in STAGES if name in route]
            assert all(recipe in route for recipe in stage.recipes)
    for name, stage in STAGES.items():
        assert stage.describe.endswith(".") and stage.fits in (None, LEVELS, NOISE)
        for setting in stage.depends_on:
            assert OmegaConf.select(config, setting, default=None) is not None or setting == "model", setting
        assert all(recipe in STAGES and recipe in config.trainer for recipe in stage.recipes)
        assert (REPOSITORY / "conf" / "stage" / f"{name}.yaml").exists()
    assert set(RECIPES) == {"digital", "match", "linear", "finetune", "joint", "further", "recalibrate"}
    assert set(SWITCHES) == {"with_control", "with_softmax", "with_static"}


def test_the_pipeline_runs_what_its_switches_say() -> None:
    assert StageConfig().wanted() == ["digital", "control", "match", "finetune"]
    assert StageConfig(recipe="published").wanted() == ["digital", "control", "linear", "adapt", "finetune"]
    for route, stages in ROUTES.items():
        everything = StageConfig(recipe=route, **dict.fromkeys(SWITCHES, True))
        assert everything.wanted() == [name for name, stage in stages.items() if not stage.is_alone]
    assert StageConfig(name="linear").stage("linear").recipes == ("linear",)  # also where the route has none
    assert all(StageConfig(name=name).wanted() == [name] for name in ("joint", "further", "recalibrate"))
    assert StageConfig(name="evaluate").wanted() == []


def test_a_new_stage_is_one_file_one_name_and_one_yaml(tmp_path: Path) -> None:
    """On a copy: a file, its name in the registry, a YAML file, and command line, recipe and switch are there."""
    import shutil

    for name in ("train", "conf", "aimc"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    stages = tmp_path / "train" / "stages"
    text = (stages / "finetune.py").read_text()
    for old, new in (('name="finetune"', 'name="polish"'), ('folder="finetuned"', 'folder="polished"')):
        text = text.replace(old, new)
    text = text.replace('needs="match"', 'needs="finetune"').replace('recipes=("finetune",)', 'recipes=("polish",)')
    text = text.replace("import NOISE, Stage, StageResult", "import NOISE, Stage, StageResult, Switch")
    text = text.replace("data_order=1,", 'data_order=3,\n    switch=Switch("with_polish", default=False),')
    (stages / "polish.py").write_text(text)
    registry = (stages / "__init__.py").read_text()
    registry = registry.replace("recalibrate, softmax\n", "polish, recalibrate, softmax\n")
    registry = registry.replace("finetune, joint, further", "finetune, polish, joint, further")
    (stages / "__init__.py").write_text(registry)
    (tmp_path / "conf" / "stage" / "polish.yaml").write_text("name: polish\n")
    words = ["stage=polish", "stage.with_polish=true", "trainer.polish.steps=7", "--cfg", "job"]
    done = subprocess.run([sys.executable, "-m", "train", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = OmegaConf.create(done.stdout)
    assert config.stage.name == "polish" and config.trainer.polish.steps == 7
    code = "from train.schema import StageConfig; print(StageConfig(with_polish=True).wanted())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['digital', 'control', 'match', 'finetune', 'polish']"


@pytest.mark.parametrize(
    ("stages", "last"),
    [
        (["digital", "control"], None),
        (["digital", "linear"], "linear"),
        (["linear", "adapt", "finetune"], "finetune"),
        (["joint", "digital", "finetune"], "joint"),
    ],
)
def test_the_last_analog_model_may_be_the_joint_one(stages: list[str], last: str | None) -> None:
    assert last_analog(stages) == last


@pytest.fixture(scope="module")
def settings(
    tmp_path_factory: pytest.TempPathFactory, compose: Callable[..., RunConfig]
) -> Callable[..., dict[str, dict[str, object]]]:
    """What each stage of the shipped run would depend on, by stage."""
    folder = tmp_path_factory.mktemp("settings")
    first = compose(folder)
    data = prepare(first.data, str(SHIPPED / "digital"), 32)

    def make(*overrides: str) -> dict[str, dict[str, object]]:
        config = compose(folder, f"previous={SHIPPED}", *overrides)
        run = Run(
            config=config,
            data=data,
            context=32,
            measurement=placed(config.measure, config.data, GPT2Config(n_positions=32)),
            stage=STAGES["digital"],
            say=lambda what: None,
        )
        return {name: settings_of(replace(run, stage=config.stage.stage(name))) for name in ROUTES["published"]}

    return make


@pytest.fixture(scope="module")
def unchanged(settings: Callable[..., dict[str, dict[str, object]]]) -> dict[str, dict[str, object]]:
    return settings()


@pytest.mark.parametrize(
    ("override", "depending"),
    [
        ("stage.adapt_iterations=3", {"adapt"}),
        ("stage.adapt_damping=0.5", {"adapt"}),
        ("stage.adapt_tolerance=0.1", {"adapt"}),
        ("stage.start=published", {"linear"}),
        ("stage.calibration_batches=2", {"softmax", "linear", "adapt", "joint"}),
        ("trainer.joint.steps=5", {"joint"}),
        ("trainer.finetune.steps=5", {"control", "finetune"}),
        ("trainer.control_dropout=false", {"control"}),
        ("trainer.control_dropout=true", set()),  # as by default
        ("trainer.recalibrate.noise.chip=3", {"recalibrate"}),
        ("static.preset=reram", {"joint"}),
        ("trainer.further.steps=5", {"further"}),
        ("nonideality.read_av=0.1", set()),
        ("hardware.array.rows=16", {"softmax", "linear", "adapt", "finetune", "joint", "further"}),
        ("model.dropout=0.2", {"digital"}),
        ("measure.tokens=256", set()),
        ("measure.chips=3", set()),
    ],
)
def test_a_setting_belongs_to_the_stages_that_use_it(
    settings: Callable[..., dict[str, dict[str, object]]],
    unchanged: dict[str, dict[str, object]],
    override: str,
    depending: set[str],
) -> None:
    changed = settings(override)
    assert {name for name in unchanged if unchanged[name] != changed[name]} == depending


def test_the_noise_shapes_what_full_scales_are_fitted_for_it(
    settings: Callable[..., dict[str, dict[str, object]]],
) -> None:
    before, after = (settings("hardware.array.full_scales=head", *more) for more in ((), ("nonideality.read_av=0.1",)))
    assert {name for name in before if before[name] != after[name]} == {"finetune", "further"}
    assert {name for name in before if "fits" in before[name]} == {"finetune", "further"}


@pytest.mark.parametrize("stage", ["linear", "finetuned", "joint"])
def test_a_converted_folder_is_no_digital_model(stage: str, tmp_path: Path, compose: Callable[..., RunConfig]) -> None:
    folder = str(SHIPPED / stage)
    for refused in (lambda: load_digital(folder), lambda: config_of(folder)):
        with pytest.raises(
            RunError, match=rf"model\.source=.*{stage}: a converted model.*give the folder of the digital"
        ):
            refused()
    with pytest.raises(RunError, match="a converted model"):
        pipeline.execute(compose(tmp_path, f"model.source={folder}"), lambda what: None)


def test_a_converted_folder_is_no_digital_model_of_a_whole_chip() -> None:
    pytest.importorskip("aihwkit")
    from train.schema import WholeChipConfig
    from train.whole_chip import measure

    with pytest.raises(RunError, match=r"digital=.*finetuned: a converted model"):
        measure(WholeChipConfig(checkpoint=str(SHIPPED / "joint"), digital=str(SHIPPED / "finetuned")))


def test_without_a_network_a_hub_name_is_told_shortly_on_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command_here: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    with socket.socket() as unused:  # nobody listens there
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        started = time.perf_counter()
        done = command_here(main, "model.source=nobody/nothing", f"output_dir={tmp_path}")
    assert time.perf_counter() - started < 60
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip() == (
        "error: model.source=nobody/nothing: no model there: no such folder, the hub does not answer, and no earlier"
        " download holds it; check the path or the network"
    )


def test_shipped_records_are_read() -> None:
    for stage in STAGES.values():
        if (SHIPPED / stage.folder).exists():
            record = json.loads((SHIPPED / stage.folder / "stage.json").read_text())
            assert record["stage"] == stage.name and record["perplexity"]
    assert aimc.from_pretrained(SHIPPED / STAGES["linear"].folder) is not None
