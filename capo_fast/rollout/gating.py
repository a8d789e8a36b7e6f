"""What the critic reads of a sampling round (`credit.when`, `critic.gate`): groups, in an order, within a budget.

Ranks exchange verdicts, costs and what is spent, so all choose the same groups. Which rank has which rollout matters in
one way: steps and rollouts are shared, and steps presumed sound, among the rollouts of one rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from capo_fast.config.critic import GateConfig
from capo_fast.config.schema import Config
from capo_fast.credit.estimators.answer_probability import answer_tokens, mean_probability, starts_of
from capo_fast.credit.gate import groups_to_read, reading_order, within_budget
from capo_fast.credit.groups import step_gains
from capo_fast.records import Member, Rollout
from capo_fast.rollout.critiquing import Critiquing
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.stream import Stream, Traffic
from capo_fast.runtime.digest import seed_of
from capo_fast.runtime.ranks import gather

Tokens = tuple[int, ...]
Outcomes = Mapping[Member, float | None]
"""Verdicts of this rank's rollouts; None where a check timed out. Empty on ranks that do not judge."""


class Gate:
    """Of one sampling round. Where `credit.when` or `critic.gate` is set, its methods are collectives on all ranks."""

    def __init__(
        self, stream: Stream, requests: RequestBuilder, critiquing: Critiquing, step: int, judges: bool
    ) -> None:
        self._stream, self._requests, self._critiquing = stream, requests, critiquing
        self._config, self._gate = requests.config, requests.config.critic.gate
        self._step, self._judges = step, judges
        self._ambiguous: set[int] = set()
        self._verdicts: dict[Member, float] = {}

    def read_profiles(self, rollouts: Sequence[Rollout], outcomes: Outcomes) -> None:
        """Ask the policy about the groups that verdicts alone would keep from the critic (`critic.gate.ambiguous`)."""
        read = groups_to_read(by_group(shared(outcomes)), self._gate.groups)
        profiles = self._profiles([each for each in rollouts if each.group not in read])
        least = self._gate.ambiguous or 0.0
        self._ambiguous = set(gather([group for group, gains in profiles if any(abs(gain) > least for gain in gains)]))

    def choose(self, rollouts: Sequence[Rollout], outcomes: Callable[[], Outcomes]) -> Sequence[Rollout]:
        """The rollouts that `credit.when` and the groups of the gate leave to the critic. outcomes: waits for them."""
        if not self._config.chooses:
            return rollouts
        self._verdicts = shared(outcomes())
        wanted = self._wanted(rollouts)
        self._stream.traffic += Traffic(unread=len(rollouts) - len(wanted))
        if self._gate.groups == "all":
            return self._presumed(wanted)
        read = groups_to_read(by_group(self._verdicts), self._gate.groups) | self._ambiguous
        shut = self._critiquing.wanted(each for each in wanted if each.group not in read)
        self._stream.traffic += Traffic(gated_groups=shut)
        return self._presumed([each for each in wanted if each.group in read])

    def _presumed(self, rollouts: Sequence[Rollout]) -> Sequence[Rollout]:
        """The same. Under `critic.gate.trust_right` the steps of right answers among them are sound."""
        if self._gate.trust_right:
            self._critiquing.presume(each for each in rollouts if self._verdicts.get((each.group, each.sample)) == 1)
        return rollouts

    def ask(
        self, rollouts: Sequence[Rollout], ask: Callable[[Sequence[Rollout]], None], finish: Callable[[], None]
    ) -> None:
        """Ask about these: all at once, or group by group within `critic.gate.tokens`, each whole or not at all.

        A critique is reckoned at its longest until it has ended; what it leaves over is there for further groups.
        """
        if self._gate.tokens is None:
            ask(rollouts)
            return
        waiting = grouped(rollouts)
        costs, order = self._costs(waiting), self._order()
        while groups := within_budget(costs, (each for each in order if each in costs), self._left()):
            for group in groups:
                del costs[group]
                ask(waiting.pop(group, []))
            finish()
        over, unjudged = (
            self._critiquing.wanted(each for group in waiting if (group in order) == judged for each in waiting[group])
            for judged in (True, False)
        )
        self._stream.traffic += Traffic(gated_budget=over, gated_groups=unjudged)

    def _wanted(self, rollouts: Sequence[Rollout]) -> Sequence[Rollout]:
        """By `credit.when`."""
        when, verdicts = self._config.credit.when, self._verdicts
        if when == "always":
            return rollouts
        judged = [each for each in rollouts if (each.group, each.sample) in verdicts]
        if when == "mixed-groups":
            mixed = groups_to_read(by_group(verdicts), "mixed")
            return [each for each in judged if each.group in mixed]
        wrong = when == "wrong-answers"
        return [each for each in judged if (verdicts[each.group, each.sample] < 1) == wrong]

    def _profiles(self, rollouts: Sequence[Rollout]) -> list[tuple[int, list[float]]]:
        """Of each rollout its group, and what each step but the last adds to the probability of the answer."""
        known = {each.group: answer_tokens(each.prompt, self._config, self._requests.tokenizer) for each in rollouts}
        pairs = [
            ((*start, *lead), tokens)
            for rollout in rollouts
            for start in starts_of(rollout)
            for lead, tokens in known[rollout.group]
        ]
        found = iter(self._logprobs(pairs))
        values = [
            [mean_probability(list(islice(found, len(known[rollout.group])))) for _ in starts_of(rollout)]
            for rollout in rollouts
        ]
        return [(rollout.group, step_gains(each)) for rollout, each in zip(rollouts, values, strict=True)]

    def _logprobs(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[tuple[float, ...] | None]:
        """Of the second of each pair after the first; None where the engine has no room for both."""
        room = self._config.engine.max_model_len
        requests = {
            number: self._requests.score_request(f"profile-{self._step}-{number}", *pair)
            for number, pair in enumerate(pairs)
            if sum(map(len, pair)) < room
        }
        answers = self._stream.engine_answers(requests.values())
        return [answers[requests[n].id].logprobs if n in requests else None for n in range(len(pairs))]

    def _costs(self, waiting: Mapping[int, Sequence[Rollout]]) -> dict[int, int]:
        """The most tokens that the critiques of each group can have, on all ranks."""
        longest = self._config.critic.max_tokens
        mine = [(group, self._critiquing.wanted(members) * longest) for group, members in waiting.items()]
        costs: Counter[int] = Counter()
        for group, cost in gather(mine if self._judges else []):
            costs[group] += cost
        return dict(costs)

    def _order(self) -> list[int]:
        verdicts = by_group(self._verdicts)
        return reading_order(verdicts, {g: seed_of(self._config.seed, "gate", self._step, g) for g in verdicts})

    def _left(self) -> int:
        """Of the budget."""
        spent = gather([self._stream.traffic.critique_tokens] if self._judges else [])
        return (self._gate.tokens or 0) - sum(spent)


def gate_metrics(traffic: Traffic, config: Config) -> dict[str, float]:
    """Critiques that were not asked for, by reason; {} without a gate.

    `critic/saved_tokens` reckons each at the mean of those that were; it is missing where none was.
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
    """The verdicts that all ranks have. A collective."""
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
