"""The rollouts of a round that the critic judges (`credit.when`, `critic.gate`): ordered groups within a budget.

Ranks exchange verdicts, costs and spent tokens, so all choose the same groups. They also exchange digests of the judged
texts and divide them: one engine judges a text that several rollouts of a group share. So the votes do not depend on
which rank has which rollout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from capo_fast.config.critic import GateConfig
from capo_fast.config.schema import Config
from capo_fast.credit.estimators.answer_probability import answer_tokens, mean_probability, starts_of
from capo_fast.credit.gate import groups_to_read, reading_order, within_budget
from capo_fast.credit.groups import Suffix, step_gains
from capo_fast.records import Member, Rollout
from capo_fast.rollout.critiquing import Claim, Critiquing
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.stream import Stream, Traffic
from capo_fast.runtime.digest import seed_of
from capo_fast.runtime.ranks import gather
from capo_fast.verify.functions import is_right

Outcomes = Mapping[Member, float | None]
"""Verdicts of this rank's rollouts; None if a check timed out. Empty on ranks that do not judge."""


class Gate:
    """The gate of one round. If `credit.when` or `critic.gate` is set, its methods are collectives on all ranks."""

    def __init__(
        self, stream: Stream, requests: RequestBuilder, critiquing: Critiquing, step: int, judges: bool
    ) -> None:
        self._stream, self._requests, self._critiquing = stream, requests, critiquing
        self._config, self._gate = requests.config, requests.config.critic.gate
        self._step, self._judges = step, judges
        self._verdicts: dict[Member, float] = {}

    def choose(self, rollouts: Sequence[Rollout], outcomes: Callable[[], Outcomes]) -> Sequence[Rollout]:
        """The rollouts that pass `credit.when` and the gate's choice of groups. outcomes: waits for them.

        `critic.gate.ambiguous` queries the policy, so its weights must be in the engine.
        """
        if not self._config.chooses:
            return rollouts
        self._verdicts = shared(outcomes())
        wanted = self._wanted(rollouts)
        claims, read = self._divided(wanted), self._groups_of(wanted)
        if self._gate.trust_right:
            right = {member for member, verdict in self._verdicts.items() if is_right(verdict) and member[0] in read}
            self._critiquing.presume(claim for claim in claims if claim[0] in right)
        left_out = self._critiquing.wanted(each for each in wanted if each.group not in read)
        self._stream.traffic += Traffic(unread=len(rollouts) - len(wanted), gated_groups=left_out)
        return [each for each in wanted if each.group in read]

    def any_rank_asks(self, chosen: Sequence[Rollout]) -> bool:
        """True if a critique of these is needed on any rank. Returns True without a check if nothing is left out."""
        return not self._config.chooses or any(gather([self._critiquing.wanted(chosen) > 0]))

    def ask(
        self,
        rollouts: Sequence[Rollout],
        ask: Callable[[Sequence[Rollout]], None],
        finish: Callable[[], None],
        spent: int = 0,
    ) -> None:
        """Request critiques of these: all at once, or group by group within `critic.gate.tokens`, each whole or not at
        all. Then engines exchange the critiques of shared texts. finish: waits for the requested critiques. spent:
        tokens of the step's earlier rounds, on all ranks.
        """
        if self._gate.tokens is None:
            ask(rollouts)
        else:
            self._ask_within(self._gate.tokens - spent, rollouts, ask, finish)
        if self._config.chooses:
            finish()
            self._critiquing.take_over(gather(self._critiquing.common() if self._judges else []))

    def _ask_within(
        self,
        budget: int,
        rollouts: Sequence[Rollout],
        ask: Callable[[Sequence[Rollout]], None],
        finish: Callable[[], None],
    ) -> None:
        """A running critique counts at its maximum length; tokens that it did not use go to further groups."""
        waiting = grouped(rollouts)
        costs, order = self._costs(waiting), self._order()
        while groups := within_budget(costs, (each for each in order if each in costs), budget - self._spent()):
            for group in groups:
                del costs[group]
                ask(waiting.pop(group, []))
            finish()
        over, unjudged = (
            self._critiquing.wanted(each for group in waiting if (group in order) == judged for each in waiting[group])
            for judged in (True, False)
        )
        self._stream.traffic += Traffic(gated_budget=over, gated_groups=unjudged)

    def _divided(self, rollouts: Sequence[Rollout]) -> list[Claim]:
        """The claims of all engines' rollouts; divides them among the engines."""
        mine = self._critiquing.claims(rollouts)
        claims = gather(mine if self._judges else [])
        self._critiquing.divide(claims)
        return claims

    def _wanted(self, rollouts: Sequence[Rollout]) -> Sequence[Rollout]:
        """The rollouts that pass `credit.when`."""
        when, verdicts = self._config.credit.when, self._verdicts
        if when == "always":
            return rollouts
        judged = [each for each in rollouts if (each.group, each.sample) in verdicts]
        if when == "mixed-groups":
            mixed = groups_to_read(by_group(verdicts), "mixed")
            return [each for each in judged if each.group in mixed]
        right = when == "right-answers"
        return [each for each in judged if is_right(verdicts[each.group, each.sample]) == right]

    def _groups_of(self, rollouts: Sequence[Rollout]) -> set[int]:
        """The groups of these that pass `critic.gate`, with those of other ranks."""
        if self._gate.groups == "all":
            return {each.group for each in rollouts}
        read = groups_to_read(by_group(self._verdicts), self._gate.groups)
        return read | self._ambiguous([each for each in rollouts if each.group not in read])

    def _ambiguous(self, rollouts: Sequence[Rollout]) -> set[int]:
        """The ambiguous groups of these by the policy (`critic.gate.ambiguous`), on all ranks. Groups without any
        verdict are left out: they are not trained on."""
        least = self._gate.ambiguous
        if least is None:
            return set()
        known = {group for group, _ in self._verdicts}
        profiles = self._profiles([each for each in rollouts if each.group in known])
        return set(gather([group for group, gains in profiles if any(abs(gain) > least for gain in gains)]))

    def _profiles(self, rollouts: Sequence[Rollout]) -> list[tuple[int, list[float]]]:
        """Per rollout its group, and the change of the answer's probability by each step but the last."""
        known = {each.group: answer_tokens(each.prompt, self._config, self._requests.tokenizer) for each in rollouts}
        suffixes = [
            [[Suffix((*start, *lead), tokens) for lead, tokens in known[each.group]] for start in starts_of(each)]
            for each in rollouts
        ]
        found = self._logprobs(suffix for starts in suffixes for start in starts for suffix in start)
        values = [[mean_probability([found.get(each) for each in start]) for start in starts] for starts in suffixes]
        return [(rollout.group, step_gains(each)) for rollout, each in zip(rollouts, values, strict=True)]

    def _logprobs(self, suffixes: Iterable[Suffix]) -> dict[Suffix, tuple[float, ...] | None]:
        """Log-probs of the suffixes that fit the engine. Equal ones are sent once."""
        room = self._config.engine.max_model_len
        requests = {
            each: self._requests.score_request(f"profile-{self._step}-{number}", each.before, each.tokens)
            for number, each in enumerate(dict.fromkeys(suffixes))
            if len(each.before) + len(each.tokens) < room
        }
        answers = self._stream.engine_answers(requests.values())
        return {each: answers[request.id].logprobs for each, request in requests.items()}

    def _costs(self, waiting: Mapping[int, Sequence[Rollout]]) -> dict[int, int]:
        """The maximum tokens of each group's critiques, on all ranks."""
        longest = self._config.critic.max_tokens
        mine = [(group, self._critiquing.wanted(members) * longest) for group, members in waiting.items()]
        costs: Counter[int] = Counter()
        for group, cost in gather(mine if self._judges else []):
            costs[group] += cost
        return dict(costs)

    def _order(self) -> list[int]:
        verdicts = by_group(self._verdicts)
        return reading_order(verdicts, {g: seed_of(self._config.seed, "gate", self._step, g) for g in verdicts})

    def _spent(self) -> int:
        """Tokens of this round's critiques so far, on all ranks."""
        return sum(gather([self._stream.traffic.critique_tokens] if self._judges else []))


