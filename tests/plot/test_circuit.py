"""Figures of the circuit bench show the numbers that they were given."""

from __future__ import annotations

import numpy as np
import pytest

from aimc import plot
from aimc.circuit import (
    ModelShape,
    attention_cost,
    fit_cell,
    noise_budget,
    oxide_cell,
    retention,
    silicon_cell,
    to_hardware,
)
from aimc.evaluate.perplexity import Perplexity
from aimc.evaluate.tradeoff import Point, Tradeoff
from aimc.hardware.presets import gain_cell_cmos

CELL = silicon_cell()


def test_transistor_curves():
    figure = plot.circuit.transistor_curves({"n": CELL.read_n, "p": CELL.read_p, "film": oxide_cell().read_n})
    logarithmic, linear = figure.axes
    assert logarithmic.get_yscale() == "log" and linear.get_yscale() == "linear"
    n, p = (linear.get_lines()[i].get_ydata() for i in (0, 2))
    np.testing.assert_allclose(n, CELL.read_n.current(np.linspace(-0.2, 1.2, 301), 0.0, 0.9))
    np.testing.assert_allclose(n, p, rtol=1e-6)  # the silicon cell's transistors are balanced


def test_read_curves():
    axes = plot.circuit.read_curves(CELL, n_reads=3).axes[0]
    np.testing.assert_allclose(axes.get_lines()[2].get_ydata(), CELL.read_current(CELL.stored_grid(181)))


def test_transfer_fit():
    fit = fit_cell(CELL, n_levels=8)
    above, below = plot.circuit.transfer_fit(CELL.stored_grid(), CELL.read_charge(CELL.stored_grid()), fit).axes
    assert np.abs(below.get_lines()[0].get_ydata()).max() == pytest.approx(fit.max_error_lsb)
    assert "LSB" in below.get_ylabel()


def test_retention_and_budget():
    held = retention(CELL, 2e-3)
    axes = plot.circuit.retention(held, window_s=1e-3).axes[0]
    assert "5.00 ms" in axes.get_title()
    lines = noise_budget(CELL, to_hardware(CELL))
    budget = plot.circuit.noise_budget(lines).axes[0]
    assert [label.get_text() for label in budget.get_yticklabels()] == [line.name for line in lines]


def test_tradeoff():
    cost = attention_cost(ModelShape(), gain_cell_cmos())
    points = [
        Point(
            label=str(v), perplexity=Perplexity(mean=v, std=1.0), cost=cost, hardware=gain_cell_cmos(), on_front=v < 40
        )
        for v in (30.0, 50.0)
    ]
    figure = plot.circuit.tradeoff(Tradeoff(parameter="levels", points=points, digital=20.0))
    assert {text.get_text() for text in figure.axes[0].texts} == {"30.0", "50.0"}
    assert "levels" in figure.axes[0].get_title()
