"""`python -m train.study` and its page: what is measured once, what is refused in one line, what a browser shows."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from transformers import AutoTokenizer

import aimc
from aimc.evaluate.study.draws import Draw
from aimc.evaluate.study.runner import Runner
from aimc.hardware import Protection
from tests.conftest import REPOSITORY, small_arrays, tiny_gpt2
from tests.train.conftest import command, compose_config
from train import page, study_run
from train.configs import checked
from train.effects import require_effect
from train.errors import RunError
from train.report_page import report
from train.schema import RunConfig
from train.study import study
from train.study_schema import PageConfig, StudyConfig
from train.study_tables import remedies
from train.study_wandb import log_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
"""What a headless browser is to leave alone."""
HEADLESS = ["--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", "--virtual-time-budget=5000"]
HEADLESS += [f"--disable-{name}" for name in QUIET]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on arrays, and a digital one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "checkpoints" / "shipped" / "digital")
    for name in ("analog", "digital"):
        model = tiny_gpt2(vocab_size=len(tokenizer))
        if name == "analog":
            aimc.convert(model, small_arrays())
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


Lines = Callable[..., list[str]]
Compose = Callable[..., StudyConfig]


@pytest.fixture(scope="module")
def lines(checkpoints: Path, text_folder: Path, cache: Path) -> Lines:
    """Overrides of a small study into a folder."""

    def make(output: Path, *more: str) -> list[str]:
        given = {word.partition("=")[0] for word in more}
        usual = {
            "checkpoint": str(checkpoints / "analog"),
            "output_dir": str(output),
            "data": "text",
            "data.path": str(text_folder),
            "data.cache_dir": str(cache),
            "measure.tokens": "97",
            "measure.context": "16",
            "measure.stride": "16",
            "measure.chips": "2",
            "effects": "[write_v,read_av]",
            "resamples": "50",
            "workers": "1",
            "sample_tokens": "4",
        }
        return [*(f"{name}={value}" for name, value in usual.items() if name not in given), *more]

    return make


@pytest.fixture(scope="module")
def compose(lines: Lines) -> Compose:
    return lambda output, *more: checked(compose_config("study", *lines(output, *more)), StudyConfig)


@pytest.fixture(scope="module")
def done(compose: Compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of every part."""
    folder = tmp_path_factory.mktemp("study")
    study(
        compose(
            folder,
            "rises=[0.05]",
            "few_chips=1",
            "specification={cell.read_v:[0.6,0.9]}",
            "grid={hardware.array.rows:[2,4,5],nonideality.write_v:[0.0,0.05]}",
        )
    )
    return folder


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "study.json").read_text())


def test_every_part_has_results_and_rows(done: Path) -> None:
    found = results_of(done)
    assert list(found["results"]) == ["sensitivity", "tolerance", "specification", "layers", "grid"]
    assert not any("error" in part for part in found["results"].values())
    assert found["failures"] == [] and len(found["results"]["grid"]["refused"]) == 2
    assert len(found["samples"]["rows"]) == 3 and all(row["text"] for row in found["samples"]["rows"])
    assert "train.study" in found["command"] and found["versions"]["torch"] and found["config"]["budget"] == 0.02
    for part in found["results"]:
        head, *rows = (done / f"{part}.csv").read_text().splitlines()
        assert rows and all(len(row) for row in rows), part
        assert any(name in head for name in ("_low", "low")), part


def test_the_same_study_again_measures_nothing_and_says_the_same(done: Path, compose: Compose, tmp_path: Path) -> None:
    settings = compose(tmp_path, f"cache_dir={done / 'points'}", "parts=[sensitivity]")
    study(settings)
    found = results_of(tmp_path)
    assert found["measured"] == 0 and found["read"] == 7
    assert found["results"]["sensitivity"] == results_of(done)["results"]["sensitivity"]


def test_interrupted_it_says_what_is_kept_and_goes_on(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = compose(tmp_path, "parts=[sensitivity]")
    take = Runner._take

    def interrupted(runner: Runner, key: str, draw: Draw) -> None:
        if runner.n_measured == 3:
            raise KeyboardInterrupt
        take(runner, key, draw)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_take", interrupted)
        with pytest.raises(RunError, match=r"interrupted: 3 passes of this run are kept in .*; the same"):
            study(settings)
    study(settings)
    found = results_of(tmp_path)
    # each alone is all but the other, so that is measured once: none, all, and two
    assert (found["read"], found["measured"]) == (3, 1 + 2 + 2 * 2 - 3)


@pytest.mark.slow
def test_a_key_that_interrupts_two_processes(lines: Lines, tmp_path: Path) -> None:
    words = lines(tmp_path, "parts=[sensitivity]", "measure.chips=8", "measure.tokens=1200", "workers=2")
    process = subprocess.Popen(
        [sys.executable, "-m", "train.study", *words], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    )
    points = tmp_path / "points"
    deadline = time.monotonic() + 100
    while len(list(points.rglob("*.json"))) < 4 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=100)
    kept = len(list(points.rglob("*.json")))
    assert process.returncode == 1, said
    assert "interrupted: " in said and f"are kept in {points}" in said and "Traceback" not in said
    study(checked(compose_config("study", *words), StudyConfig))
    found = results_of(tmp_path)
    assert (found["read"], found["measured"]) == (kept, 1 + 8 + 2 * 8 - kept)