def gate_metrics(traffic: Traffic, config: Config) -> dict[str, float]:
    """Critiques that were not requested, by reason; {} without a gate.

    `critic/saved_tokens` counts each at the mean of the requested ones; it is missing without any.
    """
    if not config.has_critic or (config.critic.reads == "solution" and config.critic.gate == GateConfig()):
        return {}
    reasons = ("groups", "prefix", "sound", "votes", "budget")
    gated = {f"critic/gated_{name}": float(getattr(traffic, f"gated_{name}")) for name in reasons}
    found = gated | {"critic/profile_tokens": float(traffic.profile_tokens)}
    if traffic.critiques:
        found["critic/saved_tokens"] = sum(gated.values()) * traffic.critique_tokens / traffic.critiques
    return found


def shared(outcomes: Outcomes) -> dict[Member, float]:
    """The verdicts of all ranks. A collective."""
    return {member: outcome for member, outcome in gather(list(outcomes.items())) if outcome is not None}


def by_group(verdicts: Mapping[Member, float]) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for (group, _), verdict in sorted(verdicts.items()):
        found.setdefault(group, []).append(verdict)
    return found


def grouped(rollouts: Sequence[Rollout]) -> dict[int, list[Rollout]]:
    found: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        found.setdefault(rollout.group, []).append(rollout)
    return found
