"""Tests of the goals of capo-gated over seeds: paired differences with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from bench.credit.arms import CLOCK, GATED, GRPO, PLAIN_CAPO, TRUTH
from bench.evidence.report import Figure, Figures, Results, interval
from capo_fast.markdown import markdown_table

Weights = Mapping[str, float]
"""Weights by arm."""
GAIN, FREE_GAIN = {GATED: 1.0, GRPO: -1.0}, {TRUTH: 1.0, GRPO: -1.0}
LEAST_SHARE, MOST_TOKENS, MOST_LOST = 0.5, 0.15, 0.01
"""Bounds: share of the oracle's gain, share of plain CAPO's critique tokens, loss of area by rollouts to plain CAPO."""
DRAWS = 10_000


@dataclass(frozen=True)
class Claim:
    """The claim that a weighted sum over arms of a figure, paired by seed, is above a bound."""

    what: str
    figure: Figure
    weights: Weights
    bound: float = 0.0
    digits: int = 3
    ratio: tuple[Weights, Weights] | None = None
    """Two sums whose ratio is shown in the same row."""

    def values(self, weights: Weights, results: Results, seeds: Sequence[int]) -> list[float]:
        """The weighted sum of each seed."""
        return [sum(w * self.figure(results[arm][seed]) for arm, w in weights.items()) for seed in seeds]

    def row(self, results: Results, seeds: Sequence[int]) -> list[str]:
        """Cells of the table; wants at least two seeds."""
        mean, half = interval(self.values(self.weights, results, seeds))
        low, high = mean - half, mean + half
        found = "{0:+,.{3}f} [{1:+,.{3}f}, {2:+,.{3}f}]".format(mean, low, high, self.digits)
        ratio = share(*(self.values(each, results, seeds) for each in self.ratio)) if self.ratio else ""
        return [self.what, f"above {self.bound:g}", found, ratio, "met" if low > self.bound else "not met"]


def claims(figures: Figures, seconds: float) -> list[Claim]:
    """seconds: CPU time at which the area by the clock ends."""
    clock, area = figures.area_by_time(seconds), figures.area(1.0)
    half = {GATED: 1.0, GRPO: LEAST_SHARE - 1, TRUTH: -LEAST_SHARE}
    return [
        Claim("area by the clock, gain over GRPO", clock, GAIN),
        Claim(f"the same, less {LEAST_SHARE:.0%} of the oracle's gain", clock, half, ratio=(GAIN, FREE_GAIN)),
        Claim("area by rollouts, less plain CAPO's", area, {GATED: 1.0, PLAIN_CAPO: -1.0}, -MOST_LOST),
        tokens_claim("written", figures.spent("critique_tokens")),
        tokens_claim("read and not cached", figures.spent("critique_read")),
    ]


def tokens_claim(which: str, figure: Figure) -> Claim:
    what = f"{MOST_TOKENS:.0%} of plain CAPO's critique tokens {which}, less those of {GATED}"
    weights = {PLAIN_CAPO: MOST_TOKENS, GATED: -1.0}
    return Claim(what, figure, weights, digits=0, ratio=({GATED: 1.0}, {PLAIN_CAPO: 1.0}))


def share(over: Sequence[float], under: Sequence[float]) -> str:
    """The ratio of two sums over seeds, with a 95 % bootstrap interval over seeds.

    >>> share([1.0, 1.0], [2.0, 2.0])
    '50.0% [50.0%, 50.0%]'
    """
    rows = np.random.default_rng(0).integers(len(over), size=(DRAWS, len(over)))
    drawn = np.asarray(over)[rows].sum(1) / np.asarray(under)[rows].sum(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{fmean(over) / fmean(under):.1%} [{low:.1%}, {high:.1%}]"


def goal_part(results: Results, figures: Figures, seconds: float) -> str:
    """The table of tests over the seeds of all their arms; "" with fewer than two seeds."""
    seeds = sorted(set.intersection(*(set(results.get(arm, {})) for arm in CLOCK)))
    if len(seeds) < 2:
        return ""
    rows = [claim.row(results, seeds) for claim in claims(figures, seconds)]
    head = ["test", "wanted", "mean [95 %]", "ratio [95 %]", "verdict"]
    return (
        f"## The goal of {GATED}, by {len(seeds)} seeds\n\n"
        + markdown_table(head, rows)
        + "\nDifferences are paired by seed, with Student's t intervals. A test is met if its whole interval is above "
        "the bound. *Ratio*: of the gains, or of the tokens, with a 95 % bootstrap interval over seeds.\n"
    )