def test_a_damaged_point_is_measured_again_and_told(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = compose(tmp_path, "parts=[sensitivity]", "effects=[read_av]")
    study(settings)
    before = results_of(tmp_path)
    damaged = next(iter((tmp_path / "points").rglob("*.json")))
    damaged.write_text(damaged.read_text()[:40])
    capsys.readouterr()
    study(settings)
    found = results_of(tmp_path)
    assert (found["measured"], found["spoilt"]) == (1, [damaged.name])
    assert found["results"] == before["results"]
    assert "1 cached files were damaged and have been measured again" in capsys.readouterr().out


def test_a_digital_model_goes_onto_arrays_first(
    compose: Compose, tmp_path: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"checkpoint={checkpoints / 'digital'}", "parts=[sensitivity]", "hardware.array.rows=8"]
    study(compose(tmp_path, *words))
    told = " ".join(capsys.readouterr().out.split())
    assert "is digital; it goes onto arrays as train.real's row 6_bit" in told
    found = results_of(tmp_path)
    assert found["hardware"]["activation"] == "softmax" and found["hardware"]["array"]["rows"] == 8
    assert len(found["results"]["sensitivity"]["rows"]) == 2 and found["measured"] > 0
    study(compose(tmp_path, *words))
    assert "from an earlier study" in capsys.readouterr().out and results_of(tmp_path)["measured"] == 0
    with pytest.raises(RunError, match="brings its own hardware"):
        require_effect(compose(tmp_path), ["hardware.array.rows=8"])


def test_results_on_one_file_stand_beside_it(tmp_path: Path) -> None:
    (file := tmp_path / "model.gguf").touch()
    assert StudyConfig(checkpoint=str(file)).folder == tmp_path / "study"
    assert StudyConfig(checkpoint=str(tmp_path)).folder == tmp_path / "study"


def test_points_of_a_grid_may_be_trained(compose: Compose, tmp_path: Path) -> None:
    grid = "grid={nonideality.write_v:[0.0,0.1]}"
    training = ["training.steps=4", "training.batch_size=2", "training.learning_rate=0.001"]
    study(compose(tmp_path, "parts=[grid]", "measure.chips=1", "nonideality=none", grid, *training))
    found = results_of(tmp_path)
    assert not found["failures"], found["failures"]
    trained = found["results"]["grid"]
    study(compose(tmp_path, "parts=[grid]", "measure.chips=1", "nonideality=none", grid))
    plain = results_of(tmp_path)["results"]["grid"]
    assert trained["base"]["value"] < plain["base"]["value"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["grid={hardware.array.row:[2]}"], "grid.hardware.array.row: there is no field 'row'"),
        (["grid={hardware.array.rows:4}"], "an axis is a list of values"),
        (["specification={cell.volume:[1]}"], "specification: parameter 'cell.volume'"),
        (["effects=[noise]"], "effects=noise: no such effect"),
        (["checkpoint=nowhere"], "no model there"),
        (["worst=1", "parts=[tolerance]"], "worst=1: the ranking says which those are"),
        (["time_limit_s=0.001"], "time_limit_s=0.001: "),
    ],
)
def test_what_cannot_be_is_one_line(
    compose: Compose, checkpoints: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    with pytest.raises(RunError) as error:
        study(compose(tmp_path, *words))
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["parts=[ranking]"], "parts=ranking: there is no such part"),
        (["rises=[0.0]"], "rises of perplexity above 0"),
        (["training.steps=3"], "only points of a grid are trained"),
        (["training.distillation=0.5", "training.steps=1"], "a study has no teacher"),
        (["grid=3"], "values by path are needed"),
    ],
)
def test_configs_that_cannot_be(compose: Compose, tmp_path: Path, words: list[str], says: str) -> None:
    with pytest.raises(RunError, match=re.escape(says)):
        compose(tmp_path, *words)


def test_a_grid_too_large_for_the_disk(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = ",".join(
        f"nonideality.{name}:{[0.001 * i for i in range(40)]}" for name in ("write_v", "read_qk", "read_av")
    )
    settings = compose(tmp_path, "parts=[grid]", f"grid={{{axes}}}", "time_limit_s=1e12")
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000_000)
    monkeypatch.setattr(study_run.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RunError, match=r"grid: 128,002 measurements need 0\.5 GB in .*, and 0\.1 GB are free"):
        study(settings)


def test_two_studies_into_one_folder(compose: Compose, tmp_path: Path) -> None:
    from train.lock import one_job

    with one_job(tmp_path, print), pytest.raises(RunError, match="another job writes into it"):
        study(compose(tmp_path))


