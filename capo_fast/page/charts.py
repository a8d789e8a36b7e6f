"""What all charts of the page share: colours by run, the two looks, and the form in which a chart lies in the page."""

from __future__ import annotations

import html
from typing import Any

import plotly.graph_objects as go

COLOURS = ("#3b82c4", "#dd7a2f", "#2c9c75", "#bf62a6", "#a88f14", "#7a70d6", "#2f9fbf", "#87878f")
"""By the run's place on the command line: adding a run at the end changes no other's."""
DASHES = ("solid", "dot", "dash")
"""By the line's place in its chart; and a run past the eighth has its colour again, dashed."""


def as_json(title: str, note: str, text: str, figure: go.Figure) -> dict[str, Any]:
    """A chart for the page; the template is the page's own, there once for light and once for dark."""
    spec = figure.to_plotly_json()
    spec["layout"].pop("template", None)
    last = [] if figure.data[0].type == "bar" else [_last(trace, text) for trace in figure.data]
    return {"title": title, "note": note, "last": last, "data": spec["data"], "layout": spec["layout"]}


def _last(trace: go.Scatter, text: str) -> dict[str, str]:
    """The last value of a line, for those who see no chart."""
    value = next((y for y in reversed(trace.y) if y is not None), None)
    return {"name": html.unescape(trace.name), "colour": trace.line.color, "value": as_text(value, text)}


def as_text(value: float | None, text: str) -> str:
    """As d3 writes it under the format `text`, near enough."""
    if value is None:
        return "–"
    if text.endswith("%"):
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def template(ink: str, faint: str, grid: str, surface: str) -> dict[str, Any]:
    """The look of all charts under one theme."""
    axis = {
        "gridcolor": grid,
        "linecolor": grid,
        "zeroline": False,
        "exponentformat": "e",
        "tickfont": {"color": faint, "size": 11},
    }
    layout = go.Layout(
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": ink},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 46, "r": 8, "t": 6, "b": 26},
        xaxis=axis | {"showgrid": False, "nticks": 6},
        yaxis=axis | {"nticks": 5},
        showlegend=False,
        hovermode="x unified",
        hoverlabel={"bgcolor": surface, "bordercolor": grid, "font": {"color": ink, "size": 12}, "namelength": 40},
    )
    return {"layout": layout.to_plotly_json()}


TEMPLATES = {
    "light": template("#1c2330", "#5b6675", "#e3e6eb", "#ffffff"),
    "dark": template("#e4e8ee", "#98a3b3", "#2c333d", "#1b2028"),
}
