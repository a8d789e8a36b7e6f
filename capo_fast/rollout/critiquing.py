"""Critic requests of one sampling round, and their answers.

A critique judges a whole rollout, or one step of it (`critic.reads`). The judged text is a prompt with tokens of a
response; if these are equal within a group, one poll of `critic.votes` critiques serves all (`critic.judge_once`).

[us] Sharing steps is exact: the prompt of a step's critique has the problem and the steps up to it, none after. So for
two rollouts of a group with equal first k tokens the requests for each step within these, seeds included, are the same.
A critique of a whole rollout also depends on the later steps: only equal rollouts share it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import pairwise

from capo_fast.config.schema import Config
from capo_fast.credit.groups import step_ends
from capo_fast.credit.vote import vote, votes_to_ask
from capo_fast.errors import ConfigError
from capo_fast.records import Completion, Critique, Member, Request, Rollout
from capo_fast.rollout.requests import (
    RequestBuilder,
    critic_chat,
    critique_prompt_ids,
    critique_room,
    read_critique,
)
from capo_fast.rollout.stream import Stream, Traffic
from capo_fast.runtime.digest import seed_of

Key = bytes
"""Key of a judged text: a digest of its group and of the response up to its end."""
Claim = tuple[Member, list[Key]]
"""A rollout and the keys of its judged texts."""


@dataclass
class Poll:
    """The critiques of one judged text."""

    requests: Sequence[Request]
    """Requests of all votes; none if the engine has no room for an answer."""
    shown: int
    """Steps in the critic's prompt."""
    judged: int
    """Judged steps: all of these, or the last."""
    sent: int = 0
    """Number of requests sent, from the first on."""
    found: dict[str, Critique] = field(default_factory=dict)
    """Critiques by request id."""

    @property
    def running(self) -> int:
        return self.sent - len(self.found)

    def critiques(self, votes: int) -> list[Critique]:
        """The finished critiques in the order of votes; truncated abstentions if there was no room."""
        if not self.requests:
            return [Critique.absent(truncated=True)] * votes
        return [self.found[each.id] for each in self.requests if each.id in self.found]


def check_room(builder: RequestBuilder) -> None:
    """Raises ConfigError if the critic's template, filled with an empty problem, leaves no room for a critique. Not
    checked for a server, whose own tokenizer counts."""
    config, critic = builder.config, builder.config.critic
    if not config.has_critic or critic.at_server:
        return
    chat, room = critic_chat(config, builder.tokenizer), critique_room(config)
    least = len(critique_prompt_ids(chat, builder.template, "", [""], None))
    if least >= room:
        raise ConfigError(
            f"{critic.key_of('max_tokens')}: found {critic.max_tokens}, which leaves {room} of engine.max_model_len "
            f"({config.engine.max_model_len}) for a prompt, wanted more than {least}, the tokens of "
            f"{critic.key_of('prompt')} with an empty problem"
        )


