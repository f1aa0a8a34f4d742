"""Figures of one head say what they show; how they look was looked at."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import aimc
from aimc import plot, presets
from aimc.hardware import Array, Converter, Leakage

TOKENS = ["The", " file", " is", ".", "\n"]


def test_converters_put_every_value_on_the_staircase() -> None:
    values = torch.tensor([[-0.5, 0.1], [0.4, 2.0]])
    figure = plot.attention.converters(
        {"query": (values, Converter(n_levels=3), ""), "key": (values, Converter(v_max=0.9), "V")}
    )
    query, key = figure.axes
    dots = query.lines[1]
    assert list(dots.get_xdata()) == pytest.approx([-0.5, 0.1, 0.4, 2.0])
    assert list(dots.get_ydata()) == [0.0, 0.0, 0.5, 1.0]
    assert set(query.lines[0].get_ydata()) == {0.0, 0.5, 1.0}
    assert query.get_title() == "query: 3 levels\nclipped: 25% below, 25% above"
    assert key.get_title().startswith("key: no levels") and list(key.lines[1].get_ydata()) == pytest.approx(
        [0.0, 0.1, 0.4, 0.9]
    )
    assert key.xaxis.get_major_formatter()(0.1) == "100 mV" and query.xaxis.get_major_formatter()(0.1) != "100 mV"


def test_pulses() -> None:
    (axes,) = plot.attention.pulses(torch.tensor([0.0, 5e-9, 15e-9]), ["a", "b", "c"], longest_s=15e-9, title="t").axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.0, 5e-9, 15e-9])
    assert axes.xaxis.get_major_formatter()(5e-9) == "5 ns" and axes.get_title() == "t"
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first line on top


def test_leakage() -> None:
    figure = plot.attention.leakage(Leakage(tau_s=5e-3), [0.9, 0.0], rest_v=0.45, marks={"τ": 5e-3, "a token": 1e-6})
    (axes,) = figure.axes
    for line, written in zip(axes.lines, (0.9, 0.0), strict=False):
        at_tau = np.interp(5e-3, line.get_xdata(), line.get_ydata())
        assert at_tau == pytest.approx(0.45 + (written - 0.45) * math.exp(-1), rel=1e-3)
    assert axes.get_xscale() == "log" and "5 ms" in axes.get_title()
    assert [text.get_text() for text in axes.texts] == ["τ", "a token"]
    assert axes.lines[0].get_xdata()[0] <= 1e-6 and axes.lines[0].get_xdata()[-1] == pytest.approx(50e-3)


def test_leakage_to_ground() -> None:
    (axes,) = plot.attention.leakage(Leakage(tau_s=5e-3, target_v=0.0), [0.9], rest_v=0.45, marks={"τ": 5e-3}).axes
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(0.9 * math.exp(-10))


def test_leakage_of_cells_that_do_not_leak() -> None:
    with pytest.raises(ValueError, match="leakage.tau_s is None"):
        plot.attention.leakage(Leakage(), [0.9], rest_v=0.45, marks={"a token": 1e-6})


def test_cell_transfer() -> None:
    cell = presets.gain_cell_cmos().cell
    above, below = plot.attention.cell_transfer(cell, torch.tensor([[0.9, 0.9], [0.0, 0.9]])).axes
    c0, c1, c2, c3 = cell.coefficients
    charges = [c0 + c1 * u + c2 * u**2 + c3 * u**3 for u in (-0.45, 0.45)]
    assert list(above.lines[2].get_ydata()) == pytest.approx(charges)
    assert [bar.get_height() for bar in below.patches] == [1, 3]
    assert "signal units" in above.get_ylabel() and below.xaxis.get_major_formatter()(0.9) == "900 mV"


def test_charge_build_up_ends_at_the_sum() -> None:
    (axes,) = plot.attention.charge_build_up(torch.tensor([3.0, -1.0, 2.5]), title="t").axes
    assert [bar.get_height() for bar in axes.patches] == [3.0, -1.0, 2.5]
    assert axes.patches[0].get_facecolor() != axes.patches[1].get_facecolor()
    assert list(axes.lines[0].get_ydata()) == [3.0, 2.0, 4.5]
    assert "S = 4.5" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_charge_to_pulse() -> None:
    figure = plot.attention.charge_to_pulse(
        [-20.0, 40.0, 160.0, 0.0, 8.0], TOKENS, saturation=80.0, longest_s=10e-9, title="t"
    )
    left, middle, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == [-20.0, 40.0, 160.0, 0.0, 8.0]
    assert list(middle.lines[1].get_ydata()) == pytest.approx([0.0, 0.5, 1.0, 0.0, 0.1])
    assert [bar.get_width() for bar in right.patches] == pytest.approx([0.0, 5e-9, 10e-9, 0.0, 1e-9])
    assert [text.get_text() for text in left.get_yticklabels()] == ["The", "file", "is", '"."', '"⏎"']


def test_token_maps_hide_the_future() -> None:
    S = torch.arange(25.0).view(5, 5) - 10
    figure = plot.attention.token_maps({"S": (S, "charge"), "φ": (S.abs(), "width")}, TOKENS, row=2)
    signed, unsigned = figure.axes[:2]
    image = signed.images[0]
    assert image.get_array().mask.tolist() == (~torch.ones(5, 5).tril().bool()).tolist()
    assert image.get_clim() == (-14.0, 14.0) and unsigned.images[0].get_clim()[0] == 0.0
    assert min(image.cmap(0.5)) > 0.96  # zero is white or nearly so
    assert (signed.patches[0].get_y(), signed.patches[0].get_width()) == (1.5, 3)
    assert [bar.get_ylabel() for bar in figure.axes[2:]] == ["charge", "width"]


def test_token_maps_without_a_frame() -> None:
    assert list(plot.attention.token_maps({"S": (torch.ones(5, 5), "charge")}, TOKENS).axes[0].patches) == []


def test_counters_of_several_sub_tiles_end_in_their_sum() -> None:
    readout = presets.gain_cell_cmos().readout
    fills = torch.tensor([[0.51, 1.5], [-0.2, 0.1]])
    counts = aimc.ops.effects.converters.adc(fills, readout)
    figure = plot.attention.counters(fills, counts, readout)
    assert [axes.get_ylabel().split("\n")[0] for axes in figure.axes] == ["sub-tile 0", "sub-tile 1", "digital sum"]
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx([0.51, 1.5])
    assert list(figure.axes[2].lines[0].get_ydata()) == pytest.approx(counts.sum(dim=0).tolist())
    ticks = np.unique(np.r_[figure.axes[0].get_yticks(), figure.axes[0].get_yticks(minor=True)].round(6))
    assert set(np.linspace(-1, 1, 31).round(6)) <= set(ticks)  # sign and magnitude
    assert len(figure.axes[2].get_yticks(minor=True)) == 0
    for axes in figure.axes:
        assert axes.get_ylim() == pytest.approx((-1.1 * 1.6, 1.1 * 1.6))  # the charge of the sum fits in


def test_counters_of_one_sub_tile() -> None:
    figure = plot.attention.counters([0.1, 0.2], [0.1, 0.2], Converter(v_min=-1.0))
    assert len(figure.axes) == 1 and len(figure.axes[0].get_yticks(minor=True)) == 0


def test_grouped_bars() -> None:
    shares = {"softmax": [0.25, 0.75], "arrays": [0.5, 0.5]}
    (axes,) = plot.attention.grouped_bars(shares, TOKENS[:2], title="t", x_label="", y_label="share", share=True).axes
    assert [bar.get_height() for bar in axes.patches] == [0.25, 0.75, 0.5, 0.5]
    assert axes.patches[0].get_x() + axes.patches[0].get_width() == pytest.approx(axes.patches[2].get_x())
    assert axes.yaxis.get_major_formatter()(0.25) == "25%"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["softmax", "arrays"]


def test_grouped_bars_have_a_colour_each_or_refuse() -> None:
    with pytest.raises(ValueError, match="at most 4"):
        plot.attention.grouped_bars({str(i): [1.0] for i in range(5)}, ["a"], title="", x_label="", y_label="")


def test_ring() -> None:
    axes = plot.attention.ring(Array(window=4, rows=2), TOKENS).axes[0]
    ages = axes.images[0].get_array()
    assert ages[0].tolist() == [0, 1, 2, 3, 0]  # token 4 overwrites token 0
    assert ages.mask[3].tolist() == [True, True, True, False, False]
    assert [(text.get_position(), text.get_text()) for text in axes.texts][-1] == ((4, 0), '"⏎"')
    assert [line.get_ydata()[0] for line in axes.lines] == [1.5]
