"""maj@k: the score of the answer that most samples of a problem have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

Vote = tuple[str | None, bool]
"""A sample's answer (None: none was found, no vote), and True if it was checked to be right."""
Equal = Callable[[list[tuple[str, str]]], Sequence[bool | float | None]]
"""Compares the answers of each pair; None for a comparison that timed out."""


def majority_scores(problems: Sequence[Sequence[Vote]], equal: Equal) -> tuple[list[float], int]:
    """The score in [0, 1] of each problem, and the number of comparisons that timed out (counted as different).

    Equal answers vote together. If answers tie for the lead, the score is the probability that a uniform draw among
    them is right (others take the one sampled first: the same on average, but it depends on the order). Without votes
    it is 0. All right answers are one cluster by their verdicts; wrong ones are compared with each other, spelling by
    spelling, only if that could change the result.
    """
    tallies = [_tally(votes) for votes in problems]
    pairs = [(i, pair) for i, tally in enumerate(tallies) if _open(*tally) for pair in combinations(tally[1], 2)]
    verdicts = equal([pair for _, pair in pairs]) if pairs else []
    merges: dict[int, list[tuple[str, str]]] = {}
    for (i, pair), same in zip(pairs, verdicts, strict=True):
        if same is not None and float(same) == 1.0:
            merges.setdefault(i, []).append(pair)
    scores = [_score(right, _merged(wrong, merges.get(i, []))) for i, (right, wrong) in enumerate(tallies)]
    return scores, sum(same is None for same in verdicts)


def _tally(votes: Sequence[Vote]) -> tuple[int, Counter[str]]:
    """Votes for the right answer, and for each spelling of a wrong answer."""
    return sum(right for _, right in votes), Counter(text for text, right in votes if text is not None and not right)


def _open(right: int, wrong: Counter[str]) -> bool:
    """True if merging wrong spellings can change the score: the right answer leads, but not over all together."""
    return right > 0 and max(wrong.values(), default=0) <= right <= wrong.total() and len(wrong) > 1


def _merged(wrong: Counter[str], pairs: Sequence[tuple[str, str]]) -> list[int]:
    """Votes of each cluster, built from the most common spelling down.

    A spelling joins the first cluster of which it equals every member. Equality isn't transitive: 28 % equals 0.28 and
    28, which differ. Ties go by text, so the order of the samples doesn't matter.
    """
    equal = set(map(frozenset, pairs))
    clusters: list[list[str]] = []
    for text in sorted(wrong, key=lambda text: (-wrong[text], text)):
        fitting = (each for each in clusters if all(frozenset((text, other)) in equal for other in each))
        if (cluster := next(fitting, None)) is None:
            clusters.append(cluster := [])
        cluster.append(text)
    return [sum(wrong[text] for text in cluster) for cluster in clusters]


def _score(right: int, wrong: Sequence[int]) -> float:
    most = max(wrong, default=0)
    if right == 0 or right < most:
        return 0.0
    return 1.0 / (1 + wrong.count(right))
