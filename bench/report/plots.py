"""Plots as SVG: time against T, share of the bound, memory against V.

The same results give the same bytes. The background is transparent and the text mid-grey, for light and dark pages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from bench.report.runs import Machine, Measured, Row
from bench.report.tables import MIB, percent

GREY = "#808080"
OURS = ("#2f81f7", "#2da44e", "#1b9aaa", "#7c6cf2")
PEERS = ("#d9770f", "#e5534b", "#c264d9", "#a6802b", "#db61a2")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "capo_fast",
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.transparent": True,
}


@dataclass(frozen=True)
class Plot:
    """A figure: kernel, file name without suffix, title, size in inches, and the function that draws it on axes."""

    kernel: str
    name: str
    title: str
    size: tuple[float, float]
    draw: Callable[[Any], None]

    def save(self, folder: Path) -> Path:
        path = folder / f"{self.name}.svg"
        with rc_context(STYLE):
            figure = Figure(self.size)
            axes = figure.subplots()
            axes.set_title(self.title, loc="left", fontsize="medium")
            self.draw(axes)
            figure.savefig(path, bbox_inches="tight", metadata={"Date": None, "Creator": None})
        return path


def plots(machine: Machine) -> Iterator[Plot]:
    """Plots with enough data: lines need at least two points."""
    for kernel, cases in machine.kernels().items():
        yield from time_plots(kernel, cases)
        yield from share_plot(cases[0])
        yield from memory_plots(kernel, cases)


def time_plots(kernel: str, cases: Sequence[Measured]) -> Iterator[Plot]:
    """A plot for all cases that differ only in T."""
    for about, chosen in alike(cases, lambda row: re.sub(r"-\d+-(?=b?float)", "-", row.case), lambda row: row.tokens):
        lines = series(chosen, lambda row: row.tokens, lambda row: 1e3 * row.median, with_bound=True)
        ticks = sorted(measured.first.tokens for measured in chosen)
        title = f"{kernel}, {about}: milliseconds against T"
        yield Plot(kernel, f"time-{kernel}-{about}", title, (6.5, 4), time_drawing(lines, ticks))


def memory_plots(kernel: str, cases: Sequence[Measured]) -> Iterator[Plot]:
    """A plot for all cases that differ only in V, with the same hidden size if it matters."""

    def about(row: Row) -> str:
        variant = row.case.partition(row.dtype)[2]
        return f"{row.tokens}-{row.dtype}{variant}" + (f"-hidden-{row.hidden}" if row.flops_per_second else "")

    for name, chosen in alike(cases, about, lambda row: row.vocab):
        lines = series(chosen, lambda row: row.vocab, lambda row: row.extra_bytes / MIB, with_bound=False)
        logits = sorted((measured.first.vocab, measured.first.logits_bytes / MIB) for measured in chosen)
        title = f"{kernel}, T = {chosen[0].first.tokens:,}, {chosen[0].first.dtype}: extra MiB against V"
        yield Plot(kernel, f"memory-{kernel}-{name}", title, (6.5, 4), memory_drawing(lines, logits))


def alike(
    cases: Sequence[Measured], about: Callable[[Row], str], x: Callable[[Row], int]
) -> Iterator[tuple[str, list[Measured]]]:
    """Groups of cases with equal `about`, one case per x, for groups of at least two."""
    key = lambda measured: about(measured.first)  # noqa: E731
    for name, group in groupby(sorted(cases, key=key), key=key):
        first_at = {x(measured.first): measured for measured in reversed(list(group))}
        if len(first_at) > 1:
            yield name, list(first_at.values())


@dataclass(frozen=True)
class Line:
    label: str
    points: list[tuple[float, float]]
    ours: bool
    is_bound: bool


def series(
    cases: Sequence[Measured], x: Callable[[Row], float], y: Callable[[Row], float], with_bound: bool
) -> list[Line]:
    """A line per provider that computes the cases' kind and is in at least two cases."""
    found: dict[str, list[Row]] = {}
    for measured in cases:
        for row in measured.rows:
            if row.kind == measured.kind or (row.is_bound and with_bound):
                found.setdefault(row.provider, []).append(row)
    return [
        Line(provider, sorted((x(row), y(row)) for row in rows), rows[0].ours, rows[0].is_bound)
        for provider, rows in sorted(found.items())
        if len(rows) > 1
    ]


