"""Running requests at the engine and at an external critic, and their cost."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Self

from capo_fast.engine.base import Completer, Engine, run_requests
from capo_fast.records import Completion, Request


@dataclass(frozen=True)
class Summed:
    """Numbers that add up one by one, over ranks and rounds."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


@dataclass(frozen=True)
class Traffic(Summed):
    """The cost of generating a step's batch."""

    rollout_tokens: int = 0
    critique_tokens: int = 0
    critique_prompt_tokens: int = 0
    critique_cached_tokens: int = 0
    """Prompt tokens whose keys and values were cached."""
    overlapped_tokens: int = 0
    """Critique tokens decoded while rollouts still ran, at one token per sequence and engine step; for an external
    critic those of critiques that ended while rollouts ran."""
    shared: int = 0
    """Rollouts that took all critiques from others, such as an equal one; `gated_prefix` counts the critiques."""
    unread: int = 0
    """Rollouts left out by `credit.when`."""
    busy_seconds: float = 0.0
    """Seconds inside the engine's steps."""
    idle_seconds: float = 0.0
    """Seconds between the engine's steps with running requests."""
    both_seconds: float = 0.0
    """Seconds of engine steps with rollouts while critiques ran there or elsewhere."""
    critiques: int = 0
    """Requested critiques: of rollouts, or of single steps (`critic.reads`)."""
    gated_groups: int = 0
    """Not requested: critiques of groups left out by `critic.gate` or without any verdict, including critiques for
    which there would have been no room."""
    gated_prefix: int = 0
    """Not requested: steps already judged after the same prefix, and equal rollouts."""
    gated_sound: int = 0
    """Not requested: steps that a right answer has after the same prefix."""
    gated_votes: int = 0
    """Not requested: votes that were already settled."""
    gated_budget: int = 0
    """Not requested: groups beyond the budget."""
    profile_tokens: int = 0
    """Tokens that the policy scored for `critic.gate.ambiguous`."""

    @property
    def all_critique_tokens(self) -> int:
        """Tokens of critiques and their prompts, as counted against `endpoint.budget_tokens`."""
        return self.critique_tokens + self.critique_prompt_tokens


class Stream:
    """Running rollout and critique requests, at one engine or at an engine and an external critic."""

    def __init__(self, engine: Engine, critic: Completer) -> None:
        self.traffic = Traffic()
        self.rollouts: set[str] = set()
        self.critiques: dict[str, int] = {}
        """Running requests with the engine step after which they entered."""
        self._engine, self._critic = engine, critic
        self._steps = self._steps_with_rollouts = 0
        self._idle_since = 0.0

    def add_rollout(self, request: Request) -> None:
        self._note_work()
        self.rollouts.add(request.id)
        self._engine.add(request)

    def add_critiques(self, requests: Sequence[Request]) -> None:
        if not requests:
            return
        if self._critic is self._engine:
            self._note_work()
        self.critiques |= dict.fromkeys((request.id for request in requests), self._steps)
        self.traffic += Traffic(critiques=len(requests))
        for request in requests:
            self._critic.add(request)

    def advance(self) -> list[Completion]:
        """The completions of one engine step, and of the critic in the meantime."""
        busy = self.engine_has_work()
        ended = self._step() if busy else []
        if self._critic is not self._engine:
            ended += self._critic.step()
            if not busy and not ended:
                time.sleep(self._critic.pause_s)
        self._count(ended)
        return ended

    def engine_answers(self, requests: Iterable[Request]) -> dict[str, Completion]:
        """The engine's answers by request id; it must have no other running requests."""
        answers = run_requests(self._engine, requests)
        self.traffic += Traffic(profile_tokens=sum(each.prompt_tokens + each.tokens for each in answers.values()))
        return answers

    def stop_rollouts(self) -> list[Completion]:
        """Stops the running rollouts; returns their completions so far."""
        stopped = self._engine.stop(sorted(self.rollouts))
        self.rollouts.clear()
        self.traffic += Traffic(rollout_tokens=sum(completion.tokens for completion in stopped))
        return stopped

    def engine_has_work(self) -> bool:
        """True if the engine has running requests; otherwise `advance` does not step it."""
        return bool(self.rollouts or (self._critic is self._engine and self.critiques))

    def _note_work(self) -> None:
        """Idle time of the engine counts from its first request."""
        if not self.engine_has_work():
            self._idle_since = time.perf_counter()

    def _step(self) -> list[Completion]:
        self._steps += 1
        both = bool(self.rollouts and self.critiques)
        if self.rollouts:
            self._steps_with_rollouts = self._steps
        started = time.perf_counter()
        ended = self._engine.step()
        idle, self._idle_since = started - self._idle_since, time.perf_counter()
        busy = self._idle_since - started
        self.traffic += Traffic(busy_seconds=busy, idle_seconds=idle, both_seconds=busy * both)
        return ended

    def _count(self, ended: Sequence[Completion]) -> None:
        rollouts = [each for each in ended if each.id in self.rollouts]
        critiques = [each for each in ended if each.id in self.critiques]
        self.rollouts.difference_update(each.id for each in rollouts)
        beside = [self._beside_rollouts(self.critiques.pop(each.id), each.tokens) for each in critiques]
        self.traffic += Traffic(
            rollout_tokens=sum(each.tokens for each in rollouts),
            critique_tokens=sum(each.tokens for each in critiques),
            critique_prompt_tokens=sum(each.prompt_tokens for each in critiques),
            critique_cached_tokens=sum(each.cached_tokens for each in critiques),
            overlapped_tokens=sum(beside),
        )

    def _beside_rollouts(self, entered: int, tokens: int) -> int:
        """The number of a critique's `tokens` tokens that were decoded while rollouts still ran."""
        if self._critic is not self._engine:
            return tokens if self.rollouts else 0
        beside = min(tokens - (self._steps - self._steps_with_rollouts), self._steps_with_rollouts - entered)
        return max(0, beside)
