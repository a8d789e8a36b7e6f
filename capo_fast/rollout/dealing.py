"""Rollouts -> engine groups, by expected length: the longest start first and are spread evenly."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from statistics import fmean

from capo_fast.records import Member, Prompt
from capo_fast.rollout.carry import OpenGroup


def deal_rollouts(
    prompts: Mapping[int, Prompt], n: int, expected: Mapping[str, float], count: int
) -> list[list[Member]]:
    """(group, sample) of each engine group: `n` samples of every prompt, the longest first to the least loaded.

    prompts: by group. expected: mean response length in tokens by prompt id, of prompts sampled before; a new one
    counts as their mean. An engine group's samples of a prompt are neighbours, longest prompts first. The result
    depends only on the arguments, so it is the same on every rank.

    >>> a, b = (Prompt(id, "", "", None, ()) for id in "ab")
    >>> deal_rollouts({0: a, 1: b}, 2, {"a": 10.0, "b": 30.0}, count=2)
    [[(1, 0), (0, 0)], [(1, 1), (0, 1)]]
    """
    unseen = fmean(expected.values()) if expected else 1.0
    lengths = {group: expected.get(prompt.id, unseen) for group, prompt in prompts.items()}
    shares: list[list[Member]] = [[] for _ in range(count)]
    loads = [(0.0, 0, share) for share in range(count)]  # a heap: tokens, rollouts, index
    for group in sorted(lengths, key=lambda group: (-lengths[group], group)):
        for sample in range(n):
            tokens, rollouts, share = loads[0]
            shares[share].append((group, sample))
            heapq.heapreplace(loads, (tokens + lengths[group], rollouts + 1, share))
    return shares


def deal_open(
    groups: Mapping[int, OpenGroup],
    prompts: Mapping[int, Prompt],
    n: int,
    expected: Mapping[str, float],
    count: int,
) -> list[list[Member]]:
    """(group, sample) of each engine group, as `deal_rollouts`, with groups left open by an earlier round: their
    running rollouts start before new ones. Finished rollouts are dealt last, to be judged there.

    prompts: of all groups.
    """
    new = {group: prompts[group] for group, found in groups.items() if found.is_new}
    running, ended = deal_begun(groups, count)
    dealt = deal_rollouts(new, n, expected, count)
    return [running[i] + dealt[i] + ended[i] for i in range(count)]


def deal_begun(groups: Mapping[int, OpenGroup], count: int) -> tuple[list[list[Member]], list[list[Member]]]:
    """The running and the finished rollouts of each engine group, of groups left open by an earlier round. The result
    depends only on these groups."""
    begun = [((g, s), each) for g, found in groups.items() if not found.is_new for s, each in enumerate(found.rollouts)]
    running = [member for member, each in begun if not each.ended]
    ended = [member for member, each in begun if each.ended]
    return [running[i::count] for i in range(count)], [ended[i::count] for i in range(count)]
