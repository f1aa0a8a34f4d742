"""Charts of many series lose none."""

from __future__ import annotations

import pytest

from aimc.plot.charts import COLOURS, Chart, Series, figure_of


@pytest.mark.parametrize("kind", ["curves", "bars"])
def test_every_series_is_drawn_however_many(kind: str) -> None:
    names = [f"series {i}" for i in range(len(COLOURS) + 2)]
    x = ["a", "b"] if kind == "bars" else [1.0, 2.0]
    chart = Chart(name="many", kind=kind, title="", x_label="x", y_label="y")
    chart.series = [Series(name=name, x=x, y=[1.0, 2.0]) for name in names]
    legend = figure_of(chart).axes[0].get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == names
