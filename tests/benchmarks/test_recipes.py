"""The table of recipes: every row is a command that there is, of as many steps as any other; intervals are right."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.recipes import CONTROL, ROWS, overrides_of, table
from tests.train.conftest import compose_config
from train.configs import checked
from train.schema import RunConfig


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_run_of_as_many_steps(name: str, tmp_path: Path) -> None:
    row, words = ROWS[name], overrides_of(name, 3, tmp_path, 240)
    config = checked(compose_config("run", *words), RunConfig)
    stages = [config.stage.stage(stage) for stage in row.stages]
    assert sum(config.trainer.recipe(recipe).steps for stage in stages for recipe in stage.recipes) == 240
    assert {config.trainer.recipe(recipe).batch_size for stage in stages for recipe in stage.recipes} == {8}
    assert config.seed == 3 and config.folder.is_relative_to(tmp_path / "seed_3")
    assert config.hardware.normaliser.is_on == ("normaliser" in name or "and" in name)
    assert stages[0].needs == "digital"


def test_intervals_are_those_of_students_t() -> None:
    results = {
        CONTROL: {seed: {"digital, same extra tokens": 50.0} for seed in (1, 2, 3)},
        "published route": {
            1: {"start": 9.0, "end": 51.0},
            2: {"start": 9.0, "end": 52.0},
            3: {"start": 9.0, "end": 53.0},
        },
    }
    shown = table(results, 240)
    cells = [list(column.cells) for column in shown.columns]
    assert cells[0] == [CONTROL, "published route"]
    assert cells[2] == ["50.00 ± 0.00", "52.00 ± 2.48"]  # 4.303 · 1 / √3
    assert cells[3] == ["1", "1.0400 ± 0.0497"]
