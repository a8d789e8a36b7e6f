"""One step's rollouts with their verdicts and critiques, request by request through one continuous batch.

    rollout requests -> engine -> each as it ends: its answer to the reward functions, its critiques to the critic

A reward function that takes lists is called once, after the last rollout, so that what it is given hangs on no clock.

Critiques enter at the end of the engine step in which their rollout ended, beside the rollouts that still run; or all
after the last rollout, where the critic's weights must first take the policy's place or `credit.when` wants verdicts
(`Config.streams`). Either way the order of requests follows from answers and verdicts alone: a resumed run repeats it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capo_fast.credit.vote import vote
from capo_fast.records import Completion, Prompt, Request, Rollout, Sample
from capo_fast.rollout.carry import Member, Partial
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.rewards import Check, Rewards, Verdicts
from capo_fast.rollout.stream import Stream, Traffic
from capo_fast.runtime.ranks import gather
from capo_fast.verify.functions import item_of


@dataclass
class Ended:
    """A rollout that has ended, with its verdict and critiques on their way."""

    rollout: Rollout
    check: Check | None = None
    """Of all rollouts that were sent to the reward functions together; None on a rank that doesn't judge."""
    place: int = 0
    """Among them."""
    judged_as: Rollout | None = None
    """The rollout whose critiques this one uses: itself or one of the same tokens; None where the critic reads none."""

    @property
    def member(self) -> Member:
        return self.rollout.group, self.rollout.sample

    def verdicts(self) -> Verdicts:
        """Of each reward function, `reward.fn` first. Waits for them."""
        return (None,) if self.check is None else self.check.result()[self.place]

    def outcome(self) -> float | None:
        """The verdict of `reward.fn`; None where it, or another function, has none. Waits for it."""
        verdicts = self.verdicts()
        return None if None in verdicts else verdicts[0]


class SamplingRound:
    """This rank's rollouts of one sampling round, with their verdicts and critiques.

    `finish_rollouts`, then, once the critic's weights are there, `finish_critiques`, then `samples`. `judges` is False
    where another rank of the same engine asks the verifier and a critic at a server.
    """

    def __init__(
        self,
        stream: Stream,
        rewards: Rewards,
        requests: RequestBuilder,
        prompts: Mapping[int, Prompt],
        members: Sequence[Member],
        step: int,
        version: int,
        judges: bool = True,
    ) -> None:
        """version: of the policy that the engine holds."""
        self._stream, self._rewards, self._requests, self._step = stream, rewards, requests, step
        self._version = version
        self._config = requests.config
        self._streams = requests.config.streams
        self._prompts, self._judges = prompts, judges
        self._dealt = members
        self._members: dict[str, Member] = {}
        """Of this rank's rollouts, by request id."""
        self._ended: list[Ended] = []
        self._unchecked: list[Ended] = []
        self._checks: list[Check] = []
        self._asked: dict[object, Rollout] = {}
        """The rollouts sent to the critic, by what equal ones share."""
        self._answers: dict[str, Completion] = {}
        """Of the critic, by request id."""

    @property
    def traffic(self) -> Traffic:
        return self._stream.traffic

    def finish_rollouts(self) -> None:
        """Until every rollout has ended; critiques that can run beside them do."""
        self._send(self._dealt)
        while self._stream.rollouts:
            self._advance()

    def left(self) -> list[tuple[Member, Partial]]:
        """What goes on in the next step."""
        return []

    def finish_critiques(self) -> None:
        """Until every critique has ended. Under `credit.when` a collective on all ranks."""
        if not self._streams:
            self._ask(self._chosen())
        while self._stream.critiques:
            self._advance()

    def samples(self) -> list[Sample]:
        """Every rollout with its verdict, critiques and votes, on the ranks that judge."""
        return [self._sample(each) for each in self._ended] if self._judges else []

    def _sample(self, ended: Ended) -> Sample:
        read, rewards = ended.judged_as, ended.verdicts()
        critiques = () if read is None else self._requests.read_critiques(read, self._answers)
        votes = tuple(vote(critiques, len(ended.rollout.steps.texts), self._config.critic.voting))
        return Sample(ended.rollout, ended.outcome(), critiques, votes, rewards)

    def _send(self, members: Sequence[Member]) -> None:
        for group, sample in members:
            request = self._request(group, sample)
            self._members[request.id] = group, sample
            self._stream.add_rollout(request)

    def _request(self, group: int, sample: int) -> Request:
        return self._requests.rollout_request(self._prompts[group], group, sample, self._step)

    def _advance(self) -> None:
        ended = []
        for completion in self._stream.advance():
            if completion.id in self._members:
                ended.append(completion)
            else:
                self._answers[completion.id] = completion
        self._settle(self._read(ended))

    def _read(self, ended: Sequence[Completion]) -> list[Rollout]:
        """The rollouts that are to be judged, of those that have ended."""
        members = [self._members[completion.id] for completion in ended]
        return [
            self._requests.read_rollout(answer, self._prompts[group], group, sample, self._version)
            for answer, (group, sample) in zip(ended, members, strict=True)
        ]

    def _settle(self, rollouts: Sequence[Rollout]) -> None:
        """Send these to the reward functions and, where they stream, to the critic."""
        ended = [Ended(rollout) for rollout in rollouts]
        self._ended += ended
        self._unchecked += ended
        if self._all_have_ended() or not self._rewards.batch:
            self._check()
        for check in [check for check in self._checks if check.done()]:
            check.result()  # a verifier that fails raises now, not after the last critique
            self._checks.remove(check)
        if self._streams:
            self._ask(ended)

    def _all_have_ended(self) -> bool:
        """Whether no further rollout is to be judged."""
        return not self._stream.rollouts

    def _check(self) -> None:
        """Send the answers that have not been sent yet to the reward functions, in the order of groups."""
        sent, self._unchecked = sorted(self._unchecked, key=lambda each: each.member), []
        if not (sent and self._judges):
            return
        rollouts = [each.rollout for each in sent]
        check = self._rewards.submit(
            [item_of(each.text, each.prompt, each.prompt.columns, each.finished) for each in rollouts]
        )
        self._checks.append(check)
        for place, each in enumerate(sent):
            each.check, each.place = check, place

    def _chosen(self) -> list[Ended]:
        """The rollouts that `credit.when` lets the critic read."""
        when = self._config.credit.when
        if when == "always":
            return self._ended
        found = [(each.member, each.outcome()) for each in self._ended] if self._judges else []
        verdicts = {member: outcome for member, outcome in gather(found) if outcome is not None}
        wanted = {member for member, verdict in verdicts.items() if (verdict < 1) == (when == "wrong-answers")}
        if when == "mixed-groups":
            kinds = Counter(group for group, _ in {(group, verdict) for (group, _), verdict in verdicts.items()})
            wanted = {member for member in verdicts if kinds[member[0]] > 1}
        chosen = [each for each in self._ended if each.member in wanted]
        self._stream.traffic += Traffic(unread=len(self._ended) - len(chosen))
        return chosen

    def _ask(self, rollouts: Sequence[Ended]) -> None:
        """Send these rollouts to the critic, equal ones once."""
        config = self._config
        if not config.has_critic or (config.critic.at_server and not self._judges):
            return
        for each in rollouts:
            rollout = each.rollout
            key = (rollout.prompt.id, rollout.token_ids) if config.critic.judge_once else each.member
            each.judged_as = self._asked.setdefault(key, rollout)
            if each.judged_as is rollout:
                for request in self._requests.critique_requests(rollout):
                    self._stream.add_critique(request)
            else:
                self._stream.traffic += Traffic(shared=1)
