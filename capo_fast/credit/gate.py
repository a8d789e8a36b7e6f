"""Which groups a critic reads where it is not asked about all, and in which order (`critic.gate`).

Everything here follows from verdicts, the run's seed and the groups' indices, so every rank finds the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import pvariance
from typing import Literal

Verdicts = Mapping[int, Sequence[float]]
"""By group, those of its rollouts that have one."""


def groups_to_read(verdicts: Verdicts, which: Literal["all", "any-wrong", "mixed"]) -> set[int]:
    """The groups that leave something to decide: with a wrong answer (any-wrong), or with different verdicts (mixed).

    A share between 0 and 1, which a reward function may give, is a wrong answer.

    >>> groups_to_read({0: [1, 1], 1: [1, 0], 2: [0, 0]}, "any-wrong")
    {1, 2}
    """
    if which == "all":
        return set(verdicts)
    if which == "mixed":
        return {group for group, found in verdicts.items() if len(set(found)) > 1}
    return {group for group, found in verdicts.items() if min(found, default=1) < 1}


def reading_order(verdicts: Verdicts, place: Mapping[int, int]) -> list[int]:
    """Groups by what their verdicts leave open, most first. [us] That is the variance of the verdicts, which is largest
    where half are right: there the group's advantages are largest. Without any variance, wrong answers come before
    right ones: what is wrong in them the verdicts don't show. Ties go by `place`, a number drawn for each group.

    >>> reading_order({0: [1, 1], 1: [1, 0], 2: [0, 0], 3: [1, 0]}, {0: 0, 1: 2, 2: 0, 3: 1})
    [3, 1, 2, 0]
    """

    def key(group: int) -> tuple[float, float, int]:
        found = verdicts[group]
        return (-pvariance(found), sum(found), place[group]) if found else (0.0, 0.0, place[group])

    return sorted(verdicts, key=key)


def within_budget(costs: Mapping[int, int], order: Iterable[int], left: int) -> list[int]:
    """Of groups in this order those whose costs fit into what is left; a group that does not fit is passed over.

    >>> within_budget({4: 30, 5: 80, 6: 60}, [4, 5, 6], 100)
    [4, 6]
    """
    found = []
    for group in order:
        if costs[group] <= left:
            found.append(group)
            left -= costs[group]
    return found
