"""Figures say what they show; how they look was looked at."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

import aimc
from aimc.evaluate.perplexity import Perplexity
from aimc.hardware import Noise


def test_adaptation_curve(tmp_path: Path) -> None:
    figure = aimc.plot.adaptation_curve([30.0, 25.0, 24.0], reference=23.0, digital=22.0)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("iteration", "held-out perplexity")
    assert list(axes.lines[0].get_ydata()) == [30.0, 25.0, 24.0]
    assert "digital: 22.0" in [text.get_text() for text in axes.get_legend().get_texts()]
    aimc.plot.save(figure, tmp_path / "deep" / "a.png")
    assert (tmp_path / "deep" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.png"]


def test_training_curves_stand_where_their_tokens_say() -> None:
    linear = [
        {"tokens": 1e6, "eval_perplexity": 30.0},
        {"tokens": 2e6, "eval_perplexity": 28.0},
        {"tokens": 2e6, "loss": 1.0},
    ]
    control, finetune = ([{"tokens": 3e6, "eval_perplexity": value}] for value in (26.0, 27.0))
    curves = {"linear": linear, "fine-tuned": finetune, "digital, same extra tokens": control, "joint": finetune}
    axes = aimc.plot.training_curves(curves, digital=25.0).axes[0]
    assert list(axes.lines[0].get_xdata()) == [1.0, 2.0]
    assert list(axes.lines[1].get_xdata()) == [3.0]
    assert len({str(line.get_color()) for line in axes.lines[:4]}) == 4
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
    assert [
        list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() == "."
    ] == [
        pytest.approx([2.5, 7.5]),
        pytest.approx([15.0, 25.0]),
    ]


def test_nonideality_bars_of_a_clean_run_alone() -> None:
    axes = aimc.plot.nonideality_bars({"clean": Perplexity(mean=20.0, std=0.0, per_chip=[20.0])}).axes[0]
    assert list(axes.patches) == []


def test_rescue_curves() -> None:
    def point(mean: float) -> Perplexity:
        return Perplexity(mean=mean, std=1.0, per_chip=[mean - 1, mean + 1])

    curves = {
        "trained clean": {0.0: point(20.0), 3.0: point(40.0)},
        "trained noisy": {0.0: point(21.0), 3.0: point(25.0)},
    }
    axes = aimc.plot.rescue_curves(curves, digital=19.0).axes[0]
    means = [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "o"]
    worst = [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "."]
    assert means == [[20.0, 40.0], [21.0, 25.0]] and worst == [[21.0, 41.0], [22.0, 26.0]]
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {*curves, "digital: 19.0"}


def test_every_non_ideality_has_a_name_in_words() -> None:
    names = [field.name for field in fields(Noise)]
    assert all(aimc.plot.label(name) != name and "_" not in aimc.plot.label(name) for name in names)


def test_ring_buffer() -> None:
    voltages = 0.45 + torch.tensor(
        [[[0.2, -0.1], [float("nan")] * 2], [[0.1, -0.05], [-0.3, 0.1]], [[0.05, -0.025], [-0.15, 0.05]]]
    )
    figure = aimc.plot.ring_buffer(
        voltages, torch.tensor([0.0, 1e-6, 2e-6]), rest_v=0.45, slots=[1, 0], pause_s=(1e-6, 2e-6)
    )
    image_axes, bar_axes, axes = figure.axes[:3]
    (image,) = image_axes.images
    assert image.get_array().filled(-1.0) == pytest.approx(
        np.array([[0.15, 0.075, 0.0375], [-1.0, 0.2, 0.1]]), rel=1e-5
    )
    assert list(image.get_extent()) == pytest.approx(
        [0, 3e-6, -0.5, 1.5]
    )  # the last column lasts as long as the others
    assert list(axes.lines[1].get_ydata()) == pytest.approx([0.15, 0.075, 0.0375], rel=1e-5)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["slot 1", "slot 0", "pause"]
    assert (image_axes.get_ylabel(), axes.get_xlabel()) == ("slot", "time")
    assert axes.xaxis.get_major_formatter()(2e-6) == "2 µs" and bar_axes.yaxis.get_major_formatter()(0.1) == "100 mV"


def test_ring_buffer_without_lines() -> None:
    axes = aimc.plot.ring_buffer(torch.full((2, 3, 1), 0.4), [0.0, 1e-6], rest_v=0.45).axes[2]
    assert len(axes.lines) == 0 and axes.get_legend() is None


def test_stored_voltages_share_a_scale_about_rest() -> None:
    written = torch.tensor([[0.9, 0.3], [float("nan")] * 2])
    figure = aimc.plot.stored_voltages(
        {"written": written, "later": torch.full((2, 2), 0.45)}, rest_v=0.45, supply_v=0.9
    )
    before, after, bar = figure.axes
    assert [axes.get_title() for axes in (before, after)] == ["written", "later"]
    assert [axes.images[0].get_clim() for axes in (before, after)] == [(0.0, 0.9)] * 2
    assert before.images[0].get_array().mask.tolist() == [[False, False], [True, True]]
    assert min(after.images[0].cmap(0.5)) > 0.96  # rest is white or nearly so
    assert bar.get_ylabel() == "stored voltage (rest: 0.45 V)"
