"""What a command line may not do: call functions, name what has no effect, ask for what no machine has."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tests.conftest import REPOSITORY
from tests.test_readme import COMPOSED
from tests.train.conftest import command, compose_config
from train import door
from train.configs import checked
from train.effects import require_effect
from train.errors import RunError
from train.schema import EvaluationConfig, RunConfig

CONF = REPOSITORY / "conf"
FIELDS = ("seed=", "output_dir=", "implausible=")


def with_hydra(*overrides: str) -> None:
    """Compose as the command line does, Hydra's own part included."""
    door.guard()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra_compose("run", overrides=list(overrides), return_hydra_config=True)


@pytest.mark.parametrize(
    "override",
    [
        "+hydra.callbacks.x={_target_: shutil.copyfile, src: a, dst: b}",
        "hydra.callbacks={x: {a: 1}}",
        "hydra.launcher._target_=os.mkdir",
        "+hydra.launcher.x={_target_: os.mkdir}",
        "hydra.sweeper._target_=pathlib.Path.touch",
        "+model.x={_target_: os.mkdir, path: /tmp/x}",
        "+hydra.job_logging.handlers.x={'()': os.mkdir, path: /tmp/x}",
        "+hydra.job_logging.handlers.x={class: os.mkdir, path: /tmp/x}",
        "+hydra.hydra_logging.formatters.x={'()': os.mkdir}",
    ],
)
def test_nothing_is_called_that_a_config_names(override: str) -> None:
    with pytest.raises((HydraException, OmegaConfBaseException)):
        with_hydra(override)


def test_log_handlers_are_the_librarys_own() -> None:
    """logging.config calls whatever stands under `()` or `class`."""
    for handler in ({"()": "os.mkdir"}, {"class": "os.mkdir"}):
        with pytest.raises(HydraException, match=r"^hydra\.job_logging\.handlers\.x\..*must not name what is called"):
            door.require_harmless({"hydra": {"job_logging": {"handlers": {"x": handler}}}})
    door.require_harmless({"hydra": {"job_logging": {"handlers": {"x": {"class": "logging.StreamHandler"}}}}})


def test_what_hydra_itself_needs_is_let_through() -> None:
    with_hydra()
    with_hydra("hydra/launcher=basic", "hydra.sweep.dir=x", "hydra.job.num=1")


@pytest.mark.parametrize("where", [pytest.param("command line", marks=pytest.mark.slow), "yaml"])
def test_a_callback_does_not_run(where: str, tmp_path: Path) -> None:
    call = f"{{_target_: os.mkdir, path: '{tmp_path / 'ran'}'}}"
    if where == "yaml":
        (tmp_path / "conf" / "experiment").mkdir(parents=True)
        (tmp_path / "conf" / "experiment" / "evil.yaml").write_text(
            f"# @package _global_\nhydra:\n  callbacks:\n    x: {call}\n"
        )
        words = [f"--config-dir={tmp_path / 'conf'}", "experiment=evil"]
    else:
        words = [f"+hydra.callbacks.x={call}"]
    done = command("train", *words, f"output_dir={tmp_path / 'out'}")
    assert done.returncode == 1 and not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()
    assert done.stderr.count("\n") == 1 and "error: hydra.callbacks.x." in done.stderr, done.stderr


BASE = cache(lambda: compose_config("run"))


def run_config(*overrides: str) -> RunConfig:
    """Composed by Hydra where a group is chosen; single fields are put into what is composed once."""
    fields = [word for word in overrides if "." in word.partition("=")[0] or word.startswith(FIELDS)]
    if "${" in "".join(overrides) or len(fields) < len(overrides):
        return checked(compose_config("run", *overrides), RunConfig)
    return checked(OmegaConf.merge(BASE(), OmegaConf.from_dotlist(list(overrides))), RunConfig)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["data.path=x"], "data.path=x: this would have no effect: the text is another; set data=text"),
        (["model.source=x", "model.n_layer=3"], "model.n_layer=3: this would have no effect: model.source brings"),
        (["data.column=body"], "data.column=body: this would have no effect"),
        (["stage=evaluate", "hardware.array.rows=32"], "rows=32: this would have no effect: the models are measured"),
        (["trainer.match.noise.scale=1"], "scale=1: this would have no effect: blocks are matched one by one"),
        (["trainer.match.dropout=false"], "dropout=false: this would have no effect: blocks are matched"),
        (["data.vocab_size=300"], "data.vocab_size=300"),
        (["data.generated.tokens=5"], "data.generated.tokens=5"),
        (["static.preset=reram"], "static.preset=reram"),
        (["trainer.linear.steps=5"], "no stage of this pipeline trains by trainer.linear"),
        (["recipe=published", "stage.fit_sequences=8"], "this route matches no outputs"),
        (["recipe=published", "stage.match_patience=8"], "this route matches no outputs"),
        (["trainer.match.steps=0", "stage.match_patience=8"], "no steps are made layer by layer"),
        (["stage.adapt_damping=0.5"], "this route does not adapt"),
        (["trainer.finetune.noise.every=5"], "set trainer.finetune.noise.scale"),
        (["trainer=smoke", "trainer.finetune.temperature=2"], "set trainer.finetune.distillation"),
        (["logger.project=mine"], "set logger=wandb"),
        (["stage=recalibrate", "hardware=igzo"], "recalibrated on the hardware that it was trained on"),
        (["stage=recalibrate", "hardware.array.rows=32"], "recalibrated on the hardware that it was trained on"),
        (["experiment=shipped", "trainer.control_dropout=true"], "this pipeline trains no control"),
    ],
)
def test_a_setting_without_effect_is_refused(overrides: list[str], name: str) -> None:
    with pytest.raises(RunError) as caught:
        require_effect(run_config(*overrides), overrides)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=text", "data.path=x"],
        ["model=tiny", "model.n_layer=3", "data.vocab_size=300"],
        ["recipe=published", "trainer.linear.steps=5", "stage.start=published", "stage.adapt_iterations=3"],
        ["stage=digital", "trainer.linear.steps=5"],
        ["data.path=null"],
        ["stage=recalibrate", "hardware.backend=eager"],
        ["stage.with_static=true", "static.preset=reram", "trainer.joint.steps=5"],
    ],
)
def test_a_setting_with_effect_is_taken(overrides: list[str]) -> None:
    require_effect(run_config(*overrides), overrides)


