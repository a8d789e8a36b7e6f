"""The plot of learning curves: against CPU seconds on the left, against rollouts on the right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Picture

from bench.credit.arms import ARMS, CLOCK
from bench.evidence.report import Figures, Results, Run, interval

COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#8C6D1F")
"""Okabe and Ito's palette."""
POINTS = 41
"""Points of a curve by the clock."""


def save_frontier(results: Results, figures: Figures, seconds: float, path: Path) -> None:
    """Plot the mean over seeds with its 95 % band. seconds: CPU time at which the area by the clock ends."""
    picture = Picture((11, 4.2), facecolor="white", layout="constrained")
    by_clock, by_rollouts = picture.subplots(1, 2, sharey=True)
    for name, runs in results.items():
        draw_by_clock(by_clock, name, list(runs.values()), figures)
        draw_by_rollouts(by_rollouts, name, list(runs.values()), figures)
    by_clock.axvline(seconds, color="#999999", linestyle=":", linewidth=1)
    by_clock.set(xlabel="CPU seconds of training, all processes", ylabel="sampled pass@1, held out")
    by_rollouts.set(xlabel="rollouts drawn")
    by_rollouts.legend(frameon=False, loc="lower right")
    picture.savefig(path, dpi=150, metadata={"Software": None})


def draw_by_clock(axes: Any, name: str, runs: Sequence[Run], figures: Figures) -> None:
    """Draw the curve up to the mean CPU time of the arm's runs."""
    times = np.linspace(0.0, fmean(figures.spent(figures.cpu)(run) for run in runs), POINTS)
    draw(axes, name, times, [[figures.rate_after(time)(run) for run in runs] for time in times])


def draw_by_rollouts(axes: Any, name: str, runs: Sequence[Run], figures: Figures) -> None:
    parts = np.arange(0, figures.plan.steps + 1, figures.plan.every) / figures.plan.steps
    draw(axes, name, parts * figures.budget, [[figures.rate(part)(run) for run in runs] for part in parts])


def draw(axes: Any, name: str, x: Any, values: Sequence[Sequence[Any]]) -> None:
    """values: for each x, one value per run."""
    colour = COLOURS[([*CLOCK, *(arm for arm in ARMS if arm not in CLOCK)]).index(name) % len(COLOURS)]
    middles, halves = (np.array(each) for each in zip(*((m, h or 0.0) for m, h in map(interval, values)), strict=True))
    axes.plot(x, middles, color=colour, linewidth=1.5, label=name)
    axes.fill_between(x, middles - halves, middles + halves, color=colour, alpha=0.15, linewidth=0)
