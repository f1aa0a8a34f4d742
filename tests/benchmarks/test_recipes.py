"""The table of recipes: every row is a command that there is, of as many steps as any other; intervals, tokens and
losses are right."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.recipe_rows import (
    BOTH,
    CONTROL,
    DIGITAL,
    FULL,
    MODELS,
    PUBLISHED_ROUTE,
    ROWS,
    Plan,
    overrides_of,
)
from benchmarks.recipe_tables import noise_table, read_results, table, tokens_table, tokens_taken
from benchmarks.recipes import measured
from benchmarks.side_by_side import Outcome
from tests.conftest import REPOSITORY
from tests.train.conftest import compose_config
from train.configs import checked
from train.schema import RunConfig

DATA = REPOSITORY.parent / "shared" / "data"


def plan_of(model: str, folder: Path) -> Plan:
    subject = MODELS[model]
    return Plan(
        model=model,
        folder=folder,
        steps=240,
        digital_steps=subject.digital_steps,
        tokens=subject.tokens,
        teacher=subject.teacher,
        text=folder / "text" if "text" in subject.needs else None,
        source=folder / "source" if "source" in subject.needs else None,
    )


def cells_of(shown: Any) -> list[list[str]]:
    return [list(column.cells) for column in shown.columns]


@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=pytest.mark.slow if name == "tinystories" else ()) for name in MODELS]
)
def test_every_row_is_a_run_of_as_many_steps(model: str, tmp_path: Path) -> None:
    plan, subject = plan_of(model, tmp_path), MODELS[model]
    for name, row in ((name, ROWS[name]) for name in (ROWS if model == "shipped" else subject.rows)):
        config = checked(compose_config("run", *overrides_of(name, 3, plan)), RunConfig)
        stages = [config.stage.stage(stage) for stage in row.stages]
        recipes = {name: config.trainer.recipe(name) for stage in stages for name in stage.recipes}
        if name == DIGITAL:
            assert recipes[DIGITAL].steps == subject.digital_steps
            continue
        assert sum(recipe.steps for recipe in recipes.values()) == 240, name
        assert {recipe.batch_size for recipe in recipes.values()} == {subject.batch_size}, name
        assert config.seed == 3 and config.folder.is_relative_to(tmp_path / "seed_3")
        assert config.data.is_generated == (subject.writes or "it wrote half" in name)
        assert not subject.writes or config.data.generated.tokens == 240 * subject.batch_size * 256
        hardware = config.hardware
        both = set(BOTH) <= set(row.overrides)
        assert hardware.normaliser.is_on == (both or "all but signed queries" in name or "with a normaliser" in name)
        assert (hardware.input_dac.coding == "sign_magnitude") == (
            both or "all but the normaliser" in name or "with signed queries" in name
        )
        if row.recipe == "direct" and name != CONTROL:
            assert recipes["match"].steps == (40 if row.has_start else 0)
        assert stages[0].needs == DIGITAL and config.previous == str(tmp_path / "seed_3")


def test_each_left_out_row_differs_from_the_full_one_in_one_thing(tmp_path: Path) -> None:
    plan = plan_of("shipped", tmp_path)
    full = set(overrides_of(FULL, 1, plan))
    left_out = {name: set(overrides_of(name, 1, plan)) ^ full for name in ROWS if "all but" in name}
    subjects = {
        name: {word.rpartition(".")[0] or word.partition("=")[0] for word in words} for name, words in left_out.items()
    }
    assert {name: found - {"output_dir"} for name, found in subjects.items()} == {
        "… all but the normaliser": {"hardware.normaliser", "hardware.normaliser.counter"},
        "… all but signed queries": {"hardware.input_dac"},
        "… all but distillation": {"trainer.finetune"},
        "… all but training beyond attention": {"trainer.finetune.learning_rates"},
    }


def test_more_words_of_the_command_line_have_the_last_word(tmp_path: Path) -> None:
    plan = replace(
        plan_of("shipped", tmp_path), words=("trainer.finetune.learning_rate=0.5",), device="cuda", backend="eager"
    )
    config = checked(compose_config("run", *overrides_of(FULL, 1, plan)), RunConfig)
    assert config.trainer.finetune.learning_rate == 0.5
    assert (config.trainer.device, config.hardware.backend) == ("auto", "eager")
    taught = overrides_of("… and the control as teacher", 1, plan)
    assert checked(compose_config("run", *taught), RunConfig).trainer.finetune.teacher == CONTROL
    assert plan.waits_for("… and the control as teacher") == (DIGITAL, CONTROL)
    assert plan.waits_for(FULL) == (DIGITAL,) == plan.waits_for(CONTROL)
    assert replace(plan, teacher=CONTROL).waits_for(FULL) == (DIGITAL, CONTROL)
    assert replace(plan, noise_chips=2).waits_for(FULL) == (DIGITAL, CONTROL), "its chips are divided by it"


def test_words_for_the_control_are_its_own(tmp_path: Path) -> None:
    plan = replace(plan_of("shipped", tmp_path), control_words=("trainer.finetune.dropout=true",))
    found = {
        name: checked(compose_config("run", *overrides_of(name, 1, plan)), RunConfig).trainer.finetune.dropout
        for name in (CONTROL, FULL)
    }
    assert found == {CONTROL: True, FULL: False}


def row_of(*values: float, **other: Any) -> dict[str, Any]:
    return {"perplexity": {str(i): value for i, value in enumerate(values)}, **other}


def test_intervals_are_those_of_students_t() -> None:
    results = {
        DIGITAL: {seed: row_of(40.0) for seed in (1, 2, 3)},
        CONTROL: {seed: row_of(50.0) for seed in (1, 2, 3)},
        PUBLISHED_ROUTE: {1: row_of(9.0, 51.0), 2: row_of(9.0, 52.0), 3: row_of(9.0, 53.0)},
    }
    cells = cells_of(table(results, "some"))
    assert cells[0] == [DIGITAL, CONTROL, PUBLISHED_ROUTE]
    assert cells[2] == ["–", "–", "9.0 ± 0.0"]
    assert cells[3] == ["40.00 ± 0.00", "50.00 ± 0.00", "52.00 ± 2.48"]  # 4.303 · 1 / √3
    assert cells[4] == ["1", "1.2500 ± 0.0000", "1.3000 ± 0.0621"]
    assert cells[5] == ["0.8000 ± 0.0000", "1", "1.0400 ± 0.0497"]


def test_tokens_are_counted_up_to_the_first_point_that_is_near_enough() -> None:
    results = {
        CONTROL: {seed: row_of(0.0, curve=[[10**6, 70.0], [2 * 10**6, 50.0]]) for seed in (1, 2)},
        PUBLISHED_ROUTE: {
            1: row_of(0.0, curve=[[10**6, 60.0], [2 * 10**6, 52.5], [3 * 10**6, 51.5]]),
            2: row_of(0.0, curve=[[10**6, 60.0], [2 * 10**6, 52.0], [4 * 10**6, 51.5]]),
        },
        FULL: {seed: row_of(0.0, curve=[[10**6 // 2, 52.5], [10**6, 51.0]]) for seed in (1, 2)},
    }
    assert tokens_taken(results, PUBLISHED_ROUTE, 0.05) == {1: 2 * 10**6, 2: 2 * 10**6}
    assert tokens_taken(results, PUBLISHED_ROUTE, 0.02) == {1: None, 2: None}
    cells = cells_of(tokens_table(results))
    assert [row[1] for row in cells] == [FULL, "0.50 / 0.50", "4.0 ± 0.0", "1.00 / 1.00", "> 3.0, > 4.0"]


def test_noise_is_told_by_mean_worst_chip_and_loss() -> None:
    noise = {CONTROL: [50.0], "clean": [55.0], "typical": [55.0, 65.0]}
    results = {CONTROL: {1: row_of(49.0)}, FULL: {1: row_of(54.0, noise=noise)}}  # of a longer text
    cells = cells_of(noise_table(results))
    assert [row[0] for row in cells] == [FULL, "1.1000 (1.1000)", "1.2000 (1.3000)", "0.087"]  # ln(60 / 55)


def test_results_of_another_plan_are_not_continued(tmp_path: Path) -> None:
    plan = plan_of("shipped", tmp_path)
    file, facts = tmp_path / "recipes.json", json.loads(json.dumps(plan.facts()))
    assert read_results(file, facts) == {}
    file.write_text(json.dumps({"plan": facts, "rows": {CONTROL: {"1": row_of(5.0)}}}))
    assert read_results(file, facts) == {CONTROL: {1: row_of(5.0)}}
    for name, other in (("steps", 7), ("noise_tokens", 7), ("text", "elsewhere")):
        with pytest.raises(SystemExit, match=rf"rows of another plan \({name} .* there and {other} here\).*--folder"):
            read_results(file, {**facts, name: other})
    for added in ("noise_tokens", "control_words", "text", "source"):  # as plans once were
        del facts[added]
    file.write_text(json.dumps({"plan": facts, "rows": {CONTROL: {"1": row_of(5.0)}}}))
    facts = json.loads(json.dumps(plan.facts()))
    assert read_results(file, facts) == {CONTROL: {1: row_of(5.0)}}
    whole = {name: {"1": row_of(5.0)} for name in (DIGITAL, CONTROL)}
    file.write_text(json.dumps({"plan": facts, "rows": whole}))
    outcome = Outcome({}, None)  # nothing is run
    assert measured(plan, [], range(1, 2), 1) == ({name: {1: row_of(5.0)} for name in whole}, outcome)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_table_is_measured_and_continued(model: str, tmp_path: Path) -> None:
    texts = {"peps": DATA / "text" / "peps", "tinystories": DATA / "text" / "tinystories"}
    source = DATA / "models" / "TinyStories-656K"
    words = ["--model", model, "--steps", "4", "--seeds", "1", "--tokens", "600", "--curve-every", "2", "--jobs", "1"]
    if model in texts:
        if not texts[model].exists():
            pytest.skip("its text is part of the shared data, which is not beside this checkout")
        (tmp_path / "text").mkdir()
        for file in texts[model].glob("*.txt"):
            (tmp_path / "text" / file.name).write_text(file.read_text(encoding="utf-8")[:200_000], encoding="utf-8")
        words += ["--text", str(tmp_path / "text"), "--digital-steps", "4" if model == "peps" else "0"]
    words += ["--source", str(source)] if model == "tinystories" else []
    sizes = [f"trainer.{stage}.batch_size=2" for stage in ("digital", "match", "linear", "finetune")]
    settings = [*sizes, f"data.cache_dir={tmp_path / 'cache'}", "data.generated.batch_size=16"]
    words += [
        "--noise",
        "2",
        "--noise-tokens",
        "400",
        "--rows",
        PUBLISHED_ROUTE,
        "--folder",
        str(tmp_path / "out"),
        "--set",
        *settings,
    ]
    command = [sys.executable, "-m", "benchmarks.recipes", *words]
    first = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    found = json.loads((tmp_path / "out" / "recipes.json").read_text("utf-8"))["rows"]
    assert list(found)[:3] == [DIGITAL, CONTROL, PUBLISHED_ROUTE] and len(found) == 5
    assert [tokens for tokens, _ in found[CONTROL]["1"]["curve"]] == [1024, 2048]
    assert len(found[FULL]["1"]["noise"]["typical"]) == 2
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 0 and "seed 1" not in again.stderr and again.stdout == first.stdout
