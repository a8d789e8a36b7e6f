"""Statistics of evaluations: estimates, 95 % intervals, paired tests, agreement. Plain numbers in and out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959963984540054
"""Normal quantile of a two-sided 95 % interval."""
DRAWS = 10_000
Interval = tuple[float, float]


def mean(values: Sequence[float]) -> float:
    """The mean; NaN without values."""
    return math.fsum(values) / len(values) if values else math.nan


def variance(values: Sequence[float]) -> float:
    """The unbiased variance; NaN with fewer than two values."""
    center = mean(values)
    return math.fsum((v - center) ** 2 for v in values) / (len(values) - 1) if len(values) > 1 else math.nan


def pass_at_k(n: int, right: int, k: int) -> float:
    """Probability that k of n samples, drawn without replacement, include a right one: unbiased (Chen et al. 2021).

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not 0 < k <= n:
        raise ValueError(f"pass@k needs 1 <= k <= n samples, not k = {k} of n = {n}")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Interval of the mean of independent values in [0, 1], one per problem; None without values.

    Wilson's, with the effective sample size n p (1 - p) / var that the values' own (population) variance implies
    (Franco et al. 2019): exactly Wilson's for one yes or no per problem, narrower if several samples of each problem
    were averaged. Unlike the normal interval and the bootstrap it keeps its level near 0 and 1 and for 30 problems.
    """
    if not values:
        return None
    p, n = mean(values), len(values)
    if min(values) == max(values):  # their variance is 0, but for the rounding of the mean
        return wilson(p, n)
    return wilson(p, n * n * p * (1 - p) / math.fsum((v - p) ** 2 for v in values))


def wilson(p: float, n: float) -> Interval:
    """Wilson's score interval of a share p of n.

    >>> [round(end, 3) for end in wilson(0.0, 10)]
    [0.0, 0.278]
    """
    center, half = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)


def macro_interval(groups: Sequence[Sequence[float]]) -> Interval | None:
    """Interval of the mean of the groups' means with equal weights; None if a group is empty.

    The distances of the ends of each group's own interval (`mean_interval`) from its mean are added as errors are (Zou
    and Donner's MOVER, 2008). Unlike a normal interval it has a positive width if every value is 1.
    """
    found = [(mean(group), ends) for group in groups if (ends := mean_interval(group))]
    if len(found) < len(groups):
        return None
    low, high = (math.hypot(*(m - ends[side] for m, ends in found)) / len(found) for side in (0, 1))
    center = mean([m for m, _ in found])
    return max(0.0, center - low), min(1.0, center + high)


# ---- two models on the same problems ----


def difference_interval(groups: Sequence[Sequence[float]]) -> Interval | None:
    """Interval of the mean of the groups' mean paired differences (each in [-1, 1]); None if a group is empty.

    Normal, after adding 0.5 to each of the four cells of a group: Agresti and Min's (2005) interval for paired
    yes-or-no outcomes. It has a positive width even for a benchmark without any difference.
    """
    if not all(groups):
        return None
    centers, errors = [], []
    for differences in groups:
        n = len(differences) + 2  # 0.5 in each of four cells: right-right, wrong-wrong, right-wrong, wrong-right
        center = math.fsum(differences) / n
        spread = (math.fsum(d * d for d in differences) + 1.0) / n - center**2
        centers.append(center)
        errors.append(spread / n)
    center, half = mean(centers), Z * math.sqrt(math.fsum(errors)) / len(groups)
    return max(-1.0, center - half), min(1.0, center + half)


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided p-value of McNemar's test for `better` and `worse` problems.

    >>> mcnemar(1, 7)
    0.0703125
    """
    throws = better + worse
    tail = sum(math.comb(throws, i) for i in range(min(better, worse) + 1))
    return min(1.0, float(2 * tail / 2**throws)) if throws else 1.0


def sign_flip_test(weighted: Sequence[float], seed: int = 0) -> float:
    """Two-sided p-value of a sum of paired differences under random signs.

    From 10,000 draws with the seed (counting the observed one, so never 0); from all cases if those are fewer.
    """
    values = np.array([v for v in weighted if v != 0.0])
    observed = abs(values.sum()) * (1 - 1e-9)  # sums in another order differ by rounding
    if len(values) <= math.log2(DRAWS):
        cases = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
        return float(np.mean(np.abs((2 * cases - 1) @ values) >= observed))
    rng, extreme = np.random.default_rng(seed), 0
    for _ in range(DRAWS // 100):
        extreme += int(np.sum(np.abs((2 * rng.integers(0, 2, (100, len(values))) - 1) @ values) >= observed))
    return (extreme + 1) / (DRAWS + 1)


def paired_p(groups: Sequence[Sequence[float]], seed: int = 0) -> float:
    """p-value of the mean of the groups' mean differences: exact McNemar for yes or no in one group, else sign flips.

    For yes or no both tests are equal.
    """
    if len(groups) == 1 and set(groups[0]) <= {-1.0, 0.0, 1.0}:
        return mcnemar(groups[0].count(1.0), groups[0].count(-1.0))
    return sign_flip_test([d / len(group) for group in groups for d in group], seed)


# ---- critics ----


def harmonic_mean(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b > 0 else 0.0


def f1_interval(wrong: tuple[int, int], right: tuple[int, int], seed: int = 0) -> Interval:
    """Interval of the harmonic mean of two shares, each (hits, out of).

    Quantiles of 10,000 draws of both shares from their Jeffreys posteriors, widened to include the estimate. Unlike the
    bootstrap this does not treat a share of 0 or 1 as certain.
    """
    rng = np.random.default_rng(seed)
    a, b = (rng.beta(hits + 0.5, n - hits + 0.5, DRAWS) for hits, n in (wrong, right))
    low, high = np.quantile(2 * a * b / (a + b), [0.025, 0.975])
    estimate = harmonic_mean(wrong[0] / wrong[1], right[0] / right[1])
    return min(float(low), estimate), max(float(high), estimate)


def agreement(ratings: Sequence[tuple[int, int]]) -> tuple[float | None, float | None]:
    """Mean pairwise agreement and Fleiss' kappa of yes-or-no ratings, each item (yes, raters).

    Items may have different numbers of raters; items with fewer than two are ignored. None if undefined: without items,
    and kappa if all ratings are equal.

    >>> agreement([(3, 3), (0, 3)]), agreement([(1, 2), (1, 2)])
    ((1.0, 1.0), (0.0, -1.0))
    """
    rated = [(yes, n) for yes, n in ratings if n >= 2]
    if not rated:
        return None, None
    observed = mean([(yes * (yes - 1) + (n - yes) * (n - yes - 1)) / (n * (n - 1)) for yes, n in rated])
    p = sum(yes for yes, _ in rated) / sum(n for _, n in rated)
    chance = p * p + (1 - p) * (1 - p)
    return observed, (observed - chance) / (1 - chance) if chance < 1 else None
