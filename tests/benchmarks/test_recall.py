"""The recall benchmark runs: every phase of a model with something to put into cells, and one number of another."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from benchmarks.recall import MODELS, PHASES, QUICK, Found, examine, table
from train.schema import ModelConfig

SHORT = replace(QUICK, steps=2, on_cells=1, batch_size=4, n_texts=8)


@pytest.mark.parametrize(
    ("name", "phases"),
    [
        ("attention", PHASES),
        pytest.param("gated slots", PHASES, marks=pytest.mark.slow),
        pytest.param("H3 without attention", PHASES[:1], marks=pytest.mark.slow),
    ],
)
def test_every_phase_is_measured(name: str, phases: tuple[str, ...]) -> None:
    found = examine(name, "associative recall", 0, SHORT)
    assert tuple(found.accuracy) == phases and found.steps == 2
    assert all(0 <= accuracy <= 1 for accuracy in found.accuracy.values())


def test_the_table_has_a_line_a_model_and_task() -> None:
    found = {(name, "associative recall"): [Found(accuracy={"digital": 0.5})] for name in MODELS}
    console = Console(width=140)
    with console.capture() as shown:
        console.print(table(found, SHORT))
    assert all(name in shown.get() for name in MODELS) and shown.get().count(" 50.0 ") == len(MODELS)
    for sizes in MODELS.values():
        ModelConfig(**sizes)