def draw_lines(axes: Any, lines: Sequence[Line]) -> list[tuple[float, str, str]]:
    """Draws the lines; returns (height of the last point, label, colour) of each."""
    ours, peers = cycle(OURS), cycle(PEERS)
    ends = []
    for line, marker in zip(lines, cycle("osD^vPX*<>"), strict=False):
        colour = GREY if line.is_bound else next(ours if line.ours else peers)
        style = {"linestyle": "--", "marker": ""} if line.is_bound else {"linestyle": "-", "marker": marker}
        axes.plot(
            *zip(*line.points, strict=True), color=colour, linewidth=2 if line.ours else 1.2, markersize=5, **style
        )
        ends.append((line.points[-1][1], line.label + (" (bound)" if line.is_bound else ""), colour))
    return ends


def label_ends(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Labels at the last points, moved up if they would overlap."""
    to_share = axes.transData + axes.transAxes.inverted()
    lowest = -1.0
    for y, label, colour in sorted(ends):
        height = float(to_share.transform((1, y))[1])
        lowest = max(height, lowest + 0.052)
        axes.annotate(
            label,
            xy=(1, height),
            xytext=(1.05, lowest),
            xycoords="axes fraction",
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 0},
        )


def time_drawing(lines: Sequence[Line], ticks: Sequence[int]) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        axes.set(xscale="log", yscale="log", xlabel="T, tokens", ylabel="ms, median")
        ends = draw_lines(axes, lines)
        plain_ticks(axes, ticks)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
        axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.5)
        label_ends(axes, ends)

    return draw


def memory_drawing(lines: Sequence[Line], logits: Sequence[tuple[int, float]]) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        axes.set(xlabel="V, vocabulary size", ylabel="peak extra memory, MiB")
        as_large = Line("as much as the logits", [(float(v), size) for v, size in logits], ours=False, is_bound=False)
        axes.plot(*zip(*as_large.points, strict=True), color=GREY, linestyle="--", linewidth=1.2)
        ends = [*draw_lines(axes, lines), (as_large.points[-1][1], as_large.label, GREY)]
        axes.set_ylim(bottom=0)
        plain_ticks(axes, [v for v, _ in logits])
        axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.5)
        label_ends(axes, ends)

    return draw


def plain_ticks(axes: Any, ticks: Sequence[int]) -> None:
    """Plain tick labels, without those that would overlap the one before."""
    apart = (max(ticks) - min(ticks)) / 12 if axes.get_xscale() == "linear" else 0
    kept = [x for before, x in zip([-apart, *ticks], ticks, strict=False) if x - before > apart]
    axes.set_xticks(kept, [f"{x:,}" for x in kept])
    axes.minorticks_off()


def share_plot(measured: Measured) -> Iterator[Plot]:
    """Bars for the providers of a case, in the table's order; faint if they compute less."""
    rows = [row for row in measured.rows if row.share_of_bound is not None and not row.is_bound]
    bound = next((row.provider for row in measured.rows if row.is_bound), None)
    if bound is None or len(rows) < 2:
        return
    kernel, case = measured.first.kernel, measured.first.case
    what = "MFU" if measured.first.is_step else "share of the bound"
    height = 0.8 + 0.26 * len(rows)
    title = f"{kernel}, {case}: {what}"
    yield Plot(kernel, f"share-{kernel}", title, (6.5, height), share_drawing(rows, f"{what} ({bound} = 100 %)"))


def share_drawing(rows: Sequence[Row], label: str) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        for place, row in enumerate(rows):
            share = row.share_of_bound or 0.0
            colour = OURS[0] if row.ours else PEERS[0]
            axes.barh(place, 100 * share, color=colour, alpha=0.45 if row.less else 0.95, height=0.7)
            axes.text(100 * share + 1, place, percent(share), va="center", color=GREY)
        axes.set_yticks(range(len(rows)), [row.provider for row in rows])
        axes.invert_yaxis()
        axes.axvline(100, color=GREY, linestyle="--", linewidth=1.2)
        axes.set_xlabel(label + ("; faint: computes less" if any(row.less for row in rows) else ""))

    return draw
