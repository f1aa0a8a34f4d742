"""Figures of a whole chip show the numbers they are given."""

from __future__ import annotations

import pytest

from aimc.evaluate import Perplexity
from aimc.plot_chip import budget_points, retention_curve
from aimc.static.aging import DAY_S, TIMES_S, YEAR_S, Retention


def perplexity(*values: float) -> Perplexity:
    return Perplexity(mean=sum(values) / len(values), std=0.5 if len(values) > 1 else 0.0, per_chip=list(values))


def test_budget() -> None:
    figure = budget_points({"digital": perplexity(50.0), "only attention analog": perplexity(51.0, 53.0), "both": perplexity(55.0, 55.0)})
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["digital", "only attention analog", "both"]
    assert [text.get_text() for text in axes.texts] == ["50.0", "52.0 (+4.0 %)", "55.0 (+10.0 %)"]
    assert len(axes.containers) == 3
    with pytest.raises(KeyError):
        budget_points({"both": perplexity(1.0)})


@pytest.mark.parametrize(("worst", "scale"), [(60.0, "linear"), (190.0, "log")])
def test_retention(worst: float, scale: str) -> None:
    curve = [
        Retention(since_programming_s=time, compensated=kind, perplexity=perplexity(value, value))
        for time, kind, value in ((YEAR_S, True, 55.0), (DAY_S, True, 52.0), (DAY_S, False, 58.0), (YEAR_S, False, worst))
    ]
    (axes,) = retention_curve({"model": curve}, digital=50.0).axes
    assert axes.get_xscale() == "log" and axes.get_yscale() == scale
    assert [label.get_text() for label in axes.get_xticklabels()] == list(TIMES_S)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert set(names) == {"digital: 50.0", "model, drift compensated", "model, not compensated"}
    line = axes.containers[0].lines[0]
    assert list(line.get_xdata()) == [DAY_S, YEAR_S] and list(line.get_ydata()) == [52.0, 55.0]
