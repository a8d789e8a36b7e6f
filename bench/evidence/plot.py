"""The learning curves of `python -m bench.evidence`: pass@1 by rollouts and by CPU time, mean and 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from bench.evidence.report import QUARTERS, Figures, Results, interval

OTHERS = ("capo-1", "prefix", "dapo", "dr_grpo", "grpo")
PANELS = {
    "CAPO by critic": (False, ("capo-oracle", "capo-5", "capo-3", "capo-1", "grpo")),
    "CAPO and others": (False, OTHERS),
    "The same by CPU time": (True, OTHERS),
}
"""By title: True for CPU time on the x axis, and the arms."""
STYLES = {
    "grpo": ("#000000", "o"),
    "capo-1": ("#D55E00", "s"),
    "capo-3": ("#E69F00", "^"),
    "capo-5": ("#CC79A7", "v"),
    "capo-oracle": ("#0072B2", "D"),
    "capo": ("#D55E00", "s"),
    "oracle": ("#0072B2", "D"),
    "prefix": ("#009E73", "P"),
    "dapo": ("#56B4E9", "X"),
    "dr_grpo": ("#8C6D1F", "d"),
}
"""Colour (Okabe and Ito) and marker of each arm."""


def save_plot(
    results: Results, figures: Figures, path: Path, panels: Mapping[str, tuple[bool, Sequence[str]]] = PANELS
) -> None:
    figure = Figure((14 * len(panels) / 3, 4), facecolor="white", layout="constrained")
    for axes, (title, (by_time, names)) in zip(
        figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True
    ):
        for name in names:
            draw(axes, name, results, figures, by_time)
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_xlabel("CPU seconds of training" if by_time else "rollouts drawn")
        if not by_time:
            axes.set_xticks([part * figures.budget for part in QUARTERS])
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
    figure.axes[0].set_ylabel("sampled pass@1")
    figure.savefig(path, dpi=150, metadata={"Software": None})


def draw(axes: Any, name: str, results: Results, figures: Figures, by_time: bool) -> None:
    """Draw one arm's line, and its band if there are several seeds."""
    runs = list(results[name].values())
    if not runs:
        return
    color, marker = STYLES[name]
    x = [part * figures.budget for part in QUARTERS]
    if by_time:
        x = [fmean(figures.spent("cpu", part)(run) for run in runs) for part in QUARTERS]
    middle, half = zip(*(interval([figures.rate(part)(run) for run in runs]) for part in QUARTERS), strict=True)
    axes.plot(x, middle, color=color, marker=marker, markersize=4, linewidth=1.5, label=name)
    if half[0] is not None:
        low, high = ([m + sign * h for m, h in zip(middle, half, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
