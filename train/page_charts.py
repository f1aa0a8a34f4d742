"""Charts drawn by plotly inside a page, where it is installed: values can be read off, and nothing is fetched."""

from __future__ import annotations

import importlib.util
import json
import math
from typing import Any

from aimc.plot.charts import COLOURS, Chart, Series, ends, short


def is_installed() -> bool:
    """Whether plotly is there."""
    return importlib.util.find_spec("plotly") is not None


def library() -> str:
    """Plotly's own script, to be put into the page."""
    from plotly.offline import get_plotlyjs  # only where a page is made

    return get_plotlyjs()


def figure_json(chart: Chart) -> str:
    """What plotly draws of a chart; colours of text and grid come from the page, which is light or dark."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=_layout(chart))
    for i, series in enumerate(chart.series):
        figure.add_trace(_trace(go, chart, series, COLOURS[i % len(COLOURS)]))
    if chart.kind == "heat":
        figure.add_trace(_heat(go, chart))
    for at, words in chart.marks:
        figure.add_shape(
            type="line", xref="paper", x0=0, x1=1, y0=at, y1=at, line={"dash": "dot", "width": 1, "color": "#888"}
        )
        # of a logarithmic axis a shape takes the value, an annotation its logarithm
        y = math.log10(at) if chart.log_y else at
        figure.add_annotation(text=words, xref="paper", x=1, xanchor="right", y=y, yanchor="bottom", showarrow=False)
    return figure.to_json().replace("</", "<\\/")  # inside a script element


def _layout(chart: Chart) -> dict[str, Any]:
    x: dict[str, Any] = {"title": {"text": chart.x_label}, "automargin": True, "zeroline": False}
    y: dict[str, Any] = {"title": {"text": chart.y_label}, "automargin": True}
    height = 400
    if chart.kind in ("bars", "strip"):
        names = list(dict.fromkeys(name for series in chart.series for name in series.x))
        y |= {"autorange": "reversed", "type": "category"}
        x |= {"zeroline": True}
        height = 130 + 34 * len(names)
    if chart.kind == "heat":
        x |= {"type": "category"}
        y |= {"type": "category", "autorange": "reversed"}
    lengths = [value for series in chart.series for value in (series.y if chart.kind == "bars" else series.x)]
    heights = [value for series in chart.series for value in series.y]
    for axis, is_log, values in ((x, chart.log_x, lengths), (y, chart.log_y, heights)):
        if is_log:
            wide = max(values, default=1) > 300 * min(values, default=1)
            axis |= {"type": "log", "dtick": 1 if wide else "D2", "tickformat": "~g", "exponentformat": "none"}
    return {
        "xaxis": x,
        "yaxis": y,
        "height": height,
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "barmode": "group",
        "showlegend": len(chart.series) > 1 and chart.kind != "strip",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "hoverlabel": {"font": {"family": "system-ui, sans-serif"}},
    }


def _trace(go: Any, chart: Chart, series: Series, colour: str) -> Any:
    words = series.words or [short(value) for value in series.y]
    about = {"name": series.name, "hovertext": words, "hovertemplate": "%{hovertext}<extra>%{fullData.name}</extra>"}
    bars = ends(series)
    error = None
    if bars is not None:
        error = {
            "type": "data",
            "symmetric": False,
            "arrayminus": bars[0],
            "array": bars[1],
            "thickness": 1,
            "width": 3,
        }
    if chart.kind == "bars":
        look = {"orientation": "h", "marker": {"color": colour}}
        return go.Bar(x=series.y, y=series.x, error_x=error and error | {"color": "#888"}, **look, **about)
    if chart.kind == "strip":
        return go.Scatter(
            x=series.y, y=series.x, mode="markers", marker={"color": COLOURS[0], "opacity": 0.6, "size": 8}, **about
        )
    marker = {"color": colour, "size": 15 if series.large else 7, "symbol": "star" if series.large else "circle"}
    mode = "lines+markers" if series.line else "markers"
    return go.Scatter(x=series.x, y=series.y, mode=mode, marker=marker, error_y=error, **about)


def _heat(go: Any, chart: Chart) -> Any:
    text = [[short(value) for value in row] for row in chart.z]
    return go.Heatmap(
        x=chart.columns,
        y=chart.rows,
        z=chart.z,
        text=text,
        texttemplate="%{text}",
        colorscale="Viridis",
        colorbar={"thickness": 12, "title": {"text": chart.z_label, "side": "right"}},
        hovertemplate=f"{chart.x_label}: %{{x}}<br>{chart.y_label}: %{{y}}<br>%{{z:.4g}}<extra></extra>",
    )


def theme(dark: bool) -> str:
    """Colours of text and grid."""
    ink, grid = ("#e8e8e8", "#3a3f47") if dark else ("#1f2328", "#dfe3e8")
    axis = {"gridcolor": grid, "zerolinecolor": "#888", "linecolor": grid}
    layout = {"font.color": ink} | {
        f"{name}.{key}": value for name in ("xaxis", "yaxis") for key, value in axis.items()
    }
    return json.dumps(layout)
