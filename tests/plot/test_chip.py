"""Figures of a whole chip show the numbers they are given."""

from __future__ import annotations

import pytest

from aimc.evaluate.ageing import AgedPerplexity
from aimc.evaluate.perplexity import Perplexity
from aimc.plot.chip import ageing_curve, budget_points
from aimc.static.programming import DAY_S, TIMES_S, YEAR_S


def perplexity(*values: float) -> Perplexity:
    return Perplexity(mean=sum(values) / len(values), std=0.5 if len(values) > 1 else 0.0, per_chip=list(values))


def test_budget() -> None:
    figure = budget_points(
        {"digital": perplexity(50.0), "only attention analog": perplexity(51.0, 53.0), "both": perplexity(55.0, 55.0)}
    )
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["digital", "only attention analog", "both"]
    assert [text.get_text() for text in axes.texts] == ["50.0", "52.0 (+4.0 %)", "55.0 (+10.0 %)"]
    assert len(axes.containers) == 3
    with pytest.raises(KeyError):
        budget_points({"both": perplexity(1.0)})


def test_ageing() -> None:
    curve = [
        AgedPerplexity(since_programming_s=time, compensated=kind, perplexity=perplexity(value, value))
        for time, kind, value in (
            (YEAR_S, True, 55.0),
            (DAY_S, True, 52.0),
            (DAY_S, False, 58.0),
            (YEAR_S, False, 190.0),
        )
    ]
    with_it, without = ageing_curve({"model": curve, "other": curve[:2]}, digital=50.0).axes
    assert "with global" in with_it.get_title() and "without global" in without.get_title()
    assert with_it.get_xscale() == "log"
    assert [label.get_text() for label in without.get_xticklabels()] == list(TIMES_S)
    assert [text.get_text() for text in with_it.get_legend().get_texts()] == ["digital: 50.0", "model", "other"]
    assert [text.get_text() for text in without.get_legend().get_texts()] == ["digital: 50.0", "model"]
    line = with_it.containers[0].lines[0]
    assert list(line.get_xdata()) == [DAY_S, YEAR_S] and list(line.get_ydata()) == [52.0, 55.0]
    assert list(without.containers[0].lines[0].get_ydata()) == [58.0, 190.0]


def test_ageing_of_one_kind_and_of_nothing() -> None:
    one = [AgedPerplexity(since_programming_s=DAY_S, compensated=True, perplexity=perplexity(52.0))]
    assert len(ageing_curve({"model": one}).axes) == 1
    with pytest.raises(ValueError, match="holds no measurement"):
        ageing_curve({"model": []})
