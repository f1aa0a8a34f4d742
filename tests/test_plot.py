"""Figures say what they show; how they look was looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

import aimc
from aimc.evaluate import Perplexity


def test_adaptation_curve(tmp_path: Path) -> None:
    figure = aimc.plot.adaptation_curve([30.0, 25.0, 24.0], reference=23.0, digital=22.0)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("iteration", "held-out perplexity")
    assert list(axes.lines[0].get_ydata()) == [30.0, 25.0, 24.0]
    assert "digital: 22.0" in [text.get_text() for text in axes.get_legend().get_texts()]
    aimc.plot.save(figure, tmp_path / "deep" / "a.png")
    assert (tmp_path / "deep" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.png"]


def test_training_curves_put_finetuning_after_linear() -> None:
    linear = [{"tokens": 1e6, "eval_perplexity": 30.0}, {"tokens": 2e6, "eval_perplexity": 28.0}, {"tokens": 2e6, "loss": 1.0}]
    finetune = [{"tokens": 1e6, "eval_perplexity": 27.0}]
    axes = aimc.plot.training_curves({"linear": linear, "finetune": finetune}, digital=25.0).axes[0]
    assert list(axes.lines[0].get_xdata()) == [1.0, 2.0]
    assert list(axes.lines[1].get_xdata()) == [3.0]
    assert axes.get_xlabel() == "training tokens (millions)"


def test_nonideality_bars() -> None:
    sweep = {
        "clean": Perplexity(mean=20.0, std=0.0, per_chip=[20.0]),
        "write noise": Perplexity(mean=21.0, std=0.5, per_chip=[20.5, 21.5]),
        "all together": Perplexity(mean=24.0, std=1.0, per_chip=[23.0, 25.0]),
    }
    axes = aimc.plot.nonideality_bars(sweep).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([5.0, 20.0])
    assert "20.0" in axes.get_title() and "%" in axes.get_xlabel()
    assert [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() == "."] == [
        pytest.approx([2.5, 7.5]),
        pytest.approx([15.0, 25.0]),
    ]


def test_nonideality_bars_of_a_clean_run_alone() -> None:
    axes = aimc.plot.nonideality_bars({"clean": Perplexity(mean=20.0, std=0.0, per_chip=[20.0])}).axes[0]
    assert list(axes.patches) == []
