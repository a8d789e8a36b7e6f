"""Shared by all charts of the page: colours by run, and the JSON form of a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

COLOURS = ("#3b82c4", "#dd7a2f", "#2c9c75", "#bf62a6", "#a88f14", "#7a70d6", "#2f9fbf", "#87878f")
"""By the run's place on the command line: appending a run changes no other colour."""
DASHES = ("solid", "dotted", "dashed")
"""By the line's place in its chart; from the ninth run on colours repeat, dotted."""


@dataclass(frozen=True)
class Series:
    """A line of a chart, or one colour of its stacked bars."""

    name: str
    run: int
    """The run's place on the command line."""
    colour: str
    dash: str
    x: Sequence[float]
    """Training steps; the page maps them to time."""
    y: Sequence[float | None]
    error: Sequence[float | None] | None = None
    """Standard errors of `y`."""


def as_json(
    title: str, note: str, series: Sequence[Series], percent: bool = False, top: float | None = None
) -> dict[str, Any]:
    """A chart for the page: lines, or with `top` stacked bars on a scale that ends there."""
    last = [_last(each, percent) for each in series] if top is None else []
    drawn = [asdict(each) for each in series]
    return {"title": title, "note": note, "last": last, "series": drawn, "percent": percent, "top": top}


def _last(series: Series, percent: bool) -> dict[str, str]:
    """The last value of a line, for screen readers."""
    value = next((y for y in reversed(series.y) if y is not None), None)
    return {"name": series.name, "colour": series.colour, "value": as_text(value, percent)}


def as_text(value: float | None, percent: bool) -> str:
    """A value in few digits.

    >>> as_text(0.01234, percent=True), as_text(1234.5, percent=False), as_text(None, percent=False)
    ('1.2%', '1,234', '–')
    """
    if value is None:
        return "–"
    if percent:
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
