"""The models beside attention: every command line composes, all train on as many tokens, and the table holds them."""

from __future__ import annotations

import pytest

from benchmarks.beside import ATTENTION, CELLS, CONTROL, DIGITAL, MODELS, NONE, Effort, overrides_of, stages_of, table
from tests.train.conftest import compose_config
from train.configs import checked
from train.schema import RunConfig


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("text", [None, "some/folder"])
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
