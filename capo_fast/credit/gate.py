"""The groups that a critic judges if not all, and their order (`critic.gate`).

Everything here depends only on verdicts, the run's seed and the groups' indices, so all ranks compute the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import pvariance
from typing import Literal

from capo_fast.verify.functions import is_right

Verdicts = Mapping[int, Sequence[float]]
"""Verdicts of a group's rollouts, without missing ones, by group."""


def groups_to_read(verdicts: Verdicts, which: Literal["all", "any-wrong", "mixed"]) -> set[int]:
    """The groups to judge: with a wrong answer (any-wrong), or with right and wrong ones (mixed).

    >>> groups_to_read({0: [1, 1], 1: [1, 0], 2: [0, 0]}, "any-wrong")
    {1, 2}
    """
    if which == "all":
        return set(verdicts)
    right = {group: [is_right(verdict) for verdict in found] for group, found in verdicts.items()}
    if which == "mixed":
        return {group for group, found in right.items() if len(set(found)) > 1}
    return {group for group, found in right.items() if not all(found)}


def reading_order(verdicts: Verdicts, place: Mapping[int, int]) -> list[int]:
    """Groups by the variance of their verdicts, largest first. [us] It is largest if half are right, where the group's
    advantages are largest. Without variance, groups of wrong answers come before those of right ones, as verdicts don't
    show which steps are wrong. Ties go by `place`, a number drawn for each group.

    >>> reading_order({0: [1, 1], 1: [1, 0], 2: [0, 0], 3: [1, 0]}, {0: 0, 1: 2, 2: 0, 3: 1})
    [3, 1, 2, 0]
    """

    def key(group: int) -> tuple[float, float, int]:
        found = verdicts[group]
        return (-pvariance(found), sum(found), place[group]) if found else (0.0, 0.0, place[group])

    return sorted(verdicts, key=key)


def within_budget(costs: Mapping[int, int], order: Iterable[int], left: int) -> list[int]:
    """The groups, in this order, whose costs fit into `left`; a group that does not fit is skipped.

    >>> within_budget({4: 30, 5: 80, 6: 60}, [4, 5, 6], 100)
    [4, 6]
    """
    found = []
    for group in order:
        if costs[group] <= left:
            found.append(group)
            left -= costs[group]
    return found