class Critiquing:
    """This rank's polls of one sampling round."""

    def __init__(self, stream: Stream, requests: RequestBuilder, version: int | None = None) -> None:
        """version: of the policy in this training step; None: of the policy that wrote each rollout."""
        self._stream, self._builder, self._version = stream, requests, version
        self._config: Config = requests.config
        self._critic = requests.config.critic
        self._polls: dict[Key, Poll] = {}
        self._by_request: dict[str, Poll] = {}
        self._known: dict[Member, list[Key]] = {}
        """The keys of each rollout so far."""
        self._read: set[Member] = set()
        """The rollouts that the critic judges, by group and sample."""
        self._sound: set[Key] = set()
        """Steps that count as right without a request."""
        self._elsewhere: set[Key] = set()
        """Keys that other engines judge."""
        self._common: set[Key] = set()
        """Keys that this engine judges and others share."""
        self._taken_over: dict[Key, list[Critique]] = {}
        """The critiques of other engines."""

    def claims(self, rollouts: Iterable[Rollout]) -> list[Claim]:
        """The keys to judge of each of these rollouts."""
        return [((each.group, each.sample), self._keys(each)) for each in rollouts]

    def divide(self, claims: Sequence[Claim]) -> None:
        """Leave the keys that several engines have to the engine that judges them. claims: of the rollouts of all
        engines, once each. Call it before `presume` and `ask`.

        The engine of one of the rollouts that share a key judges it: of the first in a random order, so that engines
        get about the same number of critiques, and those of a group's first steps share the keys and values of its
        prompt.
        """
        first: dict[Key, Member] = {}
        for member, keys in sorted(claims, key=lambda claim: seed_of("judge", *claim[0])):
            first |= {key: member for key in keys if key not in first}
        self._elsewhere = {key for key, member in first.items() if member not in self._known}
        others = {key for member, keys in claims if member not in self._known for key in keys}
        self._common = others - self._elsewhere

    def presume(self, claims: Iterable[Claim]) -> None:
        """Count the keys of these rollouts as right, also in other rollouts. Call it once, before `ask`."""
        self._sound.update(key for _, keys in claims for key in keys)
        self._stream.traffic += Traffic(gated_sound=len(self._sound - self._elsewhere) * self._critic.votes)
        self._elsewhere -= self._sound

    def ask(self, rollout: Rollout) -> None:
        """Send requests for the keys of a rollout that this engine judges and has not sent yet."""
        keys = self._keys(rollout)
        self._read.add((rollout.group, rollout.sample))
        new = [place for place, key in enumerate(keys) if self._is_open(key)]
        taken_over = [self._polls.get(key) for key in keys if key in self._polls or key in self._elsewhere]
        polls = [self._poll(rollout, place) for place in new]
        self._polls |= {keys[place]: poll for place, poll in zip(new, polls, strict=True)}
        self._by_request |= {request.id: poll for poll in polls for request in poll.requests}
        self._send_next(polls)
        saved = sum(self._critic.votes if poll is None else len(poll.requests) for poll in taken_over)
        self._stream.traffic += Traffic(gated_prefix=saved, shared=int(bool(taken_over) and not new))

    def note(self, completion: Completion) -> None:
        """Note a finished critique."""
        poll = self._by_request[completion.id]
        poll.found[completion.id] = self._parsed(completion, poll)
        if not poll.running:
            self._send_next([poll])

    def wanted(self, rollouts: Iterable[Rollout]) -> int:
        """Number of critiques that these rollouts add at this engine."""
        keys = {key for rollout in rollouts for key in self._keys(rollout)}
        return sum(map(self._is_open, keys)) * self._critic.votes

    def common(self) -> list[tuple[Key, list[Critique]]]:
        """The critiques of keys that other engines share."""
        return [(key, self._found(key)) for key in self._polls if key in self._common]

    def take_over(self, found: Iterable[tuple[Key, list[Critique]]]) -> None:
        """Note the critiques of keys that other engines judge."""
        self._taken_over = {key: critiques for key, critiques in found if key in self._elsewhere}

    def result(self, rollout: Rollout) -> tuple[tuple[Critique, ...], tuple[float, ...]]:
        """The critiques of a rollout and the vote on each step; empty, and zeros, if the critic does not judge it."""
        steps = len(rollout.steps.texts)
        if (rollout.group, rollout.sample) not in self._read:
            return (), (0.0,) * steps
        found = [self._found(key) for key in self._keys(rollout)]
        if self._critic.reads == "solution":
            return tuple(found[0]), tuple(vote(found[0], steps, self._critic.voting))
        votes = [vote(critiques, 1, self._critic.voting)[0] for critiques in found]
        return joined(found, self._critic.votes), tuple(votes)

    def finish(self) -> None:
        """Count the votes that were not requested, once all polls are settled."""
        left = sum(len(poll.requests) - poll.sent for poll in self._polls.values())
        self._stream.traffic += Traffic(gated_votes=left)

    def _is_open(self, key: Key) -> bool:
        """True if this engine judges the key and no request was sent."""
        return key not in self._polls and key not in self._sound and key not in self._elsewhere

    def _found(self, key: Key) -> list[Critique]:
        if key in self._polls:
            return self._polls[key].critiques(self._critic.votes)
        return self._taken_over.get(key, [])

    def _keys(self, rollout: Rollout) -> list[Key]:
        """The keys of a rollout: of each step in order, or of the whole."""
        member = rollout.group, rollout.sample
        if member not in self._known:
            ends = step_ends(rollout) if self._critic.reads == "step" else [len(rollout.token_ids)]
            owner = rollout.group if self._critic.judge_once else member
            self._known[member] = prefix_digests(owner, rollout.token_ids, ends)
        return self._known[member]

    def _poll(self, rollout: Rollout, place: int) -> Poll:
        if self._critic.reads == "step":
            requests = self._builder.critique_requests(rollout, place, self._version)
            return Poll(requests, shown=place + 1, judged=1)
        steps = len(rollout.steps.texts)
        requests = self._builder.critique_requests(rollout, version=self._version)
        return Poll(requests, shown=steps, judged=steps)

    def _send_next(self, polls: Sequence[Poll]) -> None:
        """Send for each poll the fewest requests that may settle its votes."""
        requests: list[Request] = []
        for poll in polls:
            more = len(poll.requests) - poll.sent
            if self._critic.gate.adaptive and more:
                more = votes_to_ask(poll.critiques(0), poll.judged, self._critic.voting, len(poll.requests))
            requests += poll.requests[poll.sent : poll.sent + more]
            poll.sent += more
        self._stream.add_critiques(requests)

    def _parsed(self, completion: Completion, poll: Poll) -> Critique:
        critique = read_critique(completion, poll.shown, self._builder.parse)
        if self._critic.reads == "step":
            return replace(critique, wrong_steps=frozenset({0}) if critique.wrong_steps else frozenset())
        return critique