@pytest.mark.slow
def test_wandb_has_tables_config_and_files(done: Path, compose: Compose, tmp_path: Path) -> None:
    """What an offline run holds is read back from its own transaction log."""
    settings = compose(tmp_path, "logger=wandb")
    shutil.copy(done / "study.json", tmp_path)
    results = results_of(done)["results"]
    log_study(settings, results)
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    written = b"".join(file.read_bytes() for file in run.rglob("*") if file.is_file())
    assert all(part.encode() in written for part in results) and b"rise_alone" in written
    assert settings.checkpoint.encode() in written and b"study.json" in written


def test_wandb_never_costs_a_study(done: Path, compose: Compose, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("train.study_wandb._log_run", lambda *_: 1 / 0)
    log_study(compose(tmp_path, "logger=wandb"), results_of(done)["results"])
    assert "logger=wandb: ZeroDivisionError" in caplog.text and str(tmp_path) in caplog.text


def page_of(*words: str) -> PageConfig:
    return checked(compose_config("page", *words), PageConfig)


def test_the_page_is_whole_and_needs_nothing(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoints: Path
) -> None:
    stages = [{"group": "stage", "name": name, "perplexity": value} for name, value in (("digital", 9), ("linear", 99))]
    (checkpoints / "report").mkdir(exist_ok=True)
    (checkpoints / "report" / "results.json").write_text(json.dumps({"rows": stages}))
    report(page_of(f"study={done}", f"output_dir={tmp_path}"))
    text = (tmp_path / "study.html").read_text()
    for words in (
        "costs most",
        "Stages",
        "How large each may be",
        "Energy front",
        "stay digital",
        "What it writes",
        "train.study",
        "torch",
    ):
        assert words in text, words
    body = text[text.index("<body>") :]
    assert "http" not in re.sub(r'"(type|colorscale|template)".*?</script>', "", body, flags=re.DOTALL)
    names = {"stages", "sensitivity", "chips", "front", "layers", "heads", "kept_digital", "grid"}
    assert names <= {path.stem for path in (tmp_path / "charts").glob("*.png")}
    assert names <= {path.stem for path in (tmp_path / "charts").glob("*.csv")}
    assert str(tmp_path / "study.html") in "".join(capsys.readouterr().out.split("\n"))
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    pytest.importorskip("plotly")
    where = [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "study.html").as_uri()]
    shown = subprocess.run(
        [CHROMIUM, *HEADLESS, "--window-size=390,2000", "--dump-dom", *where],
        capture_output=True,
        text=True,
        timeout=60,
    )
    n_charts = text.count('class="chart"')
    assert f'data-drawn="{n_charts}"' in shown.stdout and n_charts >= 8
    assert len(re.findall(r'class="plot-container', shown.stdout)) == n_charts
    assert 'class="no-script"' not in shown.stdout


def test_what_keeps_a_model_within_its_budget_can_be_copied() -> None:
    found = {"skip_layers": [1, 2], "protection": [4, 16]}
    layers, tokens = remedies(found)
    assert layers == "aimc.convert(model, hardware, skip_layers=[1, 2])"
    assert checked(compose_config("run", *tokens.split()), RunConfig).hardware.protection == Protection(
        n_sink=4, n_recent=16
    )
    assert remedies(found | {"skip_layers": []}) == []
    assert remedies(found | {"skip_layers": None}) == [tokens]


def test_a_page_over_missing_results(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match="there are no results") as error:
        report(page_of(f"study={tmp_path}"))
    assert "\n" not in str(error.value)
    found = results_of(done)
    found["results"] = {"sensitivity": found["results"]["sensitivity"]}
    found["parts"] = ["sensitivity", "tolerance", "layers"]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.json").write_text(json.dumps(found))
    report(page_of(f"study={tmp_path}"))
    assert "tolerance, layers not measured yet" in " ".join(capsys.readouterr().out.split())
    text = (tmp_path / "study.html").read_text()
    assert "Not measured yet: tolerance, layers" in text and "<h2>Studies</h2>" in text
    assert (tmp_path / "charts" / "b-chips.png").exists()
    (tmp_path / "a" / "study.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        report(page_of(f"study={tmp_path}"))
    assert page.missing_parts(found) == ["tolerance", "layers"]


@pytest.mark.parametrize(("name", "plugin"), [("basic", ""), ("joblib", "joblib"), ("slurm", "submitit")])
@pytest.mark.parametrize("entry", ["run", "study", "evaluation"])
def test_launchers(entry: str, name: str, plugin: str) -> None:
    if plugin:
        pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        config = hydra_compose(entry, overrides=[f"launcher={name}"], return_hydra_config=True)
    assert plugin in config.hydra.launcher._target_.lower()
    assert "launcher" not in config


@pytest.mark.slow
def test_jobs_side_by_side_have_folders_of_their_own(lines: Lines, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = lines(tmp_path / "out", "parts=[sensitivity]", "effects=[read_av]", f"cache_dir={tmp_path / 'points'}")
    done = command("train.study", "-m", "launcher=joblib", "measure.seed=0,5", *words, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["measure.seed=0", "measure.seed=5"]
    one, other = (results_of(tmp_path / "out" / f"measure.seed={seed}") for seed in (0, 5))
    assert one["results"]["sensitivity"]["per_chip"] != other["results"]["sensitivity"]["per_chip"]