def test_an_evaluation_is_looked_at_too() -> None:
    overrides = ["checkpoint=x", "task_limit=5"]
    with pytest.raises(RunError, match="task_limit=5: this would have no effect: there are no tasks"):
        require_effect(checked(compose_config("evaluation", *overrides), EvaluationConfig), overrides)


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line, words in COMPOSED.items() if words[1] == "train"])
def test_every_documented_command_has_only_settings_with_effect(line: str) -> None:
    words = [word.partition(",")[0] for word in COMPOSED[line][2:] if word != "-m"]
    require_effect(run_config(*words), words)


@pytest.mark.slow
def test_the_command_refuses_it() -> None:
    done = command("train", "data.path=x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: data.path=x: this would have no effect") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("seed=-1", "seed=-1: must be at least 0"),
        ("seed=4294967296", "seed=4294967296: must be at least 0 and at most"),
        ("data.vocab_size=1000000000", "data.vocab_size=1000000000: must be .* at most"),
        (f"model.n_layer={10**30}", "model.n_layer=1000.*: must be at least 1 and at most 1000"),
        ("model.n_embd=1000000000000", "model.n_embd="),
        ("model.n_positions=100000000000", "model.n_positions="),
        ("trainer.linear.weight_decay=nan", r"trainer\.linear\.weight_decay=nan: must be at least 0 and finite"),
        ("trainer.linear.weight_decay=inf", r"trainer\.linear\.weight_decay=inf"),
        (
            "trainer.linear.weight_decay=1e30",
            r"weight_decay=1e\+30: must be at most 1e\+12",
        ),
        (f"trainer.linear.steps={10**20}", r"trainer\.linear\.steps=1000"),
        ("hardware.cell.supply_v=1e30", r"^hardware\.cell\.supply_v=1e\+30: no machine .* implausible=true"),
        ("nonideality.write_v=1e30", r"^nonideality\.write_v=1e\+30: no machine of this kind"),
        ("hardware.noise.read_qk=1e4", r"^hardware\.noise\.read_qk=10000: "),
        ("hardware.leakage.tau_s=1e-300", r"^hardware\.leakage\.tau_s=1e-300: "),
        ("hardware.cell.coefficients=[0,1e300]", r"^hardware\.cell\.coefficients=1e\+300: "),
        ("hardware.array.window=640000000000", r"^hardware\.array\.window=6\.4e\+11: "),
        ("hardware.cell=${seed}", r"hardware: cell=0: .*this field is a Cell"),
        ("trainer.linear=${output_dir}", r"trainer\.linear='checkpoints/run': must be Recipe"),
        ("output_dir=''", "output_dir='': must be a text"),
    ],
)
def test_what_no_machine_has_is_refused_by_name(override: str, name: str) -> None:
    with pytest.raises(RunError, match=name):
        run_config(override)


def test_a_path_that_cannot_be_printed_is_refused() -> None:
    with pytest.raises(RunError, match=r"output_dir='a\\x00': must be a text, of characters that can be printed"):
        RunConfig(output_dir="a\0")


def test_what_is_meant_is_taken() -> None:
    config = run_config("hardware.cell.supply_v=500", "implausible=true")
    assert config.hardware.cell.supply_v == 500


@pytest.mark.parametrize("override", ["model=null", pytest.param("seed=${nope}", marks=pytest.mark.slow)])
def test_a_group_that_is_none_is_one_line(override: str, tmp_path: Path) -> None:
    done = command("train", override)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