def prefix_digests(owner: object, tokens: Sequence[int], ends: Iterable[int]) -> list[Key]:
    """Digests of the first `end` tokens, for each end in rising order. Keys of different owners differ.

    >>> long, short, other = (prefix_digests("id", tokens, [2, 3]) for tokens in ((5, 6, 7), (5, 6, 8), (5, 1, 7)))
    >>> long[0] == short[0], long[1] == short[1], long[0] == other[0]
    (True, False, False)
    """
    state = blake2b(repr(owner).encode(), digest_size=16)
    keys = []
    for start, end in pairwise([0, *ends]):
        state.update(array("q", tokens[start:end]).tobytes())
        keys.append(state.digest())
    return keys


def joined(of_steps: Sequence[Sequence[Critique]], votes: int) -> tuple[Critique, ...]:
    """The critiques of a rollout, one per vote, from those of each of its steps, of which each has as many as were
    requested."""
    by_vote = [
        [(step, found[number]) for step, found in enumerate(of_steps) if number < len(found)] for number in range(votes)
    ]
    steps = frozenset(range(len(of_steps)))
    judged = [{step for step, each in parts if not each.abstained} for parts in by_vote]
    return tuple(replace(_whole(parts), unread=steps - of) for parts, of in zip(by_vote, judged, strict=True) if parts)


def _whole(parts: Sequence[tuple[int, Critique]]) -> Critique:
    """It abstains if all of its steps do, and has failed if the critique of one has. Its text names the steps, for
    estimators that put it into the policy's prompt."""
    return Critique(
        abstained=all(each.abstained for _, each in parts),
        wrong_steps=frozenset(step for step, each in parts if each.wrong_steps),
        dropped=sum(each.dropped for _, each in parts),
        text="\n".join(f"step_{step}: {each.text}" for step, each in parts),
        truncated=any(each.truncated for _, each in parts),
        failed=any(each.failed for _, each in parts),
    )
