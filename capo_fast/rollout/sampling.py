"""One step's rollouts with their verdicts and critiques, request by request through one continuous batch.

    rollout requests -> engine -> each, when it ends: its answer to the reward functions, its critiques to the critic

A reward function that takes lists is called once, after the last rollout, so that its input does not depend on timing.

Critiques enter at the end of the engine step in which their rollout ended, while other rollouts still run. They enter
after the last rollout if the critic's weights must first replace the policy's, or if `credit.when` or `critic.gate`
needs verdicts (`Config.streams`). Either way the order of requests depends only on answers and verdicts: a resumed run
repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capo_fast.records import Completion, Member, Prompt, Request, Rollout, Sample
from capo_fast.rollout.carry import Partial
from capo_fast.rollout.critiquing import Critiquing
from capo_fast.rollout.gating import Gate
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.rewards import Check, Rewards, Verdicts
from capo_fast.rollout.stream import Stream, Traffic
from capo_fast.verify.functions import item_of


@dataclass
class Ended:
    """A finished rollout with its pending verdict."""

    rollout: Rollout
    check: Check | None = None
    """The check of all rollouts sent to the reward functions together; None on a rank that doesn't judge."""
    place: int = 0
    """Among them."""

    @property
    def member(self) -> Member:
        return self.rollout.group, self.rollout.sample

    def verdicts(self) -> Verdicts:
        """The values of the reward functions, `reward.fn` first. Waits for them."""
        return (None,) if self.check is None else self.check.result()[self.place]

    def outcome(self) -> float | None:
        """The verdict of `reward.fn`; None if it or another function has none. Waits for it."""
        verdicts = self.verdicts()
        return None if None in verdicts else verdicts[0]


class SamplingRound:
    """This rank's rollouts of one sampling round, with their verdicts and critiques.

    Call `finish_rollouts`, `choose`, then, with the critic's weights loaded, `finish_critiques`, then `samples`.
    `judges` is False if another rank of the same engine calls the verifier and a critic's server.
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
        """version: of the policy in the engine."""
        self._stream, self._rewards, self._requests, self._step = stream, rewards, requests, step
        self._version = version
        self._config = requests.config
        self._streams = requests.config.streams
        self._prompts, self._judges = prompts, judges
        self._dealt = members
        self._members: dict[str, Member] = {}
        """This rank's rollouts by request id."""
        self._ended: list[Ended] = []
        self._unchecked: list[Ended] = []
        self._checks: list[Check] = []
        self._critiquing = Critiquing(stream, requests, version)
        self._chosen: Sequence[Rollout] = ()
        """The rollouts for the critic, if critiques do not stream."""
        self._gate = Gate(stream, requests, self._critiquing, step, judges)

    @property
    def traffic(self) -> Traffic:
        return self._stream.traffic

    def finish_rollouts(self) -> None:
        """Run until every rollout has ended, with critiques that can stream."""
        self._send(self._dealt)
        while self._stream.rollouts:
            self._advance()

    def left(self) -> list[tuple[Member, Partial]]:
        """The rollouts carried to the next step."""
        return []

    def choose(self) -> bool:
        """Choose the rollouts for the critic, while the engine has the policy's weights. Returns True if any rank needs
        critiques. Under `credit.when` and `critic.gate` a collective on all ranks."""
        self._chosen = self._gate.choose([each.rollout for each in self._ended], self._outcomes)
        return self._gate.any_rank_asks(self._chosen)

    def finish_critiques(self, spent: int = 0) -> None:
        """Run until every critique of the chosen rollouts has ended. Under `critic.gate.tokens` a collective on all
        ranks. spent: critique tokens of the step's earlier rounds, on all ranks."""
        if not self._streams and self._config.has_critic:
            self._gate.ask(self._chosen, self._ask, self._finish, spent)
        self._finish()
        self._critiquing.finish()

    def _finish(self) -> None:
        while self._stream.critiques:
            self._advance()

    def _outcomes(self) -> dict[Member, float | None]:
        """The verdicts of this rank's rollouts, if it judges them. Waits for them."""
        return {each.member: each.outcome() for each in self._ended} if self._judges else {}

    def samples(self) -> list[Sample]:
        """Every rollout with its verdict, critiques and votes; only on ranks that judge."""
        return [self._sample(each) for each in self._ended] if self._judges else []

    def _sample(self, ended: Ended) -> Sample:
        critiques, votes = self._critiquing.result(ended.rollout)
        return Sample(ended.rollout, ended.outcome(), critiques, votes, ended.verdicts())

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
                self._critiquing.note(completion)
        self._settle(self._read(ended))

    def _read(self, ended: Sequence[Completion]) -> list[Rollout]:
        """The finished rollouts that are ready to be judged."""
        members = [self._members[completion.id] for completion in ended]
        return [
            self._requests.read_rollout(answer, self._prompts[group], group, sample, self._version)
            for answer, (group, sample) in zip(ended, members, strict=True)
        ]

    def _settle(self, rollouts: Sequence[Rollout]) -> None:
        """Send these to the reward functions and, if critiques stream, to the critic."""
        ended = [Ended(rollout) for rollout in rollouts]
        self._ended += ended
        self._unchecked += ended
        if self._all_have_ended() or not self._rewards.batch:
            self._check()
        for check in [check for check in self._checks if check.done()]:
            check.result()  # a verifier that fails raises now, not after the last critique
            self._checks.remove(check)
        if self._streams:
            self._ask(rollouts)

    def _all_have_ended(self) -> bool:
        """True if no further rollout will be judged."""
        return not self._stream.rollouts

    def _check(self) -> None:
        """Send the pending answers to the reward functions, in the order of groups."""
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

    def _ask(self, rollouts: Sequence[Rollout]) -> None:
        """Send these rollouts to the critic."""
        config = self._config
        if config.has_critic and (self._judges or not config.critic.at_server):
            for rollout in rollouts:
                self._critiquing.ask(rollout)
