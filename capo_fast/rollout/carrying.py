"""A sampling round that stops before its last rollout (`rollout.carry`).

The rollouts are stopped after a counted number of engine steps, never by time, so a repeated run stops the same ones.
One engine checks after each of its steps if enough groups are complete. Several engines exchange their finished
rollouts every `EXCHANGE_STEPS` steps of each, and all stop after the same number of steps.

A rollout is sent to the reward functions and to the critic only when its group is complete.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from capo_fast.records import Completion, Member, Prompt, Request, Rollout
from capo_fast.rollout.carry import OpenGroup, Partial, Quota, at_limit
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.rewards import Rewards
from capo_fast.rollout.sampling import SamplingRound
from capo_fast.rollout.stream import Stream
from capo_fast.runtime.ranks import EngineGroup

EXCHANGE_STEPS = 16
"""Engine steps between two exchanges, each a gather of a few bytes over all ranks."""


class CarryingRound(SamplingRound):
    """`finish_rollouts` is a collective on all ranks if there are several engines."""

    def __init__(
        self,
        stream: Stream,
        rewards: Rewards,
        requests: RequestBuilder,
        prompts: Mapping[int, Prompt],
        members: Sequence[Member],
        step: int,
        version: int,
        groups: Mapping[int, OpenGroup],
        engines: EngineGroup,
    ) -> None:
        """groups: by their index in this step, those of all engines."""
        super().__init__(stream, rewards, requests, prompts, members, step, version, engines.is_first)
        settings = requests.config.rollout
        must_end = at_limit(groups, step - 1, settings.max_staleness)
        self._quota = Quota(groups, settings.may_stay_open, must_end)
        self._engines, self._groups = engines, dict(groups)
        self._so_far = {(group, sample): groups[group].rollouts[sample] for group, sample in members}
        self._unannounced: list[Member] = []
        """Rollouts that have ended since the last exchange."""

    def finish_rollouts(self) -> None:
        """Run until enough groups are complete, then stop the others."""
        self._send([member for member in self._dealt if not self._so_far[member].ended])
        while not self._quota.met():
            for _ in range(EXCHANGE_STEPS if self._engines.count > 1 else 1):
                if self._stream.engine_has_work():
                    self._advance()
            self._settle(self._rollouts_of(self._quota.note(self._exchanged())))
        for completion in self._stream.stop_rollouts():
            self._extend(completion, ended=False)
        self._settle([])  # now call reward functions that take lists

    def left(self) -> list[tuple[Member, Partial]]:
        judged = {each.member for each in self._ended}
        return [(member, partial) for member, partial in self._so_far.items() if member not in judged]

    def _request(self, group: int, sample: int) -> Request:
        return self._requests.next_request(self._prompts[group], self._groups[group], sample)

    def _read(self, ended: Sequence[Completion]) -> list[Rollout]:
        self._unannounced += [self._extend(completion, ended=True) for completion in ended]
        return []

    def _all_have_ended(self) -> bool:
        return self._quota.met() and super()._all_have_ended()

    def _extend(self, completion: Completion, ended: bool) -> Member:
        member = self._members[completion.id]
        self._so_far[member] = self._so_far[member].extended(completion, self._version, ended)
        return member

    def _exchanged(self) -> list[Member]:
        """The rollouts of all engines that have ended since the last exchange."""
        mine, self._unannounced = self._unannounced, []
        return self._engines.gather(mine) if self._engines.count > 1 else mine

    def _rollouts_of(self, groups: Collection[int]) -> list[Rollout]:
        """This rank's rollouts of complete groups."""
        return [
            self._requests.read_partial(partial, self._prompts[group], group, sample)
            for (group, sample), partial in self._so_far.items()
            if group in groups
        ]
