"""Partial rollouts (`rollout.carry`): the state of incomplete groups, and the rule by which a step stops them.

    step 1: groups 0 1 2 3 enter      2 and 0 and 3 are complete: they are trained on; 1 is stopped and kept
    step 2: group 1 continues, 4 more enter   all but one are complete: ...

Every step draws `rollout.prompts` groups, and leaves at most `rollout.prompts - rollout.enough` open. So a step trains
on `rollout.prompts` groups on average, the open ones are bounded, and each prompt is trained on once. A group whose
oldest token would be more than `rollout.max_staleness` versions old in the next step is always completed: nothing is
dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import ConfigDict, NonNegativeInt, PositiveInt

from capo_fast.exchange.figures import Figures
from capo_fast.records import Completion, Member


@dataclass(frozen=True)
class Partial:
    """The state of one rollout of an open group.

    >>> Partial().extended(Completion("", (5, 6), (-0.5, -0.1), "", False), version=3, ended=False).versions
    ((3, 2),)
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    versions: tuple[tuple[NonNegativeInt, PositiveInt], ...] = ()
    """Policy version and number of tokens of each part, oldest first."""
    requests: NonNegativeInt = 0
    """Number of requests sent for it so far; the seed of the next one depends on it."""
    ended: bool = False
    """The rollout is complete and waits for the others of its group."""
    finished: bool = False
    """As in Completion."""
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    """[L], the response so far."""
    logprobs: tuple[float, ...] = field(default=(), repr=False)
    """[L], each under the version that wrote the token. Both are empty on ranks that do not continue it."""

    @property
    def tokens(self) -> int:
        """So far."""
        return sum(tokens for _, tokens in self.versions)

    @property
    def bare(self) -> Partial:
        """A copy without tokens, as every rank has it."""
        return replace(self, token_ids=(), logprobs=())

    def extended(self, part: Completion, version: int, ended: bool) -> Partial:
        """A copy extended by the answer to one more request, written by the policy of this version."""
        versions, tokens = self.versions, len(part.token_ids)
        if versions and versions[-1][0] == version:
            versions, tokens = versions[:-1], tokens + versions[-1][1]
        return Partial(
            versions=(*versions, (version, tokens)) if tokens else versions,
            requests=self.requests + 1,
            ended=ended,
            finished=part.finished,
            token_ids=self.token_ids + part.token_ids,
            logprobs=self.logprobs + part.logprobs,
        )


@dataclass(frozen=True)
class OpenGroup:
    """A prompt's rollouts, some of them unfinished."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    step: PositiveInt
    """The training step in which it was drawn."""
    group: NonNegativeInt
    """Its index in that step; both determine the names and seeds of its rollouts until they end."""
    draw: NonNegativeInt
    """The position of its prompt in the data's order, from the start of the run."""
    rollouts: tuple[Partial, ...]

    @property
    def is_new(self) -> bool:
        """True if no request of it has been sent yet."""
        return not any(each.requests for each in self.rollouts)

    @property
    def oldest(self) -> int | None:
        """Version of its oldest token."""
        return min((version for each in self.rollouts for version, _ in each.versions), default=None)

    @property
    def bare(self) -> OpenGroup:
        """A copy without the tokens of its rollouts."""
        return replace(self, rollouts=tuple(each.bare for each in self.rollouts))

    def updated(self, rollouts: Mapping[int, Partial]) -> OpenGroup:
        """A copy with these rollouts replaced, by sample."""
        return replace(self, rollouts=tuple(rollouts.get(i, each) for i, each in enumerate(self.rollouts)))


def at_limit(groups: Mapping[int, OpenGroup], version: int, max_staleness: int) -> set[int]:
    """Groups that must be completed at this version of the policy, as they would be too old at the next."""
    oldest = {group: each.oldest for group, each in groups.items()}
    return {group for group, found in oldest.items() if found is not None and version - found >= max_staleness}


class Quota:
    """The complete groups of a sampling round, and the test for enough of them. The same on every rank."""

    def __init__(self, groups: Mapping[int, OpenGroup], may_stay_open: int, must_end: set[int]) -> None:
        """may_stay_open: number of groups; at least one is completed. must_end: groups that are always completed."""
        self._running = {group: sum(not each.ended for each in found.rollouts) for group, found in groups.items()}
        self._may_stay_open = min(may_stay_open, len(groups) - 1)
        self._must_end = must_end

    def met(self) -> bool:
        """True if the rollouts that still run are to be stopped."""
        still_open = {group for group, running in self._running.items() if running}
        return len(still_open) <= self._may_stay_open and not still_open & self._must_end

    def note(self, ended: Iterable[Member]) -> set[int]:
        """The groups completed by these rollouts of all engines."""
        touched = set()
        for group, _ in ended:
            self._running[group] -= 1
            touched.add(group)
        return {group for group in touched if not self._running[group]}


def still_open(groups: Mapping[int, OpenGroup], left: Iterable[tuple[Member, Partial]]) -> tuple[OpenGroup, ...]:
    """The open groups with the state of each of their rollouts, in the order of the groups."""
    found: dict[int, dict[int, Partial]] = {}
    for (group, sample), partial in left:
        found.setdefault(group, {})[sample] = partial
    return tuple(groups[group].updated(found[group]) for group in sorted(found))


def carry_metrics(
    sampled: Sequence[Figures], carried: Sequence[OpenGroup], version: int, late: int
) -> dict[str, float]:
    """Metrics of a step's carried rollouts, at this version of the policy. late: number of groups that it had to
    complete."""
    kept = [rollout for group in carried for rollout in group.rollouts]
    tokens = sum(each.tokens for each in sampled)
    return {
        # All floats, as a checkpoint (`engine.ranks`) restores them.
        "rollout/carried": float(len(kept)),
        "rollout/carried_tokens": float(sum(rollout.tokens for rollout in kept)),
        "rollout/finished_stale": float(late),
        "rollout/staleness": (version * tokens - sum(each.written for each in sampled)) / max(tokens, 1),
    }
