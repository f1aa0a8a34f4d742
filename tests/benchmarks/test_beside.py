"""The models beside attention: every command line composes, all train on as many tokens, and the table holds them."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import beside, side_by_side
from benchmarks.beside import (
    ATTENTION,
    CELLS,
    CONTROL,
    DIGITAL,
    MODELS,
    NONE,
    Effort,
    Place,
    main,
    overrides_of,
    stages_of,
    table,
)
from tests.train.conftest import compose_config
from train.configs import checked
from train.schema import RunConfig

QUICK = (("gpt2_tiny", None), ("stripedhyena_tiny", None), ("mamba_tiny", "some/folder"))
"""All of its layers attention, some of them, and none."""


@pytest.mark.parametrize(
    ("model", "text"),
    [
        pytest.param(model, text, marks=() if (model, text) in QUICK else pytest.mark.slow)
        for model in MODELS
        for text in (None, "some/folder")
    ],
)
def test_every_model_is_trained_on_as_many_tokens(model: str, text: str | None, tmp_path) -> None:  # type: ignore[no-untyped-def]
    effort, stages = Effort(steps=7, matched=2, extra=5), stages_of(model)
    extra = {"control": 0, "cells": 0}
    for stage in stages:
        by_layer = MODELS[model] == ATTENTION and stage.analog
        words = overrides_of(model, 3, tmp_path, effort, text, by_layer=by_layer)
        config = checked(compose_config("run", f"stage={stage.name}", *words), RunConfig)
        assert config.data.context == config.model.n_positions == 256 and config.data.vocab_size == 2048
        assert config.data.text_kind == ("embedded" if text is None else "text") and config.seed == 3
        recipes = [config.trainer.recipe(name) for name in stage.recipes]
        steps = sum(recipe.steps for recipe in recipes)
        assert {recipe.batch_size for recipe in recipes} == {8}
        assert not any(recipe.distillation for recipe in recipes if recipe.steps)
        if stage.name == "digital":
            assert steps == effort.steps
        else:
            extra["control" if stage.name == "control" else "cells"] += steps
    assert extra == {"control": 5, "cells": 0 if MODELS[model] == NONE else 5}


def test_the_table_has_ratios_seed_by_seed() -> None:
    rows = [
        {"model": "gpt2_tiny", "seed": seed, "perplexity": {DIGITAL: 9.0, CONTROL: 2.0 * seed, CELLS: 3.0 * seed}}
        for seed in (1, 2)
    ]
    rows.append({"model": "mamba_tiny", "seed": 1, "perplexity": {DIGITAL: 8.0, CONTROL: 7.0}})
    cells = [list(column.cells) for column in table(rows, Effort(), "embedded").columns]
    assert cells[0] == ["gpt2_tiny", "mamba_tiny"] and cells[-1] == ["1.500 ± 0.000", "–"]
    assert cells[1] == ["9.00 ± 0.00", "8.00"] and cells[4][1] == "–"


def test_where_it_computes_is_said_to_the_pipeline(tmp_path: Path) -> None:
    words = overrides_of("gpt2_tiny", 1, tmp_path, Effort(), None, Place("cuda", "eager"))
    config = checked(compose_config("run", "stage=match", *words), RunConfig)
    assert config.trainer.device == "auto" and config.hardware.backend == "eager"
    config = checked(
        compose_config("run", "stage=match", *overrides_of("gpt2_tiny", 1, tmp_path, Effort(), None)), RunConfig
    )
    assert config.trainer.device == "cpu" and config.hardware.backend == "auto"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was run, by a stand-in, in threads in place of processes; seed 2 of mamba fails, seed 3 stops everything."""
    found: list[tuple[str, int]] = []

    def instead(model: str, seed: int, *_: object) -> dict[str, object]:
        found.append((model, seed))
        if (model, seed) == ("mamba_tiny", 2):
            raise MemoryError("of the device\nand more")
        if (model, seed) == ("mamba_tiny", 3):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)  # the signal is another thread's to see
        return {"model": model, "seed": seed, "perplexity": {DIGITAL: 9.0 + len(found)}, "seconds": 1.0}

    monkeypatch.setattr(beside, "run_model", instead)
    monkeypatch.setattr(side_by_side, "_process", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(beside, "_tokenise_once", lambda *_: None)
    return found


def rows_in(folder: Path) -> dict[tuple[str, int], float]:
    rows = json.loads((folder / "embedded" / "beside.json").read_text())["rows"]
    return {(row["model"], row["seed"]): row["perplexity"][DIGITAL] for row in rows}


def test_a_failed_model_costs_no_other_its_row(
    ran: list[tuple[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="failed: seed 2, mamba_tiny; reports"):
        main(["--seeds", "2", "--folder", str(tmp_path)])
    assert len(ran) == 12 and rows_in(tmp_path).keys() == set(ran) - {("mamba_tiny", 2)}
    assert "seed 2, mamba_tiny: failed, MemoryError: of the device" in capsys.readouterr().err
    report = (tmp_path / "embedded" / "failed" / "mamba_tiny_seed_2.txt").read_text()
    assert "and more" in report and "in instead" in report, "with its traceback"


def test_a_signal_to_end_leaves_the_table_of_what_is_finished(
    ran: list[tuple[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--seeds", "3", "--folder", str(tmp_path), "--jobs", "1", "--models", "s4d_tiny", "mamba_tiny"])
    assert ended.value.code == 128 + signal.SIGTERM and ran[-1] == ("mamba_tiny", 3)
    assert rows_in(tmp_path).keys() == set(ran) - {("mamba_tiny", 2)}
    said = capsys.readouterr()
    assert "seed 3, s4d_tiny: stopped before it was begun; the same command goes on" in said.err
    assert "Held-out perplexity" in said.out and "mamba_tiny" in said.out


def test_rows_of_the_same_effort_stay_and_another_is_put_aside(ran: list[tuple[str, int]], tmp_path: Path) -> None:
    main(["--seeds", "1", "--folder", str(tmp_path)])
    before = rows_in(tmp_path)
    main(["--seeds", "1", "--folder", str(tmp_path), "--models", "gpt2_tiny"])
    assert rows_in(tmp_path) == before | {("gpt2_tiny", 1): 16.0} != before, "the seventh run"
    main(["--seeds", "1", "--folder", str(tmp_path), "--models", "gpt2_tiny", "--steps", "3"])
    assert rows_in(tmp_path).keys() == {("gpt2_tiny", 1)}
    aside = tmp_path / "embedded" / "beside_steps200_matched20_extra60_tokens16384_chips3_context256.json"
    assert len(json.loads(aside.read_text())["rows"]) == 6
    main(["--seeds", "1", "--folder", str(tmp_path), "--models", "mamba_tiny"])
    assert len(rows_in(tmp_path)) == 6, "and comes back"


def test_none_is_begun_when_time_is_up(
    ran: list[tuple[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--seeds", "1", "--folder", str(tmp_path), "--minutes", "0", "--models", "gpt2_tiny"])
    assert not ran and not (tmp_path / "embedded" / "beside.json").exists()
    assert "seed 1, gpt2_tiny: no time left to begin it; the same command goes on" in capsys.readouterr().err
