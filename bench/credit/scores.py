"""Scores of credit: AUC of wrong steps, and agreement with the oracle's advantage in sign and rank."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

Steps = Sequence[Sequence[float]]
"""One number per step of each rollout."""
Labels = Sequence[Sequence[int | None]]
"""1: a wrong step; 0: a right one; None: not labelled."""


def auc(advantages: Sequence[float], wrong: Sequence[int]) -> float | None:
    """Probability that a wrong step has less advantage than a right one, ties count half; None unless both kinds exist.

    >>> auc([1.0, 0.0, 0.0, -1.0], [0, 0, 1, 1])
    0.875
    """
    return weighted_auc(places(advantages), np.asarray(wrong), np.ones(len(wrong)))


def weighted_auc(place: np.ndarray, wrong: np.ndarray, weight: np.ndarray) -> float | None:
    """`auc` of steps that count `weight` times each. All [S]; place: of the step's value among the values."""
    good, bad = (np.bincount(place, weight * (wrong == which)) for which in (0, 1))
    pairs = good.sum() * bad.sum()
    above = good.sum() - good.cumsum() + good / 2
    return float((bad * above).sum() / pairs) if pairs else None


def places(values: Sequence[float]) -> np.ndarray:
    """
    >>> places([3.0, 1.0, 3.0]).tolist()
    [1, 0, 1]
    """
    return np.unique(np.asarray(values, dtype=float), return_inverse=True)[1]


def pooled_auc(advantages: Steps, labels: Labels) -> float | None:
    """AUC over the steps of all rollouts."""
    found = [pair for row, known in zip(advantages, labels, strict=True) for pair in labelled(row, known)]
    return auc([a for a, _ in found], [label for _, label in found])


def auc_interval(
    advantages: Steps, labels: Labels, together: int = 1, resamples: int = 1000
) -> tuple[float, float] | None:
    """95 % of `pooled_auc`, by a bootstrap over rollouts; None without either kind of step. together: so many
    consecutive rollouts, a group, are drawn as one."""
    count = -(-len(labels) // together)
    rows = [labelled(row, known) for row, known in zip(advantages, labels, strict=True)]
    owner = np.array([k // together for k, row in enumerate(rows) for _ in row], dtype=int)
    place, wrong = places([a for row in rows for a, _ in row]), np.array([label for row in rows for _, label in row])
    draws = np.random.default_rng(0).integers(count, size=(resamples, count))
    scores = [weighted_auc(place, wrong, np.bincount(drawn, minlength=count)[owner]) for drawn in draws]
    found = [score for score in scores if score is not None]
    if not found:
        return None
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def inner_auc(advantages: Steps, labels: Labels) -> float | None:
    """Mean AUC over rollouts with steps of both kinds, within each rollout, so that the verdict on the answer has no
    influence."""
    rows = (labelled(row, known) for row, known in zip(advantages, labels, strict=True))
    found = [value for row in rows if (value := auc([a for a, _ in row], [x for _, x in row])) is not None]
    return fmean(found) if found else None


def labelled(row: Sequence[float], known: Sequence[int | None]) -> list[tuple[float, int]]:
    return [(a, label) for a, label in zip(row, known, strict=True) if label is not None]


def sign_agreement(advantages: Steps, truth: Steps) -> float | None:
    """Share of steps with the sign of the true advantage, among those where it is not 0."""
    pairs = [(a, t) for row, true in zip(advantages, truth, strict=True) for a, t in zip(row, true, strict=True) if t]
    return fmean(a * t > 0 for a, t in pairs) if pairs else None


def rank_correlation(advantages: Steps, truth: Steps) -> float | None:
    """Spearman's correlation over the steps of all rollouts; None if either is constant.

    >>> rank_correlation([[1.0, 2.0], [5.0]], [[0.0, 3.0], [4.0]])
    1.0
    """
    one, two = (mid_ranks([x for row in rows for x in row]) for rows in (advantages, truth))
    if not (one.size and np.ptp(one) and np.ptp(two)):
        return None
    return round(float(np.corrcoef(one, two)[0, 1]), 12)


def mid_ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 0; equal values get the mean of their ranks.

    >>> mid_ranks([3.0, 1.0, 3.0]).tolist()
    [1.5, 0.0, 1.5]
    """
    _, place, count = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    return (count.cumsum() - (count + 1) / 2)[place]
